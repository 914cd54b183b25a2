"""Channels that can go without changing anything: nothing reads them, or they are always zero.

A network tuned with dynamic surgery is full of them. Found from the weights, to a fixpoint: a channel whose only readers are
dead is dead too.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxprune.analysis.groups import Analysis, mixed_causes
from onnxprune.analysis.linear import Linear, linears, to_matrix
from onnxprune.criteria.base import Context
from onnxprune.statistics.channels import channel_statistics


def dead_channels(context: Context, *, constants: bool = False) -> Mapping[str, np.ndarray]:
    """Indices of the dead channels of each group that has some; at least one channel of a group always stays.

    Parameters
    ----------
    constants
        Also channels that are constant but not zero: exact only where a repair folds them into the biases of their readers.
    """
    analysis = context.analysis
    found = _Weights(analysis)
    gone = np.zeros(analysis.axes.causes + 1, bool)
    silent: np.ndarray | None = None
    while True:
        unread, unmade = found.unread(gone), found.unmade(gone)
        if silent is None and unmade.any():
            silent = _silent(context, constants)
        new = (unread | (unmade & silent if silent is not None else False)) & ~gone
        new[-1] = False
        if not new.any():
            break
        gone |= new
    dead = {}
    for name, causes in analysis.causes.items():
        index = np.flatnonzero(gone[causes])
        if len(index):
            dead[name] = index if len(index) < len(causes) else index[:-1]
    return dead


class _Weights:
    """Where the weights of the linear nodes are not zero: (groups, outputs, inputs) bool a node."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        self.parts: list[tuple[Linear, np.ndarray]] = []
        for linear in linears(analysis, inside=True):
            node = analysis.record.nodes[linear.node]
            values = to_matrix(linear, node, analysis.model.weights[linear.weight.tensor].array())
            used = (
                np.broadcast_to(np.True_, values.shape[:3])
                if values.all()
                else (values != 0).any(3)
            )
            self.parts.append((linear, used))
        known = {linear.node for linear, _ in self.parts}
        self.readable = np.ones(analysis.axes.causes + 1, bool)
        for mask in analysis.record.masks:
            if mask.node not in known:
                self.readable[analysis.axes.table(mask.ids)] = False
        self.exact = ~mixed_causes(analysis.record, analysis.axes)

    def live(self, linear: Linear, used: np.ndarray, gone: np.ndarray) -> np.ndarray:
        """`used` without the rows and columns that are gone."""
        groups, outs, ins = used.shape
        found = used.copy()
        if linear.out_ids is not None:
            found &= self.analysis.keep(linear.out_ids, gone).reshape(groups, outs, 1)
        if linear.ids is not None:
            found &= self.analysis.keep(linear.ids, gone).reshape(groups, 1, ins)
        return found

    def unread(self, gone: np.ndarray) -> np.ndarray:
        """Causes that some node sums over, and all of whose readers have zero weights for them."""
        return self.untouched(gone, reading=True) & self.readable & self.exact

    def unmade(self, gone: np.ndarray) -> np.ndarray:
        """Causes that linear nodes make, all of whose filters are zero."""
        return self.untouched(gone, reading=False) & self.exact

    def untouched(self, gone: np.ndarray, reading: bool) -> np.ndarray:
        """Causes on the inputs (else the outputs) of linear nodes for which no weight that is left differs from zero."""
        seen, used = np.zeros_like(gone), np.zeros_like(gone)
        for linear, weights in self.parts:
            ids = linear.ids if reading else linear.out_ids
            if ids is None:
                continue
            table = self.analysis.axes.table(ids)
            seen[table] = True
            used[table[self.live(linear, weights, gone).any(1 if reading else 2).ravel()]] = True
        return seen & ~used


def _silent(context: Context, constants: bool) -> np.ndarray:
    """Causes that are zero (or constant) wherever they are read, in one run; a channel without filters has one value for all inputs."""
    analysis = context.analysis
    data = context.required_data("the search for dead channels")
    statistics = channel_statistics(
        analysis, data, batch_size=1, threads=context.threads, most_batches=1
    )
    seen, loud = np.zeros(analysis.axes.causes + 1, bool), np.zeros(analysis.axes.causes + 1, bool)
    for mask in analysis.record.masks:
        place = (analysis.record.nodes[mask.node].input[mask.slot], mask.axis)
        table = analysis.axes.table(mask.ids)
        loud[table] |= not analysis.record.outermost(mask.node)
        if place not in statistics:
            continue
        stat = statistics[place]
        seen[table] = True
        loud[table[stat.variance > 1e-12 * stat.square if constants else stat.absolute > 0]] = True
    return seen & ~loud
