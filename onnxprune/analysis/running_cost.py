"""Costs at widths that change group by group.

`CostTable.total` evaluates the entire model; a search that changes one group at a time would take
quadratic time with it. Here a change costs what the group touches.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from onnxprune.analysis.groups import Analysis

# Sums of multiples of this part are exact in float64, in any order, up to LARGEST
_PART, LARGEST = 8, float(1 << 49)


class RunningCost:
    """Totals of some costs of a model, at first unpruned.

    Made by `RunningCost.of`.
    """

    def __init__(self, analysis: Analysis, costs: Collection[str]) -> None:
        axes = analysis.axes
        self._causes = analysis.causes
        self._removed = np.zeros(axes.causes + 1, bool)
        self._lengths = axes.lengths(self._removed)
        self._list_rows(analysis)
        terms = [analysis.costs.terms[cost] for cost in costs]
        width = max(index.shape[1] for _, index in terms)
        # missing axes have the length of the last entry, which is 1
        filled = len(self._lengths) - 1
        self._index = np.concatenate(
            [
                np.pad(index, ((0, 0), (0, width - index.shape[1])), constant_values=filled)
                for _, index in terms
            ]
        )
        self._factor = np.concatenate([factor for factor, _ in terms])
        self._cost = np.repeat(np.arange(len(terms)), [len(factor) for factor, _ in terms])
        self._values = self._factor * self._lengths[self._index].prod(1)
        self._sums = np.bincount(self._cost, self._values, len(terms))
        self._names = tuple(costs)
        term = np.repeat(np.arange(len(self._index)), width)
        self._terms = _Lists(self._index.ravel(), term, len(self._lengths))

    @staticmethod
    def of(analysis: Analysis, costs: Collection[str]) -> RunningCost | None:
        """Return the totals of some costs; None where they would not equal `CostTable.total`.

        Weights that several nodes use are stored once or several times, depending on all groups;
        sums of fractions, or of very large numbers, depend on their order.
        """
        table = analysis.costs
        if not costs or not set(costs) <= table.terms.keys():
            return None
        if table.variants and not {"params", "bytes"}.isdisjoint(costs):
            return None
        factors = np.concatenate([table.terms[cost][0] for cost in costs])
        if (factors * _PART % 1).any():
            return None
        running = RunningCost(analysis, costs)
        return running if running._sums.max(initial=0) < LARGEST else None

    def totals(self) -> dict[str, int]:
        """Return the costs by name."""
        return {name: round(s) for name, s in zip(self._names, self._sums.tolist(), strict=True)}

    def keep(self, group: str, channels: Sequence[int] | np.ndarray | None) -> None:
        """Set the kept channels of a group; None for all."""
        causes = self._causes[group]
        removed = np.full(len(causes), channels is not None)
        if channels is not None:
            removed[np.asarray(channels, np.int64)] = False
        changed = self._removed[causes] != removed
        causes, removed = causes[changed], removed[changed]
        if not len(causes):
            return
        self._removed[causes] = removed
        rows, owner = self._rows.gather(causes)
        rows, inverse = np.unique(rows, return_inverse=True)
        was_kept = self._hits[rows] == 0
        # a position is kept while none of its causes is removed
        np.add.at(self._hits, rows[inverse], np.where(removed, 1, -1)[owner])
        difference = (self._hits[rows] == 0).astype(np.int64) - was_kept
        np.add.at(self._lengths, self._axis[rows], difference)
        terms = np.unique(self._terms.gather(np.unique(self._axis[rows[difference != 0]]))[0])
        values = self._factor[terms] * self._lengths[self._index[terms]].prod(1)
        change = values - self._values[terms]
        self._sums += np.bincount(self._cost[terms], change, len(self._sums))
        self._values[terms] = values

    def _list_rows(self, analysis: Analysis) -> None:
        """List the positions of all axes: their axis, and the positions per cause."""
        axis, cause, row = [], [], []
        count = 0
        for rows, starts, numbers in analysis.axes.stacks:
            axis.append(np.repeat(numbers, np.diff([*starts, len(rows)])))
            cause.append(rows.ravel())
            row.append(np.repeat(np.arange(count, count + len(rows)), rows.shape[1]))
            count += len(rows)
        empty = np.zeros(0, np.int64)
        self._axis = np.concatenate([empty, *axis])
        self._hits = np.zeros(count, np.int64)
        causes, positions = np.concatenate([empty, *cause]), np.concatenate([empty, *row])
        # padding stands for frozen positions, which have no cause
        real = causes < analysis.axes.causes
        self._rows = _Lists(causes[real], positions[real], analysis.axes.causes)


def branch_costs(
    analysis: Analysis,
    cost: str,
    kept: Mapping[str, Sequence[int]],
    branches: Mapping[str, tuple[str, ...]],
) -> dict[str, float]:
    """Return what the removal of each branch saves, by its leading group.

    Parameters
    ----------
    kept
        Kept channels of the other groups.
    """
    running = RunningCost.of(analysis, [cost]) if branches else None
    if running is None:
        saved = {}
        for lead, branch in branches.items():
            others = {n: k for n, k in kept.items() if n not in branch}
            present = analysis.cost(others).as_dict()[cost]
            removed = analysis.cost(others | dict.fromkeys(branch, ())).as_dict()[cost]
            saved[lead] = float(present - removed)
        return saved
    for name, channels in kept.items():
        running.keep(name, channels)
    saved = {}
    for lead, branch in branches.items():
        for name in branch:
            running.keep(name, None)
        present = running.totals()[cost]
        for name in branch:
            running.keep(name, ())
        saved[lead] = float(present - running.totals()[cost])
        for name in branch:
            running.keep(name, kept.get(name))
    return saved


class _Lists:
    """Lists of numbers by key, in two arrays."""

    def __init__(self, keys: np.ndarray, values: np.ndarray, count: int) -> None:
        order = np.argsort(keys, kind="stable")
        self._values = values[order]
        self._ends = np.searchsorted(keys[order], np.arange(count + 1))

    def gather(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the values of keys in sequence, and the index of the key of each."""
        starts = self._ends[keys]
        counts = self._ends[keys + 1] - starts
        owner = np.repeat(np.arange(len(keys)), counts)
        # position in the own list, counted from its start
        within = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
        return self._values[starts[owner] + within], owner
