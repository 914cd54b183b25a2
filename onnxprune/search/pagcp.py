"""Performance-aware global channel pruning: group after group, the largest share that keeps every task within its tolerance.

Source: Ye et al. 2023, "Performance-aware Approximation of Global Channel Pruning for Multitask CNNs", and METHODS.md section 5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from onnxprune.allocators.base import widths
from onnxprune.errors import UsageError
from onnxprune.ir.runtime import Session
from onnxprune.search.base import Kept, Search, keep_best, relaxed, remaining, settings
from onnxprune.search.journal import key
from onnxprune.search.refitted import Refitted
from onnxprune.search.suffix import Suffix
from onnxprune.search.tasks import HeadLosses, Losses, OwnLosses, summed
from onnxprune.types import Plan, Scores

RATIOS = tuple(round(0.05 * i, 2) for i in range(1, 20))
PROBE_RATIO = 0.3  # of a trial cut of each group alone, for the order
Values = Mapping[str, float]


@dataclass(frozen=True)
class Settings:
    """initial_rate: tolerance of the first group, relative; initial_thres: what the tolerances of all groups compound to, times the first losses;
    exp: tolerances change geometrically so that they do, else all are equal; topk: share of the groups that is really cut a round, the cheapest ones;
    round: at most so many rounds; losses: module:function, "" = label-free distances of the output heads; sequential: what this method does, no effect;
    relax: factor on initial_rate after a round that saved less than the rounds left need each, 1 = none: the search ends where no group can shrink; refit:
    losses are those of a network whose weights were refitted to the cut in closed form, as a repair leaves it, and channels go by reconstruction error, not
    by norms; proportional: a step's tolerance grows with what it saves, initial_rate being for what a trial cut of a group saves on average.
    As published: initial_rate 0.06, topk 0.8, relax 1, and neither refit nor proportional.
    """

    initial_rate: float = 0.01
    initial_thres: float = 6.0
    topk: float = 1.0
    exp: bool = False
    round: int = 30
    losses: str = ""
    sequential: bool = True
    relax: float = 1.5
    refit: bool = True
    proportional: bool = True

    def __post_init__(self) -> None:
        if (
            self.initial_rate <= 0
            or self.initial_thres <= 1
            or not 0 < self.topk <= 1
            or self.round < 1
            or self.relax < 1
        ):
            raise UsageError(
                "method-option",
                f"pagcp: initial_rate {self.initial_rate:g} must be above 0, initial_thres {self.initial_thres:g} above 1, topk {self.topk:g} in (0, 1], "
                f"round {self.round} and relax {self.relax:g} at least 1",
            )


@dataclass(frozen=True)
class Accepted:
    """One accepted step: what stays of the group, tolerance that it was given, losses before (the largest so far) and after, what it saved."""

    group: str
    kept: tuple[int, ...]
    tolerance: float
    base: Values
    losses: Values
    saved: float

    @property
    def cost(self) -> float:
        """Loss increase, relative and of the worst task, a MAC (or what else the budget is in) saved."""
        return max(0.0, *(self.losses[t] / self.base[t] - 1 for t in self.base)) / max(
            self.saved, 1.0
        )


def decay(count: int, initial_rate: float = 0.06, initial_thres: float = 6.0) -> float:
    """The factor from one tolerance to the next: the product over i < count of (1 + initial_rate * factor^i) is initial_thres.

    Above 1 for few groups: later ones are then given more. 1.0 where one group or none is left to choose for.
    """
    from scipy.optimize import brentq

    def excess(log_factor: float) -> float:
        with np.errstate(over="ignore"):
            return float(
                np.log1p(initial_rate * np.exp(log_factor * np.arange(count))).sum()
                - np.log(initial_thres)
            )

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
    What a task may lose in a step is checked at every accepted step. The published system tunes between rounds, which brings losses down again; here
    nothing does, so after a round that saves too little to meet the budget in the rounds left, the next round's tolerances are `relax` times as large. The
    plan says the `rate` of every round. For the same reason steps are small, and what a group may cost is in proportion to what it saves: with one tolerance
    for all, the groups visited first take all that the outputs bear, whatever that saves.
    """
    chosen = settings(Settings, search.options, "pagcp")
    scores = search.own_scores(chosen.refit)
    kept = search.fixed(scores)
    if search.met(kept):
        return search.plan(kept, method="pagcp")
    gate = _Gate(search, chosen)
    free = [g.name for g in search.analysis.groups if g.name in scores and g.name not in kept]
    rates: list[float] = []
    for number in range(chosen.round):
        rates.append(chosen.initial_rate)
        before, steps = dict(kept), visit(search, gate, chosen, scores, kept, free, number)
        for step in cheapest(steps, chosen.topk) if steps else ():
            kept[step.group] = step.kept
            if search.met(kept):
                kept = _give_back(search, scores, kept, step, steps, free)
                losses = gate.base(kept)
                return search.plan(
                    kept,
                    method="pagcp",
                    rounds=number + 1,
                    rate=rates,
                    tasks={t: [gate.start[t], losses[t]] for t in losses},
                )
        if not steps and (chosen.relax == 1 or not any(_widths(search, g, kept) for g in free)):
            break
        if not steps or search.behind(before, kept, chosen.round - number):
            chosen = replace(chosen, initial_rate=chosen.initial_rate * chosen.relax)
    tolerances = "initial_rate, initial_thres or relax" if chosen.exp else "initial_rate or relax"
    raise search.missed(
        kept,
        f"pagcp found no more after {len(rates)} rounds: raise round, {tolerances} (--method-option)",
    )


def _give_back(
    search: Search,
    scores: Scores,
    kept: Kept,
    last: Accepted,
    steps: Sequence[Accepted],
    free: Sequence[str],
) -> Kept:
    """Give channels back until the budget is full: to the last step's group, then to the dearest steps'."""
    dear = sorted(steps, key=lambda s: -s.cost)
    order = dict.fromkeys([last.group, *(s.group for s in dear), *free])
    names = [n for n in order if n in kept]
    # a measured budget costs a measurement a trial, and takes no more than one group's
    if search.constraints.measured:
        names = names[:1]
    return relaxed(
        kept,
        names,
        scores,
        lambda n: widths(search.analysis.group(n).size, search.constraints),
        search.met,
    )


def visit(
    search: Search,
    gate: _Gate,
    chosen: Settings,
    scores: Scores,
    kept: Kept,
    free: Sequence[str],
    number: int,
) -> list[Accepted]:
    """One pass over the groups, on the network as it is cut so far: what each was allowed."""
    done, accepted = dict(kept), []
    base = dict(gate.base(kept))
    probed = _probed(search, scores, kept, free)
    order = sorted(probed, key=lambda g: -probed[g])
    typical = float(np.mean(list(probed.values()))) if chosen.proportional and order else 0.0
    factor = decay(len(order), chosen.initial_rate, chosen.initial_thres) if chosen.exp else 1.0
    rate = chosen.initial_rate
    for place, group in enumerate(order):
        search.tell(f"pagcp round {number + 1}, group {place + 1} of {len(order)}")
        before, trials = search.cost(done), []
        for width in _widths(search, group, done):
            trial = keep_best(remaining(scores, done, group), width)
            saved = before - search.cost({**done, group: trial})
            trials.append((trial, saved, rate * saved / typical if typical else rate))
        found = _largest(gate, done, group, trials, base)
        if found is None:
            continue
        accepted.append(found)
        done[group] = found.kept
        base = {t: max(v, found.losses[t]) for t, v in base.items()}
        rate *= factor
    return accepted


def cheapest(steps: Sequence[Accepted], topk: float) -> list[Accepted]:
    """The cheapest share of the steps, in the order in which they were made; at least one."""
    count = max(1, round(topk * len(steps)))
    chosen = {s.group for s in sorted(steps, key=lambda s: s.cost)[:count]}
    return [s for s in steps if s.group in chosen]


def _probed(search: Search, scores: Scores, kept: Kept, free: Sequence[str]) -> dict[str, float]:
    """What a trial cut of each group alone saves; those that can shrink no more left out."""
    whole, saved = search.cost(kept), {}
    for group in free:
        allowed = _widths(search, group, kept)
        if allowed:
            here = _count(search, kept, group)
            trial = min(allowed, key=lambda k: abs(k - here * (1 - PROBE_RATIO)))
            saved[group] = whole - search.cost(
                {**kept, group: keep_best(remaining(scores, kept, group), trial)}
            )
    return saved


def _largest(
    gate: _Gate,
    kept: Kept,
    group: str,
    trials: Sequence[tuple[tuple[int, ...], float, float]],
    base: Values,
) -> Accepted | None:
    """The last of the trials (what stays, what that saves, its tolerance) with every loss within the tolerance, by bisection; None where the first is not."""
    found, low, high, middle = (
        None,
        0,
        len(trials),
        0,
    )  # fewer and fewer channels stay; those below `low` are within the bounds
    while low < high:
        trial, saved, tolerance = trials[middle]
        losses = gate.within(kept, group, trial, {t: v * (1 + tolerance) for t, v in base.items()})
        if losses is not None:
            found, low = Accepted(group, trial, tolerance, dict(base), losses, saved), middle + 1
        else:
            high = middle
        middle = (low + high) // 2
    return found


def _widths(search: Search, group: str, kept: Kept) -> list[int]:
    """Kept counts that the ratios of what is left come to, descending."""
    size, here = search.analysis.group(group).size, _count(search, kept, group)
    found = {search.width_near(size, 1 - here * (1 - ratio) / size) for ratio in RATIOS}
    return sorted((w for w in found if w < here), reverse=True)


def _count(search: Search, kept: Kept, group: str) -> int:
    return len(kept[group]) if group in kept else search.analysis.group(group).size


@dataclass
class _Gate:
    """Losses on the gate data, remembered. start: of the model as it came."""

    search: Search
    settings: Settings
    start: Values = field(init=False)

    def __post_init__(self) -> None:
        context = self.search.context
        data = self.search.gate("method pagcp")
        batches = list(data.batches(context.batch_size))
        session = Session(context.analysis.model, threads=context.threads)
        expected = [session.run(b) for b in batches]
        self.of: Losses
        if self.settings.losses:
            counts = [max((len(a) for a in b.values() if a.ndim), default=1) for b in batches]
            self.of = OwnLosses(
                self.settings.losses, np.split(np.asarray(data.chosen), np.cumsum(counts)[:-1])
            )
        else:
            self.of = HeadLosses(expected)
        changed = Refitted.of(context) if self.settings.refit else None
        self.suffix = Suffix(context.analysis, batches, self.of, context.threads, changed)
        self.start = summed(self.of, expected)
        if bad := [t for t, v in self.start.items() if not v > 0]:
            raise UsageError(
                "losses-value",
                f"task {bad[0]!r} has loss {self.start[bad[0]]:g} before anything is cut; tolerances are relative to it: it must be above 0",
            )

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

    def within(
        self, kept: Kept, group: str, trial: tuple[int, ...], bounds: Values | None
    ) -> Values | None:
        """Losses with one group reduced further; None where one exceeds its bound."""

        def measured() -> Mapping[str, Values | None]:
            return {"losses": self.suffix(kept, group, trial, bounds)}

        name = key(
            self.settings.refit,
            {n: k for n, k in kept.items() if n != group},
            group,
            trial,
            dict(bounds or {}),
        )
        found: Values | None = self.search.journal.recall(name, measured)["losses"]
        return (
            found
            if found is None or not bounds or all(found[t] <= bounds[t] for t in found)
            else None
        )
