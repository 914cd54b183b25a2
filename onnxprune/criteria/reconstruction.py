"""The default criterion: output error after removal, with the consumers refitted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from onnxprune.analysis.groups import Analysis
from onnxprune.criteria.base import Context
from onnxprune.criteria.elimination import Consumer, eliminate
from onnxprune.criteria.memo import Kind
from onnxprune.errors import UsageError
from onnxprune.parallel import ordered_map
from onnxprune.statistics.fisher import Fisher, output_fisher
from onnxprune.statistics.moments import InputMoments, ProductMoments, collect_moments
from onnxprune.types import Group, Scores

_WHO = "criterion 'reconstruction'"
_SECOND_MOMENTS = Kind[tuple[Mapping[int, InputMoments], list[ProductMoments]]]("second moments")
_OUTPUT_FISHER = Kind[Mapping[str, Fisher]]("output Fisher information")
# Relative to the largest cost of a group; added per rank, so that equal costs keep their order.
_TIE = 1e-9


def reconstruction(context: Context) -> Scores:
    """Compute the divergence that each removal adds, in the order of backward elimination.

    The divergence is that of the model's output, to second order: the output error of the refitted
    consumers, weighted by the Fisher information of their outputs. If the graph has no gradient
    (see `statistics.fisher`), it is the sum of the consumers' relative output errors instead.

    Scores of a group ascend in the order of elimination, and their running sum is the group's error
    curve. Groups that no linear node consumes are left out.

    Raises
    ------
    UsageError
        No group is consumed by a linear node with plain weights.
    """
    statistics = moments(context)
    groups = context.analysis.groups

    def list_consumed() -> Iterator[tuple[Group, list[Consumer]]]:
        for i, group in enumerate(groups):
            context.progress(i / len(groups), f"{i} of {len(groups)} groups")
            consumers = group_consumers(context.analysis, group.name, *statistics)
            if consumers:
                yield group, consumers

    def score(item: tuple[Group, list[Consumer]]) -> tuple[str, np.ndarray]:
        group, consumers = item
        return group.name, ascending(*eliminate(consumers, group.size))

    scores = dict(ordered_map(score, list_consumed(), context.threads))
    if groups and not scores:
        raise UsageError(
            "no-plain-weights",
            "criterion 'reconstruction' refits plain weights, and every weight here is quantized "
            "or computed; pass --criterion 'activation*weight' --allocate knapsack --repair none",
        )
    return scores


def moments(
    context: Context,
) -> tuple[Mapping[int, InputMoments], list[ProductMoments], Mapping[str, Fisher]]:
    """Return second moments of the consumers' inputs and Fisher information of their outputs.

    Computed once per context. The Fisher information is empty if the graph has no gradient.
    """
    statistics, pairs = second_moments(context)

    def compute() -> Mapping[str, Fisher]:
        analysis = context.analysis
        outs = [(s.linear.out, s.linear.out_axis) for s in statistics.values()]
        outs += [(analysis.nodes[p.node].output[0], -1) for p in pairs]
        if not outs:
            return {}
        fisher = output_fisher(
            analysis,
            context.statistics_data(_WHO),
            outs,
            seed=context.seed,
            batch_size=context.batch_size,
            threads=context.threads,
        )
        return fisher or {}

    return statistics, pairs, context.memoize(_OUTPUT_FISHER, compute)


def second_moments(
    context: Context,
) -> tuple[Mapping[int, InputMoments], list[ProductMoments]]:
    """Return second moments of the consumers' inputs, computed once per context."""

    def compute() -> tuple[Mapping[int, InputMoments], list[ProductMoments]]:
        return collect_moments(
            context.analysis,
            context.statistics_data(_WHO),
            batch_size=context.batch_size,
            threads=context.threads,
            seed=context.seed,
        )

    return context.memoize(_SECOND_MOMENTS, compute)


def group_consumers(
    analysis: Analysis,
    group: str,
    statistics: Mapping[int, InputMoments],
    pairs: Sequence[ProductMoments],
    fisher: Mapping[str, Fisher],
) -> list[Consumer]:
    """Return the consumers of a group, with the columns that each channel occupies.

    Parameters
    ----------
    statistics, pairs, fisher
        As returned by `moments`.
    """
    causes = analysis.causes[group]
    consumers: list[Consumer] = []
    for item in statistics.values():
        index = channel_columns(analysis, item.ids, causes)
        if index is not None:
            consumers += _find_linear_consumers(analysis, item, index, fisher)
    for pair in pairs:
        index = channel_columns(analysis, pair.ids, causes)
        if index is None:
            continue
        # the Fisher information of logits is taken as a multiple of the identity
        known = fisher.get(analysis.nodes[pair.node].output[0])
        # the trace over the width is the closest multiple in the least-squares sense
        factor = 0.5 * float(np.trace(known.products)) / len(known.products) if known else 1.0
        weight = np.full_like(pair.xx, factor)
        consumers.append(Consumer(pair.xx, weight, index, known is not None))
    return consumers


def _find_linear_consumers(
    analysis: Analysis, item: InputMoments, index: np.ndarray, fisher: Mapping[str, Fisher]
) -> Iterator[Consumer]:
    """Yield a consumer per group of a linear node in which all channels have equally many inputs.

    Parameters
    ----------
    index
        (channels, m) positions on the node's input axis.
    """
    weight = item.weight(analysis)
    inputs = item.xx.shape[1] // item.taps
    weighted = _weight_by_fisher(weight, fisher.get(item.linear.out))
    for g in range(len(weight)):
        inside = index if len(weight) == 1 else _find_positions_in_group(index, g, inputs)
        if inside is not None:
            columns = inside[:, :, None] * item.taps + np.arange(item.taps)
            yield Consumer(
                item.xx[g],
                weight[g].T @ weighted[g],
                columns.reshape(len(inside), -1),
                bool(fisher),
            )


def _weight_by_fisher(weight: np.ndarray, fisher: Fisher | None) -> np.ndarray:
    """Return F W / 2 per group of the node; W itself without Fisher information.

    Parameters
    ----------
    weight
        (groups, outputs * taps, K) W; the rows of an output are adjacent.
    fisher
        Of the node's output, over all groups. Correlations between groups are ignored.
    """
    if fisher is None:
        return weight
    groups, rows, k = weight.shape
    outputs = len(fisher.products) // groups
    result = []
    for i, w in enumerate(weight):
        # outputs of a group are adjacent in a grouped convolution
        own = slice(i * outputs, (i + 1) * outputs)
        product = fisher.products[own, own] @ w.reshape(outputs, -1)
        result.append(0.5 * fisher.positions * product.reshape(rows, k))
    return np.stack(result)


def channel_columns(
    analysis: Analysis, ids: np.ndarray | None, causes: np.ndarray
) -> np.ndarray | None:
    """Return the positions of an axis that each channel of a group occupies.

    Parameters
    ----------
    ids
        Axis ids, (length,); None for an axis that is not prunable.
    causes
        Causes of the channels.

    Returns
    -------
    np.ndarray or None
        (channels, m) int; None if the group is not on the axis, or its channels occupy different
        numbers of positions.
    """
    if ids is None:
        return None
    table = analysis.axes.table(ids)
    # the last entry is that of frozen positions
    channel = np.full(analysis.axes.causes + 1, -1)
    channel[causes] = np.arange(len(causes))
    # a position may depend on several causes: the table has a column for each
    position, column = np.nonzero(channel[table] >= 0)
    if not len(position):
        return None
    owner = channel[table[position, column]]
    counts = np.bincount(owner, minlength=len(causes))
    # the columns are arranged as a rectangle, one row per channel
    if (counts != counts[0]).any():
        return None
    return position[np.argsort(owner, kind="stable")].reshape(len(causes), -1)


def _find_positions_in_group(index: np.ndarray, g: int, inputs: int) -> np.ndarray | None:
    """Return the positions within group g of a grouped convolution, counted from its first input.

    None if channels have different numbers of positions there.
    """
    inside = (index >= g * inputs) & (index < (g + 1) * inputs)
    counts = inside.sum(1)
    if not counts.all() or (counts != counts[0]).any():
        return None
    return index[inside].reshape(len(index), -1) - g * inputs


def ascending(order: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """Return scores by channel that do not decrease along the order of removal.

    Isotonic regression keeps the sum of the costs.

    Parameters
    ----------
    order, cost
        As returned by `eliminate`.
    """
    # a removal may cost less than one before it, but scores ascend along the order
    smooth = isotonic(cost)
    scores = np.empty(len(order))
    scores[order] = smooth + _TIE * np.arange(len(order)) * max(float(smooth[-1]), 1e-12)
    return scores


def isotonic(values: np.ndarray) -> np.ndarray:
    """Return the ascending values with the least squared distance.

    Adjacent violators are pooled as by scipy.optimize.isotonic_regression (Busing 2022, JSS 102),
    with equal rounding; the import of that module takes longer than all other work here.
    """
    given = values.tolist()
    # mean and count per block of equal results
    means: list[float] = []
    counts: list[float] = []
    i, last = 0, len(given) - 1
    while i <= last:
        mean, count = given[i], 1.0
        if means and means[-1] >= mean:
            total = counts[-1] * means[-1] + count * mean
            count += counts.pop()
            means.pop()
            mean = total / count
            # first what follows, as long as it is lower, then the blocks before
            while i < last and mean >= given[i + 1]:
                i += 1
                total, count = total + given[i], count + 1.0
                mean = total / count
            while means and means[-1] >= mean:
                total, count = total + counts[-1] * means.pop(), count + counts.pop()
                mean = total / count
        means.append(mean)
        counts.append(count)
        i += 1
    return np.repeat(means, np.asarray(counts, np.int64))
