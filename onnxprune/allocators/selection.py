"""Selection of the steps that meet the budgets at the least damage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.allocators.base import Constraints, WidthStep
from onnxprune.allocators.budgets import first_missed
from onnxprune.allocators.trial import Trial, kept_at
from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.running_cost import branch_costs

# Evaluations of the savings at the chosen widths. They settle: what a channel saves depends on the
# widths of its neighbors, which change little after the first round.
ROUNDS = 3
CLOSE = 0.97  # share of a budget that is close enough to stop looking for a closer plan
MAX_SKIPPED = 8  # steps that are skipped because they save more than was missing
_TINY = 1e-30


@dataclass(frozen=True)
class StepSelection:
    """Choice among the steps of all groups.

    Attributes
    ----------
    steps
        Steps of all groups; those of one group from wide to narrow.
    order
        Group -> channels in the order of removal.
    start
        Group -> width before any step, for groups that do not start unpruned.
    branches
        Group whose last step removes a branch -> all groups that are removed with it.
    """

    analysis: Analysis
    constraints: Constraints
    steps: Sequence[WidthStep]
    order: Mapping[str, np.ndarray]
    start: Mapping[str, int]
    branches: Mapping[str, tuple[str, ...]]

    def kept(self, chosen: Iterable[int]) -> dict[str, tuple[int, ...]]:
        """Return the kept channels of every pruned group after the chosen steps."""
        widths = dict(self.start)
        for i in chosen:
            step = self.steps[i]
            widths[step.group] = min(step.target, widths.get(step.group, step.size))
        return kept_at(widths, self.order, self.branches)

    def missed(self, chosen: Iterable[int]) -> str | None:
        """Return the first budget that is exceeded after the chosen steps; None if none is."""
        return first_missed(self.analysis, self.constraints, self.kept(chosen))

    def choose_prefix(self, keys: np.ndarray) -> list[int]:
        """Return the shortest prefix that meets the budgets, without the steps it does not need.

        If the last step of the prefix saves far more than was missing, it is skipped and the steps
        after it are tried; the plan closest to the budgets is returned.

        Parameters
        ----------
        keys
            (steps,) order of the steps, ascending.
        """
        ranking = _sort_steps(self.steps, keys)
        # group -> first of its steps that may not be taken
        barred: dict[str, int] = {}
        best: tuple[float, list[int]] = -1.0, []
        for _ in range(MAX_SKIPPED + 1):
            allowed = [i for i in ranking if i < barred.get(self.steps[i].group, len(self.steps))]
            if barred and self.missed(allowed):
                break
            length = self._bisect_length(allowed)
            chosen = self._drop_unneeded(allowed[:length])
            if self.constraints.measured:  # every further plan costs a measurement
                return chosen
            best = max(best, (self._use(chosen), chosen), key=lambda plan: plan[0])
            if best[0] >= CLOSE or not length:
                break
            last = allowed[length - 1]
            barred[self.steps[last].group] = last
        return best[1]

    def _bisect_length(self, ranking: Sequence[int]) -> int:
        """Return the least number of leading steps that meets the budgets."""
        low, high = 0, len(ranking)
        while low < high:
            middle = (low + high) // 2
            if self.missed(ranking[:middle]):
                low = middle + 1
            else:
                high = middle
        return low

    def _use(self, chosen: Iterable[int]) -> float:
        """Return the used share of the tightest budget."""
        counted = self.analysis.cost(self.kept(chosen)).as_dict()
        budgets = self.constraints.budgets.items()
        return max((counted[cost] / max(limit, _TINY) for cost, limit in budgets), default=1.0)

    def _drop_unneeded(self, chosen: list[int]) -> list[int]:
        """Drop steps, the last first, without which the budgets are still met.

        One pass is enough: a step that is needed now is also needed later, when more is kept, and
        the steps of a group are dropped from its last one on.
        """
        if self.constraints.measured:
            return chosen
        widths = {group: [width] for group, width in self.start.items()}
        for i in chosen:
            step = self.steps[i]
            of_group = widths.setdefault(step.group, [step.size])
            of_group.append(min(step.target, of_group[-1]))
        trial = Trial(
            self.analysis,
            self.constraints,
            self.order,
            self.branches,
            {group: of_group[-1] for group, of_group in widths.items()},
        )
        remaining, needed = set(chosen), set[str]()
        for i in reversed(chosen):
            group = self.steps[i].group
            if group in needed:
                continue
            narrow, wide = widths[group].pop(), widths[group][-1]
            trial.set(group, wide)
            if trial.missed():
                trial.set(group, narrow)
                needed.add(group)
            else:
                remaining.remove(i)
        return [i for i in chosen if i in remaining]

    def choose_by_saving(self, damage: np.ndarray) -> list[int]:
        """Return steps in ascending order of damage per saving.

        The saving of a channel depends on the widths of the groups around it: it is the mean of its
        values in the original and in the last plan.

        Parameters
        ----------
        damage
            (steps,) damage per step.
        """
        if self.constraints.savings:
            of_branches = {
                lead: sum(self.constraints.savings.get(g, 0.0) for g in groups)
                for lead, groups in self.branches.items()
            }
            gradients = self._compute_gradients(damage, self.constraints.savings, of_branches)
            return self.choose_prefix(gradients)
        counted = (c for c in self.constraints.budgets if c not in self.constraints.measures)
        cost = next(counted, "macs")
        original, original_branches = savings, of_branches = self._compute_savings(cost, {})
        chosen: list[int] = []
        for _ in range(ROUNDS):
            chosen = self.choose_prefix(self._compute_gradients(damage, savings, of_branches))
            planned, planned_branches = self._compute_savings(cost, self.kept(chosen))
            savings = {n: (original[n] + planned[n]) / 2 for n in original}
            of_branches = {
                n: (original_branches[n] + planned_branches[n]) / 2 for n in original_branches
            }
        return chosen

    def _compute_savings(
        self, cost: str, kept: Mapping[str, Sequence[int]]
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Return the cost of all channels of each group, and of each branch.

        Parameters
        ----------
        kept
            Kept channels of the other groups.
        """
        kept = {name: channels for name, channels in kept.items() if channels}
        of_groups = {
            # values cover the kept channels; extrapolated to all
            name: float(values.sum()) * len(values) / len(kept.get(name, values))
            for name, values in self.analysis.savings(cost, kept).items()
        }
        return of_groups, branch_costs(self.analysis, cost, kept, self.branches)

    def _compute_gradients(
        self, damage: np.ndarray, savings: Mapping[str, float], of_branches: Mapping[str, float]
    ) -> np.ndarray:
        """Return damage per saving along the lower convex hull of each group's curve.

        On the hull a costly step shares its damage with the cheap steps after it, which would
        otherwise never be reached.
        """
        keys = np.empty(len(self.steps))
        members: dict[str, list[int]] = {}
        for i, step in enumerate(self.steps):
            members.setdefault(step.group, []).append(i)
        for name, indices in members.items():
            steps = [self.steps[i] for i in indices]
            saved = np.array([savings[name] * (s.width - s.target) / s.size for s in steps])
            if not steps[-1].target:
                # the last step removes the whole branch, not only the last channels
                saved[-1] += of_branches[name] - savings[name]
            keys[indices] = _compute_hull_gradients(np.maximum(saved, _TINY), damage[indices])
        return keys


def _compute_hull_gradients(run: np.ndarray, rise: np.ndarray) -> np.ndarray:
    """Return the gradient at each step of the greatest convex curve below a piecewise linear one.

    Adjacent steps are pooled until gradients ascend (pool adjacent violators).

    Parameters
    ----------
    run, rise
        (steps,) differences of the curve; run > 0.
    """
    blocks: list[tuple[float, float, int]] = []
    for dx, dy in zip(run.tolist(), rise.tolist(), strict=True):
        blocks.append((dx, dy, 1))
        while len(blocks) > 1 and blocks[-2][1] * blocks[-1][0] >= blocks[-1][1] * blocks[-2][0]:
            dx, dy, n = blocks.pop()
            left_dx, left_dy, left_n = blocks.pop()
            blocks.append((left_dx + dx, left_dy + dy, left_n + n))
    return np.repeat([dy / dx for dx, dy, _ in blocks], [n for _, _, n in blocks])


def _sort_steps(steps: Sequence[WidthStep], keys: np.ndarray) -> list[int]:
    """Return step indices in ascending order of keys; the steps of a group keep their order."""
    highest: dict[str, float] = {}
    raised = np.empty(len(steps))
    for i, (step, value) in enumerate(zip(steps, keys, strict=True)):
        raised[i] = highest[step.group] = max(highest.get(step.group, -np.inf), float(value))
    return np.argsort(raised, kind="stable").tolist()
