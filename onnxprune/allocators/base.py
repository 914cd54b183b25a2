"""From scores to a plan: steps down from each group's width, an order among them, and the shortest prefix that meets the budget."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import numpy as np

from onnxprune.allocators import ALLOCATORS
from onnxprune.analysis.blocks import whole_blocks
from onnxprune.analysis.groups import Analysis
from onnxprune.criteria.base import Context
from onnxprune.criteria.memo import Kind
from onnxprune.errors import TargetError, UsageError
from onnxprune.ir.nodes import label
from onnxprune.types import Plan, Scores

ROUNDS = 3  # of savings at the widths found; they settle
CLOSE = 0.97  # of a budget: nearer than that no step is passed over
PASSED_OVER = 8  # steps at most that save more than was missing

Measure = Callable[[Mapping[str, Sequence[int]]], float]


@dataclass(frozen=True)
class Constraints:
    """What a plan must keep to.

    budgets: cost ("macs", "params", "bytes", "activation_bytes", or one of `measures`) -> most that may remain; measures: further costs, name -> function
    of what each group keeps, such as a latency that is measured; the empty mapping stands for the original; savings: group -> what all of it costs in the
    unit that the budget is in, empty = as counted; round_to: kept counts are multiples of it; half_block: or half of it, which engines that compute in
    blocks of `round_to` are faster by;
    floor: least kept a group; max_fraction: most of a group that may go; ratios: glob over group names -> share that goes, fixed;
    dead: channels that go in any case, by group; blocks: whether branches may go whole, whatever `max_fraction` and `round_to` say.
    """

    budgets: Mapping[str, float] = field(default_factory=dict)
    round_to: int = 1
    half_block: bool = False
    floor: int = 1
    max_fraction: float = 0.9
    ratios: Mapping[str, float] = field(default_factory=dict)
    measures: Mapping[str, Measure] = field(default_factory=dict)
    dead: Mapping[str, np.ndarray] = field(default_factory=dict)
    savings: Mapping[str, float] = field(default_factory=dict)
    blocks: bool = False

    @property
    def measured(self) -> bool:
        """Whether a budget is on a cost that is measured, which takes time."""
        return not self.budgets.keys().isdisjoint(self.measures)


@dataclass(frozen=True)
class Step:
    """From `width` to `target` channels of a group, to none where its branch goes whole. scores: of the channels that go; energy: sums of squared scores left (before, after)."""

    group: str
    size: int
    width: int
    target: int
    scores: np.ndarray
    energy: tuple[float, float]


@dataclass(frozen=True)
class Ranking:
    """What an allocator says of each step: low values go first. per_saving: values are damage, to be divided by what the step saves."""

    values: np.ndarray
    per_saving: bool


Allocator = Callable[[Context, Scores, Sequence[Step]], Ranking]
_RANKING = Kind[Ranking]("ranking")
_BLOCKS = Kind[Mapping[str, tuple[str, ...]]]("removable branches")


def widths(size: int, constraints: Constraints, *, max_fraction: float | None = None) -> list[int]:
    """Kept counts that a group may have, from all of it downwards."""
    fraction = constraints.max_fraction if max_fraction is None else max_fraction
    least = max(constraints.floor, size - int(np.floor(size * fraction + 1e-9)), 1)
    step = constraints.round_to
    return [size] + [
        k
        for k in range(size - 1, least - 1, -1)
        if k % step == 0 or constraints.half_block and 2 * k == step
    ]


def allocate(name: str, context: Context, scores: Scores, constraints: Constraints) -> Plan:
    """The plan of the named allocator: as little as meets every budget.

    Raises
    ------
    TargetError
        The budget is below what can be cut; says what is the least and where the rest sits.
    UsageError
        Unknown allocator, or a ratio pattern that matches no group.
    """
    analysis = context.analysis
    ALLOCATORS.get(name)
    fixed = fixed_widths(analysis, scores, constraints)
    blocks = _blocks(context, constraints, fixed)
    steps, order = _steps(analysis, scores, constraints, fixed, blocks)
    start = {
        n: analysis.group(n).size - len(d) for n, d in constraints.dead.items() if n in order
    } | fixed
    search = _Search(analysis, constraints, steps, order, start, blocks)
    if constraints.budgets and (missed := search.missed(range(len(steps)))):
        raise unreachable(analysis, constraints, search.kept(range(len(steps))), missed)
    chosen: Sequence[int] = ()
    if constraints.budgets and search.missed(()):
        ranking = _ranking(name, context, scores, steps)
        chosen = (
            search.by_saving(ranking.values)
            if ranking.per_saving
            else search.prefix(ranking.values)
        )
    return analysis.plan(search.kept(chosen), allocate=name)


def _ranking(name: str, context: Context, scores: Scores, steps: Sequence[Step]) -> Ranking:
    """Return the allocator's ranking of the steps, computed once per context for all budgets."""
    inputs = hashlib.sha256(repr((name, [(s.group, s.width, s.target) for s in steps])).encode())
    for group in sorted(scores):
        inputs.update(np.ascontiguousarray(scores[group], np.float64).tobytes())
    allocator: Allocator = ALLOCATORS.get(name)
    return context.memoize(
        _RANKING, lambda: allocator(context, scores, steps), name, inputs.hexdigest()
    )


@dataclass(frozen=True)
class _Search:
    """Sets of steps and what they come to."""

    analysis: Analysis
    constraints: Constraints
    steps: Sequence[Step]
    order: Mapping[str, np.ndarray]
    start: Mapping[str, int]  # widths before any step, where they are not whole
    blocks: Mapping[str, tuple[str, ...]]  # groups that go with one that goes whole

    def kept(self, chosen: Iterable[int]) -> dict[str, tuple[int, ...]]:
        """Channels that stay."""
        target = dict(self.start)
        for i in chosen:
            step = self.steps[i]
            target[step.group] = min(step.target, target.get(step.group, step.size))
        kept = {
            g: tuple(sorted(self.order[g][len(self.order[g]) - k :].tolist()))
            for g, k in target.items()
            if k < len(self.order[g])
        }
        return kept | {g: () for lead, k in target.items() if not k for g in self.blocks[lead]}

    def missed(self, chosen: Iterable[int]) -> str | None:
        """The first budget that is not met."""
        return first_missed(self.analysis, self.constraints, self.kept(chosen))

    def prefix(self, keys: np.ndarray) -> list[int]:
        """The shortest prefix in ascending order of the keys that meets the budgets, less what it can do without.

        Where its last step saves far more than was missing, that step is passed over and the ones behind it are taken, if they can do it closer.
        """
        ranking = _in_order(self.steps, keys)
        barred: dict[str, int] = {}
        best: tuple[float, list[int]] = -1.0, []
        for _ in range(PASSED_OVER + 1):
            allowed = [i for i in ranking if i < barred.get(self.steps[i].group, len(self.steps))]
            if barred and self.missed(allowed):
                break
            low, high = 0, len(allowed)
            while low < high:
                middle = (low + high) // 2
                low, high = (
                    (low, middle) if not self.missed(allowed[:middle]) else (middle + 1, high)
                )
            chosen = self.relaxed(allowed[:low])
            if self.constraints.measured:
                return chosen
            best = max(best, (self.used(chosen), chosen), key=lambda found: found[0])
            if best[0] >= CLOSE or not low:
                break
            barred[self.steps[allowed[low - 1]].group] = allowed[low - 1]
        return best[1]

    def used(self, chosen: Iterable[int]) -> float:
        """Share of the tightest budget that is used."""
        counted = self.analysis.cost(self.kept(chosen)).as_dict()
        return max(
            (counted[cost] / max(limit, 1e-30) for cost, limit in self.constraints.budgets.items()),
            default=1.0,
        )

    def relaxed(self, chosen: list[int]) -> list[int]:
        """Give back steps from the last one on, where the budgets are met without them: the last one is often larger than what was missing.

        What cannot be given back now cannot be later, when more is kept: one pass, and the steps of a group come in its order.
        """
        if self.constraints.measured:
            return chosen
        kept = dict.fromkeys(chosen)
        needed: set[str] = set()
        for i in reversed(chosen):
            if self.steps[i].group in needed:
                continue
            del kept[i]
            if self.missed(kept):
                kept[i] = None
                needed.add(self.steps[i].group)
        return [i for i in chosen if i in kept]

    def by_saving(self, damage: np.ndarray) -> list[int]:
        """Steps by damage over saving. What a channel saves depends on the widths around it: taken between the whole and the last answer."""
        if self.constraints.savings:
            of_blocks = {
                lead: sum(self.constraints.savings.get(g, 0.0) for g in block)
                for lead, block in self.blocks.items()
            }
            return self.prefix(self.slopes(damage, self.constraints.savings, of_blocks))
        what = next(
            (c for c in self.constraints.budgets if c not in self.constraints.measures), "macs"
        )
        whole, whole_blocks = savings, of_blocks = self.savings(what, {})
        chosen: list[int] = []
        for _ in range(ROUNDS):
            chosen = self.prefix(self.slopes(damage, savings, of_blocks))
            at_plan, blocks_at_plan = self.savings(what, self.kept(chosen))
            savings = {n: (whole[n] + at_plan[n]) / 2 for n in whole}
            of_blocks = {n: (whole_blocks[n] + blocks_at_plan[n]) / 2 for n in whole_blocks}
        return chosen

    def savings(
        self, what: str, kept: Mapping[str, Sequence[int]]
    ) -> tuple[dict[str, float], dict[str, float]]:
        """What each group as a whole is worth, and each block, where the others are as kept."""
        kept = {n: k for n, k in kept.items() if k}
        of_groups = {
            n: float(v.sum()) * len(v) / len(kept.get(n, v))
            for n, v in self.analysis.savings(what, kept).items()
        }
        of_blocks = {}
        for lead, block in self.blocks.items():
            others = {n: k for n, k in kept.items() if n not in block}
            with_block, without = (
                self.analysis.cost(k).as_dict()[what]
                for k in (others, others | dict.fromkeys(block, ()))
            )
            of_blocks[lead] = float(with_block - without)
        return of_groups, of_blocks

    def slopes(
        self, damage: np.ndarray, savings: Mapping[str, float], of_blocks: Mapping[str, float]
    ) -> np.ndarray:
        """Damage over saving along the lower convex hull of each group's curve, so that a costly step is seen with the cheap ones behind it."""
        keys = np.empty(len(self.steps))
        groups: dict[str, list[int]] = {}
        for i, step in enumerate(self.steps):
            groups.setdefault(step.group, []).append(i)
        for name, members in groups.items():
            saved = np.array(
                [
                    savings[name]
                    * (self.steps[i].width - self.steps[i].target)
                    / self.steps[i].size
                    for i in members
                ]
            )
            if not self.steps[members[-1]].target:
                saved[-1] += of_blocks[name] - savings[name]
            keys[members] = _hull(np.maximum(saved, 1e-30), damage[members])
        return keys


def _hull(run: np.ndarray, rise: np.ndarray) -> np.ndarray:
    """Slope at each step of the greatest convex curve below the one with these steps: adjacent steps pooled until slopes ascend."""
    blocks: list[list[float]] = []
    for dx, dy in zip(run.tolist(), rise.tolist(), strict=False):
        blocks.append([dx, dy, 1])
        while len(blocks) > 1 and blocks[-2][1] * blocks[-1][0] >= blocks[-1][1] * blocks[-2][0]:
            dx, dy, n = blocks.pop()
            blocks[-1] = [blocks[-1][0] + dx, blocks[-1][1] + dy, blocks[-1][2] + n]
    return np.repeat([dy / dx for dx, dy, _ in blocks], [int(n) for _, _, n in blocks])


def ordered(scores: np.ndarray) -> np.ndarray:
    """Channels from the least to the most important; equal scores by index, the later ones first to go."""
    return np.lexsort((-np.arange(len(scores)), scores))


def _blocks(
    context: Context, constraints: Constraints, fixed: Mapping[str, int]
) -> dict[str, tuple[str, ...]]:
    """Groups that may go whole, with those that go with them; none where a recipe's floor or ratio stands against it."""
    if not constraints.blocks or constraints.floor > 1:
        return {}
    blocks = context.memoize(_BLOCKS, lambda: whole_blocks(context.analysis))
    return {lead: block for lead, block in blocks.items() if fixed.keys().isdisjoint(block)}


def _steps(
    analysis: Analysis,
    scores: Scores,
    constraints: Constraints,
    fixed: Mapping[str, int],
    blocks: Collection[str],
) -> tuple[list[Step], dict[str, np.ndarray]]:
    steps: list[Step] = []
    order = {}
    for group in analysis.groups:
        if group.name not in scores:
            continue
        values = np.asarray(scores[group.name], np.float64)
        if not np.isfinite(values).all():
            raise UsageError(
                "scores-not-finite",
                f"scores of group {group.name!r} are not finite; do the data or the weights hold NaN or infinity?",
            )
        dead = np.asarray(constraints.dead.get(group.name, ()), np.int64)
        rest = ordered(values)
        order[group.name] = np.concatenate([dead, rest[~np.isin(rest, dead)]])
        if group.name in fixed:
            continue
        ranked = values[order[group.name]]
        energies = np.concatenate([np.cumsum((ranked**2)[::-1])[::-1], [0.0]])
        chain = widths(group.size, constraints)
        chain = [
            group.size - len(dead),
            *(k for k in chain if k < group.size - len(dead)),
            *([0] if group.name in blocks else []),
        ]
        for width, target in zip(chain, chain[1:], strict=False):
            a, b = group.size - width, group.size - target
            steps.append(
                Step(
                    group.name,
                    group.size,
                    width,
                    target,
                    ranked[a:b],
                    (float(energies[a]), float(energies[b])),
                )
            )
    return steps, order


def _in_order(steps: Sequence[Step], keys: np.ndarray) -> list[int]:
    """Indices by priority; a step never comes before an earlier one of its group."""
    running: dict[str, float] = {}
    raised = np.empty(len(steps))
    for i, (step, value) in enumerate(zip(steps, keys, strict=False)):
        raised[i] = running[step.group] = max(running.get(step.group, -np.inf), float(value))
    return np.argsort(raised, kind="stable").tolist()


def fixed_widths(analysis: Analysis, scores: Scores, constraints: Constraints) -> dict[str, int]:
    """Widths that the recipe's ratios set."""
    found: dict[str, int] = {}
    for pattern, ratio in constraints.ratios.items():
        hit = [
            g
            for i, g in enumerate(analysis.groups)
            if fnmatchcase(g.name, pattern) or pattern == f"#{i}"
        ]
        if not hit:
            raise UsageError(
                "ratio-unmatched",
                f"ratio pattern {pattern!r} matches no group; see: onnxprune inspect MODEL",
            )
        for group in hit:
            want = group.size - ratio * group.size
            chain = widths(group.size, constraints, max_fraction=1.0)
            found[group.name] = (
                min(chain, key=lambda k: (abs(k - want), -k))
                if group.name in scores
                else group.size
            )
    return found


def first_missed(
    analysis: Analysis, constraints: Constraints, kept: Mapping[str, Sequence[int]]
) -> str | None:
    """The first budget that is not met, counted costs before measured ones, which take time."""
    counted = analysis.cost(kept).as_dict()
    for cost in sorted(constraints.budgets, key=lambda c: c in constraints.measures):
        if (
            counted[cost] if cost not in constraints.measures else constraints.measures[cost](kept)
        ) > constraints.budgets[cost]:
            return cost
    return None


def unreachable(
    analysis: Analysis, constraints: Constraints, kept: Mapping[str, Sequence[int]], cost: str
) -> TargetError:
    """Says what can be reached, and what stands in the way."""
    original, reached = (
        {**analysis.cost(k).as_dict(), **{c: m(k) for c, m in constraints.measures.items()}}
        for k in ({}, kept)
    )
    most, total = constraints.budgets[cost], original[cost] or 1
    lines = [
        f"target {cost} <= {most / total:.1%} cannot be met: {reached[cost] / total:.1%} is the least with floor={constraints.floor}, "
        f"max_fraction={constraints.max_fraction:g}, round_to={constraints.round_to}."
    ]
    before, after = analysis.node_costs(), analysis.node_costs(kept)
    stuck = sorted(
        (b for b, a in zip(before, after, strict=False) if a.macs == b.macs), key=lambda n: -n.macs
    )
    share = sum(n.macs for n in stuck) / max(original["macs"], 1)
    if stuck:
        reason = _what_holds(analysis, stuck[0].node)
        lines.append(
            f"  {share:.0%} of MACs sit in nodes that cannot shrink; largest: {stuck[0].node} ({reason}, {stuck[0].macs / max(original['macs'], 1):.0%})."
        )
    name = stuck[0].node if stuck else "TENSOR"
    lines.append(
        f"  Lower --floor or --round-to, raise --max-fraction, or see: onnxprune inspect MODEL --why {name}"
    )
    return TargetError("target-unreachable", "\n".join(lines))


def _what_holds(analysis: Analysis, name: str) -> str:
    """Why a node cannot shrink: the limits where one of its axes is free, else the reasons of its weights' axes, of its other tensors' where no weight has any."""
    record = analysis.record
    number = next(i for i, n in enumerate(record.nodes) if label(n) == name)
    if any(analysis.axes.live(a) for p in record.products if p.node == number for a in p.axes):
        return "its channels are free, but held by the limits above"
    weights = [u.tensor for u in record.uses if u.node == number]
    others = [
        t
        for t in (*record.nodes[number].input, *record.nodes[number].output)
        if t and t not in weights
    ]
    found = [
        dict.fromkeys(
            f.reason for t in tensors for f in analysis.why(t) if f.reason != "kernel position"
        )
        for tensors in (weights, others)
    ]
    return ", ".join(list(found[0] or found[1])[:2]) or "all its channels are frozen"
