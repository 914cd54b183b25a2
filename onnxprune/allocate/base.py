"""From scores to a plan: steps down from each group's width, an order among them, and the shortest prefix that meets the budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import numpy as np

from onnxprune.allocate import ALLOCATORS
from onnxprune.analysis.groups import Analysis
from onnxprune.errors import TargetError, UsageError
from onnxprune.types import Plan, Scores

Measure = Callable[[Mapping[str, Sequence[int]]], float]


@dataclass(frozen=True)
class Constraints:
    """What a plan must keep to.

    budgets: cost ("macs", "params", "bytes", "activation_bytes", or one of `measures`) -> most that may remain; measures: further costs, name -> function
    of what each group keeps, such as a latency that is measured; the empty mapping stands for the original; round_to: kept counts are multiples of it;
    floor: least kept a group; max_fraction: most of a group that may go; ratios: glob over group names -> share that goes, fixed.
    """

    budgets: Mapping[str, float] = field(default_factory=dict)
    round_to: int = 1
    floor: int = 1
    max_fraction: float = 0.9
    ratios: Mapping[str, float] = field(default_factory=dict)
    measures: Mapping[str, Measure] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """From `width` to `target` channels of a group. scores: of the channels that go; energy: sums of squared scores left (before, after)."""

    group: str
    size: int
    width: int
    target: int
    scores: np.ndarray
    energy: tuple[float, float]


Allocator = Callable[[Analysis, Sequence[Step], str], np.ndarray]


def widths(size: int, constraints: Constraints, *, max_fraction: float | None = None) -> list[int]:
    """Kept counts that a group may have, from all of it downwards."""
    fraction = constraints.max_fraction if max_fraction is None else max_fraction
    least = max(constraints.floor, size - int(np.floor(size * fraction + 1e-9)), 1)
    return [size] + [k for k in range(size - 1, least - 1, -1) if k % constraints.round_to == 0]


def allocate(name: str, analysis: Analysis, scores: Scores, constraints: Constraints) -> Plan:
    """The plan of the named allocator: as little as meets every budget.

    Raises
    ------
    TargetError
        The budget is below what can be cut; says what is the least and where the rest sits.
    UsageError
        Unknown allocator, or a ratio pattern that matches no group.
    """
    fixed = _fixed(analysis, scores, constraints)
    steps, order = _steps(analysis, scores, constraints, fixed)
    what = next((c for c in constraints.budgets if c not in constraints.measures), "macs")
    allocator: Allocator = ALLOCATORS.get(name)
    keys = np.asarray(allocator(analysis, steps, what), np.float64) if steps else np.zeros(0)
    ranking = _in_order(steps, keys)

    def kept(count: int) -> dict[str, tuple[int, ...]]:
        target = dict(fixed)
        for i in ranking[:count]:
            target[steps[i].group] = min(steps[i].target, target.get(steps[i].group, steps[i].size))
        return {g: tuple(sorted(order[g][len(order[g]) - k :].tolist())) for g, k in target.items() if k < len(order[g])}

    def fits(count: int) -> bool:
        return not _missed(analysis, constraints, kept(count))

    low, high = 0, len(steps)
    if constraints.budgets and not fits(high):
        raise _unreachable(analysis, constraints, kept(high))
    while low < high and constraints.budgets:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle + 1, high)
    chosen = kept(low if constraints.budgets else 0)
    sizes = {g: analysis.group(g).size for g in chosen}
    return Plan(analysis.digest, chosen, sizes, {"allocate": name}, analysis.options)


def ordered(scores: np.ndarray) -> np.ndarray:
    """Channels from the least to the most important; equal scores by index, the later ones first to go."""
    return np.lexsort((-np.arange(len(scores)), scores))


def _steps(analysis: Analysis, scores: Scores, constraints: Constraints, fixed: Mapping[str, int]) -> tuple[list[Step], dict[str, np.ndarray]]:
    steps: list[Step] = []
    order = {}
    for group in analysis.groups:
        if group.name not in scores:
            continue
        values = np.asarray(scores[group.name], np.float64)
        if not np.isfinite(values).all():
            raise UsageError("scores-not-finite", f"scores of group {group.name!r} are not finite; do the data or the weights hold NaN or infinity?")
        order[group.name] = ordered(values)
        if group.name in fixed:
            continue
        ranked = values[order[group.name]]
        energies = np.concatenate([np.cumsum((ranked**2)[::-1])[::-1], [0.0]])
        chain = widths(group.size, constraints)
        for width, target in zip(chain, chain[1:]):
            a, b = group.size - width, group.size - target
            steps.append(Step(group.name, group.size, width, target, ranked[a:b], (float(energies[a]), float(energies[b]))))
    return steps, order


def _in_order(steps: Sequence[Step], keys: np.ndarray) -> list[int]:
    """Indices by priority; a step never comes before an earlier one of its group."""
    running: dict[str, float] = {}
    raised = np.empty(len(steps))
    for i, (step, value) in enumerate(zip(steps, keys)):
        raised[i] = running[step.group] = max(running.get(step.group, -np.inf), float(value))
    return np.argsort(raised, kind="stable").tolist()


def _fixed(analysis: Analysis, scores: Scores, constraints: Constraints) -> dict[str, int]:
    """Widths that the recipe's ratios set."""
    found = {}
    for pattern, ratio in constraints.ratios.items():
        hit = [g for g in analysis.groups if fnmatchcase(g.name, pattern)]
        if not hit:
            raise UsageError("ratio-unmatched", f"ratio pattern {pattern!r} matches no group; see: onnxprune inspect MODEL")
        for group in hit:
            want = group.size - ratio * group.size
            chain = widths(group.size, constraints, max_fraction=1.0)
            found[group.name] = min(chain, key=lambda k: (abs(k - want), -k)) if group.name in scores else group.size
    return found


def _missed(analysis: Analysis, constraints: Constraints, kept: Mapping[str, Sequence[int]]) -> str | None:
    """The first budget that is not met, counted costs before measured ones, which take time."""
    counted = analysis.cost(kept).as_dict()
    for cost in sorted(constraints.budgets, key=lambda c: c in constraints.measures):
        if (counted[cost] if cost not in constraints.measures else constraints.measures[cost](kept)) > constraints.budgets[cost]:
            return cost
    return None


def _unreachable(analysis: Analysis, constraints: Constraints, kept: Mapping[str, Sequence[int]]) -> TargetError:
    """Says what can be reached, and what stands in the way."""
    original, reached = ({**analysis.cost(k).as_dict(), **{c: m(k) for c, m in constraints.measures.items()}} for k in ({}, kept))
    cost = next(c for c, most in constraints.budgets.items() if reached[c] > most)
    most, total = constraints.budgets[cost], original[cost] or 1
    lines = [
        f"target {cost} <= {most / total:.1%} cannot be met: {reached[cost] / total:.1%} is the least with floor={constraints.floor}, "
        f"max_fraction={constraints.max_fraction:g}, round_to={constraints.round_to}."
    ]
    before, after = analysis.node_costs(), analysis.node_costs(kept)
    stuck = sorted((b for b, a in zip(before, after) if a.macs == b.macs), key=lambda n: -n.macs)
    share = sum(n.macs for n in stuck) / max(original["macs"], 1)
    if stuck:
        reason = next((f.reason for f in analysis.frozen if f.node == stuck[0].node), "all its channels are frozen")
        lines.append(f"  {share:.0%} of MACs sit in nodes that cannot shrink; largest: {stuck[0].node} ({reason}, {stuck[0].macs / max(original['macs'], 1):.0%}).")
    name = stuck[0].node if stuck else "TENSOR"
    lines.append(f"  Lower --floor or --round-to, raise --max-fraction, or see: onnxprune inspect MODEL --why {name}")
    return TargetError("target-unreachable", "\n".join(lines))
