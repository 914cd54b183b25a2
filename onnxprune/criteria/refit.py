"""Closed-form refit of one linear node to fewer inputs, from second moments."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxprune.analysis.groups import Analysis
from onnxprune.criteria.elimination import refit_weight
from onnxprune.statistics.im2col import geometry, tap_order
from onnxprune.statistics.moments import InputMoments


def refit_without(
    analysis: Analysis,
    item: InputMoments,
    removed: np.ndarray,
    inverse_of: Callable[[InputMoments, int], np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """Refit a node's weight to the inputs that are kept.

    Parameters
    ----------
    item
        Moments of the node's input.
    removed
        Removed positions on the node's input axis.
    inverse_of
        Returns the inverse second moments of one group of the node, (K, K).

    Returns
    -------
    weight
        In the layout and type of the node's weight, zero at removed inputs.
    shift
        (outputs,) mean that the outputs lose; to be added to the bias.
    """
    weight, inputs = item.weight(analysis), item.xx.shape[1] // item.taps
    refitted = np.empty_like(weight)
    for g in range(len(weight)):
        # positions in this group, counted from its first input
        own = removed[(removed >= g * inputs) & (removed < (g + 1) * inputs)] - g * inputs
        columns = (own[:, None] * item.taps + np.arange(item.taps)).ravel()
        refitted[g] = refit_weight(weight[g], inverse_of(item, g), columns)
    shift = np.einsum("gok,gk->go", weight - refitted, item.mean)
    node = analysis.nodes[item.linear.node]
    stored = analysis.model.weights[item.linear.weight.tensor].array()
    window = geometry(node, stored.shape, (0,) * stored.ndim)
    taps, groups = max(window.taps, 1), len(refitted)
    if item.taps == taps:
        matrix = refitted.reshape(groups, -1, inputs, taps)
    else:
        # moments per channel: the taps of an output are rows of their own, see InputMoments.weight
        matrix = refitted.reshape(groups, -1, taps, inputs).transpose(0, 1, 3, 2)
        shift = shift.reshape(groups, -1, taps).sum(2)
    unordered = np.empty_like(matrix)
    unordered[..., tap_order(window)] = matrix
    values = item.linear.layout.from_matrix(unordered, stored.shape).astype(stored.dtype)
    return values, shift.ravel()
