"""Second moments of everything that can be reconstructed, in one pass over the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.linear import Linear, linears, to_matrix
from onnxprune.data.dataset import Data, samples_of
from onnxprune.ir.runtime import Session
from onnxprune.statistics.im2col import Geometry, Moments, columns, geometry, positions, tap_order

MOST_COLUMNS = 1200  # above it moments are taken a channel, not a tap
OVERSAMPLE = 32  # positions a column that are wanted in all


@dataclass(frozen=True)
class Statistic:
    """Centered second moments of one linear node's input.

    xx: (groups, K, K) mean covariance; taps: columns a channel (1 where taken a channel); mean: (groups, K).
    """

    linear: Linear
    xx: np.ndarray
    mean: np.ndarray
    taps: int

    def weight(self, analysis: Analysis) -> np.ndarray:
        """The node's weight as (groups, outputs, K); a tap's outputs are rows of their own where moments are a channel."""
        node = analysis.record.nodes[self.linear.node]
        array = analysis.model.weights[self.linear.weight.tensor].array()
        matrix = to_matrix(self.linear, node, array).astype(np.float64)
        order = tap_order(geometry(node, array.shape, (0,) * array.ndim))
        matrix = matrix[..., order]
        g, o, c, t = matrix.shape
        return (
            matrix.reshape(g, o, c * t)
            if self.taps == t
            else matrix.transpose(0, 1, 3, 2).reshape(g, o * t, c)
        )


@dataclass(frozen=True)
class Pair:
    """A product of two activations that sums over a cut axis, q . k: second moments of its logits (K, K), summed over heads and positions of a sample."""

    node: int
    ids: np.ndarray
    xx: np.ndarray


def refittable(analysis: Analysis) -> tuple[str, ...]:
    """Groups that a linear node with plain weights, or a product of two activations, sums over: what closed forms can make up for."""
    ids = [li.ids for li in linears(analysis) if li.ids is not None] + [
        ids for _, ids in products(analysis)
    ]
    read = {c for axis in ids for c in analysis.axes.table(axis).ravel().tolist()}
    return tuple(
        name for name, causes in analysis.causes.items() if read.intersection(causes.tolist())
    )


def collect_moments(
    analysis: Analysis, data: Data, *, batch_size: int, threads: int, seed: int = 0
) -> tuple[Mapping[int, Statistic], list[Pair]]:
    """Statistics by node index, of every linear node that sums over an axis that can be cut, and of products of activations."""
    wanted = [
        li
        for li in linears(analysis)
        if li.ids is not None
        and not (li.groups > 1 and analysis.model.weights[li.weight.tensor].shape[1] == 1)
    ]
    pairs = products(analysis)
    names = sorted(
        {li.data for li in wanted}
        | {n for node, _ in pairs for n in analysis.record.nodes[node].input[:2]}
    )
    if not names:
        return {}, []
    session = Session(analysis.model, names, threads=threads)
    rng = np.random.default_rng(seed)
    sums: dict[object, list[Moments]] = {}
    keys: dict[int, object] = {}
    logits: dict[int, np.ndarray] = {}
    seen = 0
    for feeds in data.batches(batch_size):
        found = session.run(feeds)
        seen += samples_of(feeds)
        grids: dict[object, object] = {}
        for li in wanted:
            x = np.asarray(found[li.data])
            node = analysis.record.nodes[li.node]
            how = geometry(node, analysis.model.weights[li.weight.tensor].shape, x.shape)
            fine = x.shape[li.axis] // li.groups * max(how.taps, 1) <= MOST_COLUMNS
            how = how if fine else Geometry(0)
            key = keys[li.node] = (li.data, li.groups, how, li.axis)
            if key not in grids:
                grids[key] = True
                _accumulate(sums, key, x, li, how, analysis, data.samples, rng)
        for node_index, _ in pairs:
            logits[node_index] = logits.get(node_index, 0.0) + _logit_moments(
                *(
                    np.asarray(found[n], np.float64)
                    for n in analysis.record.nodes[node_index].input[:2]
                )
            )
    statistics = {}
    for li in wanted:
        parts = sums[keys[li.node]]
        covariances = [m.centered()[0] for m in parts]
        how = keys[li.node][2]  # type: ignore[index]
        count = max(parts[0].count, 1)
        statistics[li.node] = Statistic(
            li,
            np.stack([c / count for c in covariances]),
            np.stack([m.x / count for m in parts]),
            max(how.taps, 1),
        )
    return statistics, [Pair(n, ids, logits[n] / max(seen, 1)) for n, ids in pairs]


def _accumulate(
    sums: dict[object, list[Moments]],
    key: object,
    x: np.ndarray,
    li: Linear,
    how: Geometry,
    analysis: Analysis,
    samples: int,
    rng: np.random.Generator,
) -> None:
    channels = x.shape[li.axis]
    width = channels // li.groups * max(how.taps, 1)
    most = -(-OVERSAMPLE * width // max(samples, 1)) + 1
    if how.spatial:
        out = _output_shape(x.shape, how)
        cols = columns(x, how, positions(out, how.spatial, most, rng))
    else:
        moved = np.moveaxis(x, li.axis, -1).reshape(-1, channels)
        keep = most * len(x)
        rows = (
            moved
            if len(moved) <= keep
            else moved[np.sort(rng.choice(len(moved), keep, replace=False))]
        )
        cols = np.ascontiguousarray(rows.T, np.float32)
    parts = sums.setdefault(key, [Moments.zeros(width) for _ in range(li.groups)])
    for moments, block in zip(parts, np.split(cols, li.groups), strict=False):
        moments.add(block)


def _output_shape(shape: tuple[int, ...], how: Geometry) -> tuple[int, ...]:
    """Spatial output sizes behind two leading axes."""
    sizes = []
    for i, size in enumerate(shape[2:]):
        reach = how.dilations[i] * (how.kernel[i] - 1) + 1
        if how.transposed:
            sizes.append((size - 1) * how.strides[i] + reach - how.before[i] - how.after[i])
        else:
            sizes.append((size + how.before[i] + how.after[i] - reach) // how.strides[i] + 1)
    return (0, 0, *sizes)


def products(analysis: Analysis) -> list[tuple[int, np.ndarray]]:
    """MatMul nodes of two activations that sum over a cut axis."""
    found = {}
    weights = {(u.node, u.slot) for u in analysis.record.uses}
    for mask in analysis.record.masks:
        node = analysis.record.nodes[mask.node]
        if (
            analysis.record.outermost(mask.node)
            and node.op_type == "MatMul"
            and mask.slot == 0
            and (mask.node, 0) not in weights
            and (mask.node, 1) not in weights
        ):
            found[mask.node] = mask.ids
    return list(found.items())


def _logit_moments(q: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Second moments of the terms of q . k: (q^T q) * (k k^T), summed over samples and heads."""
    terms = (q.swapaxes(-1, -2) @ q) * (k @ k.swapaxes(-1, -2))
    return terms.reshape(-1, q.shape[-1], q.shape[-1]).sum(0)
