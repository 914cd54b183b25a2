"""Scores from what the consumers of a channel see on calibration data."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxprune.analysis.groups import Analysis
from onnxprune.criteria.base import Context
from onnxprune.criteria.magnitude import position_norms
from onnxprune.statistics.channels import ChannelStatistics, channel_statistics
from onnxprune.types import Scores


def activation_mean(context: Context) -> Scores:
    """Mean |x|, averaged over the places where the channel is read."""
    return _scores(context, "activation_mean", lambda s, weight: s.absolute)


def activation_variance(context: Context) -> Scores:
    """Variance of x, averaged over the places where the channel is read (Polyak and Wolf 2015)."""
    return _scores(context, "activation_variance", lambda s, weight: s.variance)


def apoz(context: Context) -> Scores:
    """Share of values above zero: one minus the average percentage of zeros behind a ReLU (Hu et al. 2016)."""
    return _scores(context, "apoz", lambda s, weight: s.positive)


def activation_weight(context: Context) -> Scores:
    """Root mean square of x times the norm of the weights that read it (after Wanda, Sun et al. 2023, summed over a channel)."""
    return _scores(
        context, "activation*weight", lambda s, weight: s.square * weight, finish=np.sqrt
    )


def _scores(
    context: Context,
    name: str,
    value: Callable[[ChannelStatistics, np.ndarray], np.ndarray],
    finish: Callable[[np.ndarray], np.ndarray] = lambda x: x,
) -> Scores:
    """Mean over the consumed places of a value a position."""
    analysis = context.analysis
    statistics = channel_statistics(
        analysis,
        context.required_data(name),
        batch_size=context.batch_size,
        threads=context.threads,
    )
    totals = np.zeros((2, analysis.axes.causes + 1))
    for mask in analysis.record.masks:
        place = (analysis.record.nodes[mask.node].input[mask.slot], mask.axis)
        if mask.recurrent or place not in statistics:
            continue
        table = analysis.axes.table(mask.ids)
        per_position = value(
            statistics[place], _consumer_norms(analysis, mask.node, mask.slot, mask.ids)
        )
        for column in range(table.shape[1]):
            np.add.at(totals[0], table[:, column], per_position)
            np.add.at(totals[1], table[:, column], 1.0)
    return {
        n: finish(totals[0, c] / totals[1, c])
        for n, c in analysis.causes.items()
        if totals[1, c].all()
    }


def _consumer_norms(analysis: Analysis, node: int, slot: int, ids: np.ndarray) -> np.ndarray:
    """(length,) squared norm of the weights of a node that read each position; ones where it reads two activations."""
    for number, use in enumerate(analysis.record.uses):
        if use.node == node and use.slot != slot:
            for axis, other in enumerate(use.axes):
                if isinstance(other, np.ndarray) and use.roles[axis] == "consumes":
                    norms = position_norms(analysis, number, axis, 2)
                    if len(norms) == len(ids):
                        return norms
                    return (
                        np.tile(norms, len(ids) // len(norms))
                        if len(ids) % len(norms) == 0
                        else np.ones(len(ids))
                    )
    return np.ones(len(ids))
