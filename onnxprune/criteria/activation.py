"""Scores from the activations that a channel's consumers read on calibration data.

Each criterion is a value per channel and consumer, averaged over the consumers.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxprune.analysis.groups import Analysis
from onnxprune.criteria.base import Context
from onnxprune.criteria.magnitude import position_norms
from onnxprune.statistics.channels import ChannelStatistics, channel_statistics
from onnxprune.types import Scores

# (statistics of an axis, squared norms of the weights that consume it) -> value per position
Value = Callable[[ChannelStatistics, np.ndarray], np.ndarray]


def activation_mean(context: Context) -> Scores:
    """Compute the mean of abs(x)."""
    return _average(context, "activation_mean", lambda x, norms: x.absolute)


def activation_variance(context: Context) -> Scores:
    """Compute the variance of x (Polyak and Wolf 2015)."""
    return _average(context, "activation_variance", lambda x, norms: x.variance)


def apoz(context: Context) -> Scores:
    """Compute the share of x > 0.

    One minus the average percentage of zeros (APoZ) after a ReLU (Hu et al. 2016, arXiv
    1607.03250, eq. 1).
    """
    return _average(context, "apoz", lambda x, norms: x.positive)


def activation_weight(context: Context) -> Scores:
    """Compute sqrt(mean of x**2) times the norm of the weights that consume x.

    Wanda (Sun et al. 2023, arXiv 2306.11695, eq. 1) with the squares summed over a channel's
    weights.
    """
    squares = _average(context, "activation*weight", lambda x, norms: x.square * norms)
    return {name: np.sqrt(values) for name, values in squares.items()}


def _average(context: Context, name: str, value: Value) -> Scores:
    """Average a value per position over all places where a channel is consumed.

    Groups with a channel that is consumed nowhere are left out.
    """
    analysis = context.analysis
    statistics = channel_statistics(
        analysis,
        context.required_data(name),
        batch_size=context.batch_size,
        threads=context.threads,
    )
    sums, counts = np.zeros((2, analysis.axes.causes + 1))
    for mask in analysis.masks:
        axis = (mask.tensor, mask.axis)
        if mask.recurrent or axis not in statistics:
            continue
        table = analysis.axes.table(mask.ids)
        norms = _compute_consumer_norms(analysis, mask.node, mask.slot, mask.ids)
        per_position = value(statistics[axis], norms)
        for column in range(table.shape[1]):
            # a cause may occupy several positions
            np.add.at(sums, table[:, column], per_position)
            np.add.at(counts, table[:, column], 1.0)
    return {
        name: sums[causes] / counts[causes]
        for name, causes in analysis.causes.items()
        if counts[causes].all()
    }


def _compute_consumer_norms(
    analysis: Analysis, node: int, slot: int, ids: np.ndarray
) -> np.ndarray:
    """Return the squared norm of the weights that consume each position of an axis.

    Ones if the node has no such weight, as in a product of two activations.

    Parameters
    ----------
    node, slot
        Consumer and its operand that is the activation.
    ids
        (length,) axis ids of the activation.
    """
    for number, use in enumerate(analysis.uses):
        if use.node != node or use.slot == slot:
            continue
        for axis, other in enumerate(use.axes):
            if not isinstance(other, np.ndarray) or use.roles[axis] != "consumes":
                continue
            norms = position_norms(analysis, number, axis, 2)
            # a grouped convolution's weight covers the inputs of one group only
            if len(ids) % len(norms) == 0:
                return np.tile(norms, len(ids) // len(norms))
            return np.ones(len(ids))
    return np.ones(len(ids))
