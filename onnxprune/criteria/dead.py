"""Channels that can be removed without changing the model's output.

Nothing consumes them, or they are always zero. Networks tuned with dynamic network surgery have
many. Dead channels are derived from zero weights to a fixed point: a channel is dead if all its
consumers are.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.linear import Linear, linears
from onnxprune.criteria.base import Context
from onnxprune.statistics.channels import channel_statistics

# Variance over mean square, below which a float32 activation counts as constant.
CONSTANT_TOLERANCE = 1e-12


def dead_channels(context: Context, *, constants: bool = False) -> Mapping[str, np.ndarray]:
    """Find the dead channels of each group that has any.

    Parameters
    ----------
    constants
        Include channels with a constant value other than zero. Removing them is exact only if a
        repair folds the constant into the biases of the consumers.

    Returns
    -------
    mapping
        Group name -> sorted channel indices. At least one channel of a group is always kept.
    """
    analysis = context.analysis
    weights = _WeightSupport(analysis)
    dead = np.zeros(analysis.axes.causes + 1, bool)
    silent: np.ndarray | None = None
    while True:
        unread, unproduced = weights.unread(dead), weights.unproduced(dead)
        # activations are needed only if some filters are zero
        if silent is None and unproduced.any():
            silent = _find_silent(context, constants)
        new = unread & ~dead if silent is None else (unread | (unproduced & silent)) & ~dead
        new[-1] = False  # the last cause stands for positions that are frozen
        if not new.any():
            break
        dead |= new
    result = {}
    for name, causes in analysis.causes.items():
        index = np.flatnonzero(dead[causes])
        if len(index):
            result[name] = index if len(index) < len(causes) else index[:-1]
    return result


class _WeightSupport:
    """Nonzero weights of all linear nodes.

    Attributes
    ----------
    parts
        (node, (groups, outputs, inputs) bool: True if any tap is not zero).
    readable
        (causes + 1,) bool: True if all consumers of a cause are linear nodes.
    exact
        (causes + 1,) bool: True if removing a cause changes no other channel.
    """

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        self.parts: list[tuple[Linear, np.ndarray]] = []
        for linear in linears(analysis, inside=True):
            weight = analysis.model.weights[linear.weight.tensor].array()
            values = linear.layout.to_matrix(weight)
            # most weights have no zero; a broadcast scalar then takes no memory
            dense = np.broadcast_to(np.True_, values.shape[:3])
            self.parts.append((linear, dense if values.all() else (values != 0).any(3)))
        known = {linear.node for linear, _ in self.parts}
        self.readable = np.ones(analysis.axes.causes + 1, bool)
        for mask in analysis.masks:
            if mask.node not in known:
                self.readable[analysis.axes.table(mask.ids)] = False
        self.exact = ~analysis.mixed

    def live(self, linear: Linear, nonzero: np.ndarray, dead: np.ndarray) -> np.ndarray:
        """Return `nonzero` with False in the rows and columns of dead channels."""
        groups, outs, ins = nonzero.shape
        result = nonzero.copy()
        if linear.out_ids is not None:
            result &= self.analysis.keep(linear.out_ids, dead).reshape(groups, outs, 1)
        if linear.ids is not None:
            result &= self.analysis.keep(linear.ids, dead).reshape(groups, 1, ins)
        return result

    def unread(self, dead: np.ndarray) -> np.ndarray:
        """Return causes that are consumed, but only through zero weights."""
        return self._find_untouched(dead, inputs=True) & self.readable & self.exact

    def unproduced(self, dead: np.ndarray) -> np.ndarray:
        """Return causes that linear nodes produce, but only by zero filters."""
        return self._find_untouched(dead, inputs=False) & self.exact

    def _find_untouched(self, dead: np.ndarray, inputs: bool) -> np.ndarray:
        """Return causes on the inputs (or outputs) of linear nodes without any live weight."""
        present, used = np.zeros_like(dead), np.zeros_like(dead)
        for linear, nonzero in self.parts:
            ids = linear.ids if inputs else linear.out_ids
            if ids is None:
                continue
            table = self.analysis.axes.table(ids)
            present[table] = True
            used[table[self.live(linear, nonzero, dead).any(1 if inputs else 2).ravel()]] = True
        return present & ~used


def _find_silent(context: Context, constants: bool) -> np.ndarray:
    """Return causes that are zero (with `constants`: constant) at every consumer.

    One sample is enough, since a channel without filters has the same value for all inputs.
    """
    analysis = context.analysis
    data = context.required_data("the search for dead channels")
    statistics = channel_statistics(
        analysis, data, batch_size=1, threads=context.threads, most_batches=1
    )
    seen = np.zeros(analysis.axes.causes + 1, bool)
    active = np.zeros(analysis.axes.causes + 1, bool)
    for mask in analysis.masks:
        axis = (mask.tensor, mask.axis)
        table = analysis.axes.table(mask.ids)
        # activations inside nested graphs are not measured, so they count as active
        active[table] |= not analysis.outermost(mask.node)
        if axis not in statistics:
            continue
        values = statistics[axis]
        seen[table] = True
        if constants:
            varies = values.variance > CONSTANT_TOLERANCE * values.square
        else:
            varies = values.absolute > 0
        active[table[varies]] = True
    return seen & ~active
