"""Plan of a named allocator: the shortest sequence of steps that meets the budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onnxprune.allocators import ALLOCATORS
from onnxprune.allocators.base import Allocator, Constraints, Ranking, WidthStep, digest_inputs
from onnxprune.allocators.budgets import unreachable
from onnxprune.allocators.selection import StepSelection
from onnxprune.allocators.steps import build_steps, fixed_widths
from onnxprune.analysis.blocks import removable_branches
from onnxprune.criteria.base import Context
from onnxprune.criteria.memo import Kind
from onnxprune.types import Plan, Scores

_RANKING = Kind[Ranking]("ranking")
_BRANCHES = Kind[Mapping[str, tuple[str, ...]]]("removable branches")


def allocate(name: str, context: Context, scores: Scores, constraints: Constraints) -> Plan:
    """Return the plan of the named allocator that removes as little as meets every budget.

    Raises
    ------
    TargetError
        A budget is below the least reachable cost.
    UsageError
        The allocator is unknown, a ratio pattern matches no group, or a score is not finite.
    """
    ALLOCATORS.get(name)  # raises for an unknown name even if there is no budget
    selection = _build_selection(context, scores, constraints)
    analysis, steps = context.analysis, selection.steps
    every = range(len(steps))
    # checked first: if all steps together miss a budget, no order of them meets it
    if constraints.budgets and (missed := selection.missed(every)):
        raise unreachable(analysis, constraints, selection.kept(every), missed)
    chosen: Sequence[int] = ()
    # a ranking is costly, and fixed widths and dead channels alone may meet the budgets
    if constraints.budgets and selection.missed(()):
        ranking = _rank_steps(name, context, scores, steps)
        if ranking.per_saving:
            chosen = selection.choose_by_saving(ranking.values)
        else:
            chosen = selection.choose_prefix(ranking.values)
    return analysis.plan(selection.kept(chosen), allocate=name)


def predict_damage(
    name: str, context: Context, scores: Scores, constraints: Constraints, plan: Plan
) -> float | None:
    """Return the sum of the damages of a plan's steps; None if the allocator has only ranks."""
    steps = _build_selection(context, scores, constraints).steps
    ranking = _rank_steps(name, context, scores, steps)
    widths = {group: len(channels) for group, channels in plan.kept.items()}
    taken = [step.target >= widths.get(step.group, step.size) for step in steps]
    return float(ranking.values[taken].sum()) if ranking.per_saving else None


def least_kept(context: Context, constraints: Constraints) -> dict[str, tuple[int, ...]]:
    """Return the channels per group of the narrowest plan within the limits, whatever its budgets.

    Which channels of a group they are is arbitrary; their number is what costs depend on.
    """
    scores = {group.name: np.zeros(group.size) for group in context.analysis.groups}
    selection = _build_selection(context, scores, constraints)
    return selection.kept(range(len(selection.steps)))


def _build_selection(context: Context, scores: Scores, constraints: Constraints) -> StepSelection:
    """Return the steps that an allocator chooses from, none of them taken."""
    analysis = context.analysis
    fixed = fixed_widths(analysis, scores, constraints)
    branches = _find_branches(context, constraints, fixed)
    steps, order = build_steps(analysis, scores, constraints, fixed, branches)
    start = {
        group: analysis.group(group).size - len(dead)
        for group, dead in constraints.dead.items()
        if group in order
    }
    # last, as a width that the recipe gives holds for groups with dead channels too
    start.update(fixed)
    return StepSelection(analysis, constraints, steps, order, start, branches)


def _rank_steps(name: str, context: Context, scores: Scores, steps: Sequence[WidthStep]) -> Ranking:
    """Return the allocator's ranking of the steps, computed once per context for all budgets."""
    allocator: Allocator = ALLOCATORS.get(name)
    return context.memoize(
        _RANKING, lambda: allocator(context, scores, steps), name, digest_inputs(scores, steps)
    )


def _find_branches(
    context: Context, constraints: Constraints, fixed: Mapping[str, int]
) -> dict[str, tuple[str, ...]]:
    """Return the removable branches: leading group -> all groups removed with it.

    None if the recipe sets a floor; a branch with a group of fixed width is left out.
    """
    # a removed branch keeps no channel, which is below any floor
    if not constraints.blocks or constraints.floor > 1:
        return {}
    branches = context.memoize(_BRANCHES, lambda: removable_branches(context.analysis))
    return {lead: groups for lead, groups in branches.items() if fixed.keys().isdisjoint(groups)}
