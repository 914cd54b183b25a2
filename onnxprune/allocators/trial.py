"""Kept channels at given widths of groups, and the costs while one group at a time changes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxprune.allocators.base import Constraints
from onnxprune.allocators.budgets import first_missed
from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.running_cost import RunningCost

Branches = Mapping[str, tuple[str, ...]]  # leading group -> all groups that are removed with it


def kept_at(
    widths: Mapping[str, int], order: Mapping[str, np.ndarray], branches: Branches
) -> dict[str, tuple[int, ...]]:
    """Return the kept channels of every pruned group.

    Parameters
    ----------
    widths
        Kept channels per group; 0 removes its branch.
    order
        Group -> channels in the order of removal.
    """
    kept: dict[str, tuple[int, ...]] = {}
    for group, width in widths.items():
        last = order[group]
        if width < len(last):
            kept[group] = tuple(sorted(last[len(last) - width :].tolist()))
    for lead, width in widths.items():
        if not width:
            kept |= dict.fromkeys(branches[lead], ())
    return kept


class Trial:
    """Widths of groups that change one at a time, and whether the budgets are met.

    Parameters
    ----------
    widths
        Kept channels per group; 0 removes its branch.
    """

    def __init__(
        self,
        analysis: Analysis,
        constraints: Constraints,
        order: Mapping[str, np.ndarray],
        branches: Branches,
        widths: Mapping[str, int],
    ) -> None:
        self._analysis, self._constraints = analysis, constraints
        self._order, self._branches = order, branches
        self._widths: dict[str, int] = {}
        self._leads: dict[str, set[str]] = {}  # group -> leads that remove it with their branch
        self._running = RunningCost.of(analysis, constraints.budgets)
        for group, width in widths.items():
            self.set(group, width)

    def set(self, group: str, width: int) -> None:
        """Set the width of a group."""
        was_empty = self._widths.get(group) == 0
        self._widths[group] = width
        changed = {group: None}
        if was_empty != (width == 0):
            for other in self._branches[group]:
                leads = self._leads.setdefault(other, set())
                leads.symmetric_difference_update((group,))
                changed[other] = None
        if self._running is not None:
            for name in changed:
                self._running.keep(name, self._kept(name))

    def missed(self) -> bool:
        """Return whether a budget is exceeded."""
        if self._running is not None:
            totals, budgets = self._running.totals(), self._constraints.budgets
            return any(totals[cost] > most for cost, most in budgets.items())
        kept = kept_at(self._widths, self._order, self._branches)
        return first_missed(self._analysis, self._constraints, kept) is not None

    def _kept(self, group: str) -> np.ndarray | None:
        """Return the kept channels of a group, None for all."""
        if self._leads.get(group):
            return np.zeros(0, np.int64)
        if group not in self._widths:
            return None
        order, width = self._order[group], self._widths[group]
        return order[len(order) - width :] if width < len(order) else None
