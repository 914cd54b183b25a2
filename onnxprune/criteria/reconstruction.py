"""The default criterion: what a channel's removal costs once its readers are refitted."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxprune.analysis.groups import Analysis
from onnxprune.criteria.base import Context
from onnxprune.criteria.elimination import Reader, eliminate
from onnxprune.criteria.memo import Kind
from onnxprune.errors import UsageError
from onnxprune.statistics.fisher import Fisher, output_fisher
from onnxprune.statistics.moments import InputMoments, ProductMoments, collect_moments
from onnxprune.types import Scores

_WHO = "criterion 'reconstruction'"
_SECOND_MOMENTS = Kind[tuple[Mapping[int, InputMoments], list[ProductMoments]]]("second moments")
_OUTPUT_FISHER = Kind[Mapping[str, Fisher]]("output Fisher information")
_TIE = 1e-9  # keeps the order of removals among equal costs


def reconstruction(context: Context) -> Scores:
    """What a channel's removal adds to the divergence of the model's answer, to second order, in the order of backward elimination.

    The output error that is left once the readers are refitted is weighed by the Fisher information of their outputs; where the
    graph has no gradient (see `statistics.fisher`), the sum of the readers' relative errors is taken instead.

    Scores of a group ascend in that order, and their running sum is the group's error curve. Groups that no linear node reads
    are left out.

    Raises
    ------
    UsageError
        There is no such group at all: the weights are quantized or computed.
    """
    known = moments(context)
    found, groups = {}, context.analysis.groups
    for i, group in enumerate(groups):
        context.progress(i / len(groups), f"{i} of {len(groups)} groups")
        readers = group_readers(context.analysis, group.name, *known)
        if readers:
            order, cost = eliminate(readers, group.size)
            found[group.name] = ascending(order, cost)
    if groups and not found:
        raise UsageError(
            "no-plain-weights",
            "criterion 'reconstruction' refits plain weights, and every weight here is quantized or computed; pass --criterion 'activation*weight' --allocate knapsack --repair none",
        )
    return found


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
        outs += [(analysis.record.nodes[p.node].output[0], -1) for p in pairs]
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


def second_moments(context: Context) -> tuple[Mapping[int, InputMoments], list[ProductMoments]]:
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


def group_readers(
    analysis: Analysis,
    group: str,
    statistics: Mapping[int, InputMoments],
    pairs: list[ProductMoments],
    fisher: Mapping[str, Fisher],
) -> list[Reader]:
    """What reads a group, with the columns of each channel."""
    causes = analysis.causes[group]
    readers = []
    for statistic in statistics.values():
        index = channel_columns(analysis, statistic.linear.ids, causes)  # type: ignore[arg-type]
        if index is None:
            continue
        weight = statistic.weight(analysis)
        inputs = statistic.xx.shape[1] // statistic.taps
        weighed = _weighed(weight, fisher.get(statistic.linear.out))
        for g in range(len(weight)):
            here = index if len(weight) == 1 else _block(index, g, inputs)
            if here is not None:
                taps = (here[:, :, None] * statistic.taps + np.arange(statistic.taps)).reshape(
                    len(here), -1
                )
                readers.append(
                    Reader(statistic.xx[g], weight[g].T @ weighed[g], taps, bool(fisher))
                )
    for pair in pairs:
        index = channel_columns(analysis, pair.ids, causes)
        if index is not None:
            known = fisher.get(analysis.record.nodes[pair.node].output[0])
            factor = 0.5 * float(np.trace(known.products)) / len(known.products) if known else 1.0
            readers.append(Reader(pair.xx, np.full_like(pair.xx, factor), index, known is not None))
    return readers


def _weighed(weight: np.ndarray, fisher: Fisher | None) -> np.ndarray:
    """Half of F W, by group; rows of W (groups, outputs * taps, K) belong to the outputs in turn."""
    if fisher is None:
        return weight
    g, rows, k = weight.shape
    outputs = len(fisher.products) // g
    blocks = [
        fisher.products[i * outputs : (i + 1) * outputs, i * outputs : (i + 1) * outputs]
        for i in range(g)
    ]
    return np.stack(
        [
            0.5 * fisher.positions * (b @ w.reshape(outputs, -1)).reshape(rows, k)
            for b, w in zip(blocks, weight, strict=False)
        ]
    )


def channel_columns(analysis: Analysis, ids: np.ndarray, causes: np.ndarray) -> np.ndarray | None:
    """(channels, m) positions of an axis that each of the causes occupies; None where it has none there or they are uneven."""
    table = analysis.axes.table(ids)
    channel = np.full(analysis.axes.causes + 1, -1)
    channel[causes] = np.arange(len(causes))
    position, column = np.nonzero(channel[table] >= 0)
    if not len(position):
        return None
    owner = channel[table[position, column]]
    counts = np.bincount(owner, minlength=len(causes))
    if (counts != counts[0]).any():
        return None
    return position[np.argsort(owner, kind="stable")].reshape(len(causes), -1)


def _block(index: np.ndarray, g: int, inputs: int) -> np.ndarray | None:
    """Columns within one group of a grouped convolution; None where channels do not all have the same number there."""
    inside = (index >= g * inputs) & (index < (g + 1) * inputs)
    counts = inside.sum(1)
    if not counts.all() or (counts != counts[0]).any():
        return None
    return index[inside].reshape(len(index), -1) - g * inputs


def ascending(order: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """Costs made non-decreasing along the order (their sum stays), as scores by channel."""
    from scipy.optimize import isotonic_regression

    smooth = isotonic_regression(cost).x
    scores = np.empty(len(order))
    scores[order] = smooth + _TIE * np.arange(len(order)) * max(float(smooth[-1]), 1e-12)
    return scores
