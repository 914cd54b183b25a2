"""Second moments of the inputs of all linear nodes, collected in one pass over the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.linear import Linear, linears
from onnxprune.data.dataset import Data, samples_of
from onnxprune.ir.runtime import Session
from onnxprune.parallel import ordered_map
from onnxprune.statistics.finite import require_finite
from onnxprune.statistics.im2col import Geometry, Moments, columns, geometry, positions, tap_order

# Largest K of a K x K moment matrix with a column per tap. Beyond it there is a column per channel,
# because inverting the matrix costs K^3.
MAX_COLUMNS = 1200
OVERSAMPLE = 32  # output positions per column, over all data


@dataclass(frozen=True)
class InputMoments:
    """Second moments of one linear node's input.

    Attributes
    ----------
    linear
        The node.
    xx
        (groups, K, K) mean covariance of its columns.
    mean
        (groups, K) mean of its columns.
    taps
        Columns per channel: the taps of the kernel, or 1 if moments are taken per channel.
    """

    linear: Linear
    xx: np.ndarray
    mean: np.ndarray
    taps: int

    @property
    def node(self) -> int:
        """Index of the node in `analysis.nodes`."""
        return self.linear.node

    @property
    def ids(self) -> np.ndarray | None:
        """Axis ids of the summed axis; None if it is not prunable."""
        return self.linear.ids

    def weight(self, analysis: Analysis) -> np.ndarray:
        """Return the node's weight as (groups, outputs, K) float64.

        With one column per channel, each tap of an output is a row of its own: (groups, outputs *
        taps, K).
        """
        node = analysis.nodes[self.linear.node]
        array = analysis.model.weights[self.linear.weight.tensor].array()
        matrix = self.linear.layout.to_matrix(array).astype(np.float64)
        # sizes of the input matter for auto_pad only, on which taps do not depend
        order = tap_order(geometry(node, array.shape, (0,) * array.ndim))
        matrix = matrix[..., order]
        g, o, c, t = matrix.shape
        if self.taps == t:
            return matrix.reshape(g, o, c * t)
        return matrix.transpose(0, 1, 3, 2).reshape(g, o * t, c)


@dataclass(frozen=True)
class ProductMoments:
    """Second moments of the logits of a product of two activations, q . k, such as attention's.

    Attributes
    ----------
    node
        Index of the MatMul in `analysis.nodes`.
    ids
        Axis ids of the summed axis, (K,).
    xx
        (K, K) second moments of the summands q_i * k_i, summed over heads and pairs of positions;
        mean over samples.
    """

    node: int
    ids: np.ndarray
    xx: np.ndarray


class _Source(NamedTuple):
    """What the columns of a linear node depend on; nodes with equal sources share their moments."""

    data: str
    groups: int
    window: Geometry
    axis: int


def refittable(analysis: Analysis) -> tuple[str, ...]:
    """Return the groups for which closed-form refits can compensate.

    These are summed over by a linear node with plain weights or by a product of two activations.
    """
    axes = [li.ids for li in linears(analysis) if li.ids is not None]
    axes += [ids for _, ids in products(analysis)]
    consumed: set[int] = set()
    for axis in axes:
        consumed.update(analysis.axes.table(axis).ravel().tolist())
    return tuple(
        name for name, causes in analysis.causes.items() if consumed.intersection(causes.tolist())
    )


def collect_moments(
    analysis: Analysis, data: Data, *, batch_size: int, threads: int, seed: int = 0
) -> tuple[Mapping[int, InputMoments], list[ProductMoments]]:
    """Collect second moments of every linear node and product that sums over a prunable axis.

    Depthwise convolutions are left out: they have no weights across channels.

    Parameters
    ----------
    seed
        Seed of the choice of output positions.

    Returns
    -------
    statistics
        Node index -> moments.
    pairs
        Moments of products of two activations, in graph order.
    """
    selected = _select_linears(analysis)
    pairs = products(analysis)
    names = {li.data for li in selected}
    for node, _ in pairs:
        names.update(analysis.nodes[node].input[:2])
    if not names:
        return {}, []
    session = Session(analysis.model, sorted(names), threads=threads)
    rng = np.random.default_rng(seed)
    sums: dict[_Source, list[Moments]] = {}
    sources: dict[int, _Source] = {}
    logits: dict[int, np.ndarray] = {}
    seen = 0
    for feeds, values in session.run_each(data.batches(batch_size)):
        require_finite(analysis, values)
        seen += samples_of(feeds)
        # nodes that consume the same activation in the same way are measured once per batch
        added: dict[_Source, _Draw] = {}
        for li in selected:
            x = np.asarray(values[li.data])
            source = sources[li.node] = _make_source(analysis, li, x)
            if source not in added:
                added[source] = _draw(sums, source, x, data.samples, rng)
        # each has sums of its own, to which batches are added in order
        for _ in ordered_map(_accumulate, added.items(), threads):
            pass
        for node, _ in pairs:
            q, k = (np.asarray(values[n], np.float64) for n in analysis.nodes[node].input[:2])
            logits[node] = logits.get(node, 0.0) + _sum_logit_moments(q, k)
    statistics = {li.node: _finish(li, sources[li.node], sums) for li in selected}
    return statistics, [ProductMoments(n, ids, logits[n] / max(seen, 1)) for n, ids in pairs]


def _select_linears(analysis: Analysis) -> list[Linear]:
    """Return the linear nodes that sum over a prunable axis and are not depthwise."""
    selected = []
    for li in linears(analysis):
        depthwise = li.groups > 1 and analysis.model.weights[li.weight.tensor].shape[1] == 1
        if li.ids is not None and not depthwise:
            selected.append(li)
    return selected


def _make_source(analysis: Analysis, li: Linear, x: np.ndarray) -> _Source:
    """Return the source of a node's columns; x: one batch of its input."""
    node = analysis.nodes[li.node]
    window = geometry(node, analysis.model.weights[li.weight.tensor].shape, x.shape)
    per_tap = x.shape[li.axis] // li.groups * max(window.taps, 1) <= MAX_COLUMNS
    return _Source(li.data, li.groups, window if per_tap else Geometry(0), li.axis)


class _Draw(NamedTuple):
    """What is added to the moments of a source.

    Attributes
    ----------
    parts
        Moments per group.
    x
        Batch of the input activation.
    at
        Output positions per spatial axis of the window, or rows; None for all rows.
    """

    parts: list[Moments]
    x: np.ndarray
    at: tuple[np.ndarray, ...] | np.ndarray | None


def _draw(
    sums: dict[_Source, list[Moments]],
    source: _Source,
    x: np.ndarray,
    samples: int,
    rng: np.random.Generator,
) -> _Draw:
    """Draw the positions of a batch that are added to the moments of a source.

    Parameters
    ----------
    sums
        Moments per group, updated.
    x
        Batch of the input activation.
    samples
        Samples in the whole data, from which the number of positions per sample follows.
    """
    _, groups, window, axis = source
    channels = x.shape[axis]
    width = channels // groups * max(window.taps, 1)
    # positions per sample, rounded up
    most = -(-OVERSAMPLE * width // max(samples, 1)) + 1
    at: tuple[np.ndarray, ...] | np.ndarray | None = None
    if window.spatial:
        at = positions(output_shape(x.shape, window), window.spatial, most, rng)
    elif x.size // channels > most * len(x):
        # sorted, so that rows are read in the order of memory
        at = np.sort(rng.choice(x.size // channels, most * len(x), replace=False))
    # a grouped node has separate moments per group of channels
    parts = sums.setdefault(source, [Moments.zeros(width) for _ in range(groups)])
    return _Draw(parts, x, at)


def _accumulate(item: tuple[_Source, _Draw]) -> None:
    """Add the drawn positions of a batch to the moments of a source."""
    (_, groups, window, axis), (parts, x, at) = item
    if isinstance(at, tuple):
        cols = columns(x, window, at)
    else:
        rows = np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis])
        cols = np.ascontiguousarray((rows if at is None else rows[at]).T, np.float32)
    for moments, block in zip(parts, np.split(cols, groups), strict=True):
        moments.add(block)


def _finish(li: Linear, source: _Source, sums: Mapping[_Source, list[Moments]]) -> InputMoments:
    """Turn the sums of a node's source into means."""
    parts = sums[source]
    covariances = [m.centered()[0] for m in parts]
    count = max(parts[0].count, 1)
    return InputMoments(
        li,
        np.stack([c / count for c in covariances]),
        np.stack([m.x / count for m in parts]),
        max(source.window.taps, 1),
    )


def output_shape(shape: tuple[int, ...], window: Geometry) -> tuple[int, ...]:
    """Return (0, 0, *spatial output sizes) for an input of this shape."""
    sizes = []
    for i, size in enumerate(shape[2:]):
        padding = window.before[i] + window.after[i]
        reach = window.dilations[i] * (window.kernel[i] - 1) + 1
        if window.transposed:
            sizes.append((size - 1) * window.strides[i] + reach - padding)
        else:
            sizes.append((size + padding - reach) // window.strides[i] + 1)
    return (0, 0, *sizes)


def products(analysis: Analysis) -> list[tuple[int, np.ndarray]]:
    """Return (node index, axis ids) of MatMuls of two activations that sum over a prunable axis."""
    result = {}
    weights = {(u.node, u.slot) for u in analysis.uses}
    for mask in analysis.masks:
        node = analysis.nodes[mask.node]
        if (
            analysis.outermost(mask.node)
            and node.op_type == "MatMul"
            and mask.slot == 0
            and (mask.node, 0) not in weights
            and (mask.node, 1) not in weights
        ):
            result[mask.node] = mask.ids
    return list(result.items())


def _sum_logit_moments(q: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Return the (K, K) second moments of the summands of q . k, summed over samples and heads.

    The sum over positions n, m of (q_ni k_im) (q_nj k_jm) is (q' q) * (k k'), elementwise.
    """
    terms = (q.swapaxes(-1, -2) @ q) * (k @ k.swapaxes(-1, -2))
    return terms.reshape(-1, q.shape[-1], q.shape[-1]).sum(0)
