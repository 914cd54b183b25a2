"""Performance-aware global channel pruning: group after group, the largest share that keeps every task within its tolerance.

Source: Ye et al. 2023, "Performance-aware Approximation of Global Channel Pruning for Multitask CNNs", and METHODS.md section 5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from onnxprune.errors import UsageError
from onnxprune.model.runtime import Session
from onnxprune.search.base import Kept, Search, keep_best, settings
from onnxprune.search.journal import key
from onnxprune.search.refitted import Refitted
from onnxprune.search.suffix import Suffix
from onnxprune.search.tasks import HeadLosses, Losses, OwnLosses, summed
from onnxprune.types import Plan, Scores

RATIOS = tuple(round(0.05 * i, 2) for i in range(1, 20))
PROBE_RATIO = 0.3  # of a trial cut of each group alone, for the order
CRITERION = "l2"
Values = Mapping[str, float]


@dataclass(frozen=True)
class Settings:
    """initial_rate: tolerance of the first group, relative; initial_thres: what the tolerances of all groups compound to, times the first losses;
    exp: tolerances change geometrically so that they do, else all are equal; topk: share of the groups that is really cut a round, the cheapest ones;
    round: at most so many rounds; losses: module:function, "" = label-free distances of the output heads; sequential: what this method does, no effect;
    relax: factor on initial_rate after a round in which no group could shrink, 1 = the search ends there, as published; refit: losses are those of a network
    whose weights were refitted to the cut in closed form, as a repair leaves it; as published they are the cut network's as it is."""

    initial_rate: float = 0.06
    initial_thres: float = 6.0
    topk: float = 0.8
    exp: bool = False
    round: int = 20
    losses: str = ""
    sequential: bool = True
    relax: float = 1.5
    refit: bool = False

    def __post_init__(self) -> None:
        if self.initial_rate <= 0 or self.initial_thres <= 1 or not 0 < self.topk <= 1 or self.round < 1 or self.relax < 1:
            raise UsageError(
                "method-option",
                f"pagcp: initial_rate {self.initial_rate:g} must be above 0, initial_thres {self.initial_thres:g} above 1, topk {self.topk:g} in (0, 1], "
                f"round {self.round} and relax {self.relax:g} at least 1",
            )


@dataclass(frozen=True)
class Accepted:
    """One accepted step: share of the group that goes, tolerance that it was given, losses before (the largest so far) and after, MACs that it saved."""

    group: str
    kept: tuple[int, ...]
    tolerance: float
    base: Values
    losses: Values
    saved_macs: float

    @property
    def cost(self) -> float:
        """Loss increase, relative and of the worst task, a MAC saved."""
        return max(0.0, *(self.losses[t] / self.base[t] - 1 for t in self.base)) / max(self.saved_macs, 1.0)


def decay(count: int, initial_rate: float = 0.06, initial_thres: float = 6.0) -> float:
    """The factor from one tolerance to the next: the product over i < count of (1 + initial_rate * factor^i) is initial_thres.

    Above 1 for few groups: later ones are then given more. 1.0 where one group or none is left to choose for.
    """
    from scipy.optimize import brentq  # type: ignore[import-untyped, unused-ignore]

    def excess(log_factor: float) -> float:
        with np.errstate(over="ignore"):
            return float(np.log1p(initial_rate * np.exp(log_factor * np.arange(count))).sum() - np.log(initial_thres))

    if count < 2 or np.log1p(initial_rate) >= np.log(initial_thres):
        return 1.0
    low, high = -1.0, 1.0
    while excess(low) > 0:
        low *= 2
    while excess(high) < 0:
        high *= 2
    return float(np.exp(brentq(excess, low, high, xtol=1e-13)))


def pagcp(search: Search) -> Plan:
    """The plan of as many rounds as the budget needs.

    Raises
    ------
    TargetError
        The rounds end above the budget.

    Notes
    -----
    What a task may lose in a step is checked at every accepted step, against the tolerance of its round. The published system tunes between rounds, which
    brings losses down again; here nothing does, so after a round in which no group has a share that its tolerance allows, the next round's are `relax` times
    as large. The plan says the `rate` of every round.
    """
    chosen = settings(Settings, search.options, "pagcp")
    scores = search.scores(CRITERION)
    kept = search.fixed(scores)
    if search.met(kept):
        return search.plan(kept, method="pagcp")
    gate = _Gate(search, chosen)
    free = [g.name for g in search.analysis.groups if g.name in scores and g.name not in kept]
    rates: list[float] = []
    for number in range(chosen.round):
        rates.append(chosen.initial_rate)
        steps = visit(search, gate, chosen, scores, kept, free, number)
        for step in cheapest(steps, chosen.topk) if steps else ():
            kept[step.group] = step.kept
            if search.met(kept):
                kept[step.group] = _relaxed(search, scores, kept, step)
                losses = gate.losses(kept, step.group, kept[step.group])
                return search.plan(kept, method="pagcp", rounds=number + 1, rate=rates, tasks={t: [gate.start[t], losses[t]] for t in losses})
        if not steps and chosen.relax == 1:
            break
        if not steps:
            chosen = replace(chosen, initial_rate=chosen.initial_rate * chosen.relax)
    raise search.missed(kept, f"pagcp found no more after {len(rates)} rounds: raise round, initial_rate, initial_thres or relax (--method-option)")


def visit(search: Search, gate: _Gate, chosen: Settings, scores: Scores, kept: Kept, free: Sequence[str], number: int) -> list[Accepted]:
    """One pass over the groups, on the network as it is cut so far: what each was allowed."""
    done, accepted = dict(kept), []
    base = dict(gate.base(kept))
    order = _order(search, scores, kept, free)
    factor = decay(len(order), chosen.initial_rate, chosen.initial_thres) if chosen.exp else 1.0
    tolerance = chosen.initial_rate
    for place, group in enumerate(order):
        search.tell(f"pagcp round {number + 1}, group {place + 1} of {len(order)}")
        found = _largest(search, gate, scores, done, group, {t: v * (1 + tolerance) for t, v in base.items()})
        if found is None:
            continue
        less, losses = found
        before = search.analysis.cost(done).macs
        done[group] = less
        accepted.append(Accepted(group, less, tolerance, dict(base), losses, before - search.analysis.cost(done).macs))
        base = {t: max(v, losses[t]) for t, v in base.items()}
        tolerance *= factor
    return accepted


def cheapest(steps: Sequence[Accepted], topk: float) -> list[Accepted]:
    """The cheapest share of the steps, in the order in which they were made; at least one."""
    count = max(1, round(topk * len(steps)))
    chosen = {s.group for s in sorted(steps, key=lambda s: s.cost)[:count]}
    return [s for s in steps if s.group in chosen]


def _order(search: Search, scores: Scores, kept: Kept, free: Sequence[str]) -> list[str]:
    """Groups by the MACs that a trial cut of each alone saves, descending; those that can shrink no more left out."""
    whole, saved = search.analysis.cost(kept).macs, {}
    for group in free:
        widths = _widths(search, group, kept)
        if widths:
            here = _count(search, kept, group)
            trial = min(widths, key=lambda k: abs(k - here * (1 - PROBE_RATIO)))
            saved[group] = whole - search.analysis.cost({**kept, group: keep_best(_left(scores, kept, group), trial)}).macs
    return sorted(saved, key=lambda g: -saved[g])


def _largest(search: Search, gate: _Gate, scores: Scores, kept: Kept, group: str, bounds: Values) -> tuple[tuple[int, ...], Values] | None:
    """The fewest channels with every loss within its bound, by bisection over the ratios, and the losses with them; None where no ratio is."""
    widths, found = _widths(search, group, kept), None
    low, high = 0, len(widths)  # widths descend; those below `low` are within the bounds
    while low < high:
        middle = (low + high) // 2
        trial = keep_best(_left(scores, kept, group), widths[middle])
        losses = gate.within(kept, group, trial, bounds)
        if losses is not None:
            found, low = (trial, losses), middle + 1
        else:
            high = middle
    return found


def _widths(search: Search, group: str, kept: Kept) -> list[int]:
    """Kept counts that the ratios of what is left come to, descending."""
    size, here = search.analysis.group(group).size, _count(search, kept, group)
    found = {search.width_near(size, 1 - here * (1 - ratio) / size) for ratio in RATIOS}
    return sorted((w for w in found if w < here), reverse=True)


def _count(search: Search, kept: Kept, group: str) -> int:
    return len(kept[group]) if group in kept else search.analysis.group(group).size


def _left(scores: Scores, kept: Kept, group: str) -> np.ndarray:
    """Scores with what is gone already at the bottom."""
    values = np.asarray(scores[group], np.float64)
    if group not in kept:
        return values
    masked = np.full(len(values), -np.inf)
    masked[list(kept[group])] = values[list(kept[group])]
    return masked


def _relaxed(search: Search, scores: Scores, kept: Kept, step: Accepted) -> tuple[int, ...]:
    """The most channels of the last group with which the budget is still met."""
    without = {n: k for n, k in kept.items() if n != step.group}
    for width in sorted({len(step.kept), *(w for w in _widths(search, step.group, without) if w > len(step.kept))}, reverse=True):
        trial = keep_best(_left(scores, kept, step.group), width) if width <= len(step.kept) else _wider(scores, step, width)
        if search.met({**kept, step.group: trial}):
            return trial
    return step.kept


def _wider(scores: Scores, step: Accepted, width: int) -> tuple[int, ...]:
    """The step's channels and the best of the others."""
    values = np.asarray(scores[step.group], np.float64).copy()
    values[list(step.kept)] = np.inf
    return tuple(sorted(np.argsort(-values, kind="stable")[:width].tolist()))


@dataclass
class _Gate:
    """Losses on the gate data, remembered. start: of the model as it came."""

    search: Search
    settings: Settings
    start: Values = field(init=False)

    def __post_init__(self) -> None:
        context = self.search.context
        data = context.gate_data("method pagcp")
        batches = list(data.batches(context.batch_size))
        session = Session(context.analysis.model, threads=context.threads)
        expected = [session.run(b) for b in batches]
        self.of: Losses
        if self.settings.losses:
            counts = [max((len(a) for a in b.values() if a.ndim), default=1) for b in batches]
            self.of = OwnLosses(self.settings.losses, np.split(np.asarray(data.chosen), np.cumsum(counts)[:-1]))
        else:
            self.of = HeadLosses(expected)
        changed = Refitted.of(context, "method pagcp") if self.settings.refit else None
        self.suffix = Suffix(context.analysis, batches, self.of, context.threads, changed)
        self.start = summed(self.of, expected)
        if bad := [t for t, v in self.start.items() if not v > 0]:
            raise UsageError("losses-value", f"task {bad[0]!r} has loss {self.start[bad[0]]:g} before anything is cut; tolerances are relative to it: it must be above 0")

    def base(self, kept: Kept) -> Values:
        """Losses as cut so far."""
        if not kept:
            return self.start
        group = next(iter(kept))
        return self.losses(kept, group, kept[group])

    def losses(self, kept: Kept, group: str, trial: tuple[int, ...]) -> Values:
        """Of all tasks."""
        found = self.within(kept, group, trial, None)
        assert found is not None  # without bounds nothing stops early
        return found

    def within(self, kept: Kept, group: str, trial: tuple[int, ...], bounds: Values | None) -> Values | None:
        """Losses with one group reduced further; None where one exceeds its bound."""

        def measured() -> Mapping[str, Values | None]:
            return {"losses": self.suffix(kept, group, trial, bounds)}

        name = key(self.settings.refit, {n: list(k) for n, k in kept.items() if n != group}, group, list(trial), dict(bounds or {}))
        found: Values | None = self.search.journal.recall(name, measured)["losses"]
        return found if found is None or not bounds or all(found[t] <= bounds[t] for t in found) else None
