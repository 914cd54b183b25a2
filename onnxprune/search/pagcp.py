"""PAGCP: performance-aware global channel pruning.

Source: Ye et al. (2023), "Performance-aware Approximation of Global Channel Pruning for Multitask
CNNs".

As published
    Each round visits the groups in the order of what a trial cut of each alone saves. A group loses
    the largest share for which no task's loss, measured on the network as pruned so far, rises by
    more than a tolerance; the tolerances of a round compound to a limit (`exp`). Of the accepted
    steps the cheapest share (`topk`), by loss increase per saving, is applied.

Changed
    The published system fine-tunes between rounds, which lowers the losses again; nothing does so
    here. Therefore losses are those of a network refitted in closed form (`refit`), the tolerance
    of a step is proportional to what it saves (`proportional`; with one tolerance for all, the
    groups visited first use up what the outputs bear, whatever that saves), steps are small, and
    tolerances grow after a round that saves too little (`relax`). Cost is counted in the unit of
    the budget, not always in FLOPs. A group that passes all ratios is applied, which the published
    code omits. The last round gives channels back until the budget is just met.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from onnxprune.allocators.base import widths
from onnxprune.data.dataset import samples_of
from onnxprune.errors import UsageError, plural
from onnxprune.files import hash_key
from onnxprune.ir.heads import find_heads, tensors_of
from onnxprune.ir.runtime import Session
from onnxprune.search.base import (
    Kept,
    Search,
    keep_best,
    remaining_scores,
    settings,
    widen_groups,
)
from onnxprune.search.refitted import Refitted
from onnxprune.search.suffix import Suffix
from onnxprune.search.tasks import HeadLosses, Losses, OwnLosses, summed
from onnxprune.types import Plan, Scores

RATIOS = tuple(round(0.05 * i, 2) for i in range(1, 20))
PROBE_RATIO = 0.3  # share of each group that the trial cut removes which orders the groups
Values = Mapping[str, float]


@dataclass(frozen=True)
class PagcpSettings:
    """Options of the method.

    As published: initial_rate 0.06, topk 0.8, relax 1, refit and proportional false.

    Attributes
    ----------
    initial_rate
        Relative tolerance of the first group; with `proportional`, of a group whose trial cut saves
        what the groups save on average.
    initial_thres
        With `exp`, the factor to which the tolerances of all groups compound.
    topk
        Share of the accepted steps applied per round, the cheapest ones.
    exp
        Change tolerances geometrically from group to group, such that they compound to
        `initial_thres`; otherwise all are equal.
    round
        Maximum number of rounds.
    losses
        Losses by task, as `module:function`; "" = label-free distances of the output heads.
    sequential
        Accepted for compatibility with commands of the published code, which always visits the
        groups one after the other; only true is valid, and it has no effect.
    relax
        Factor on `initial_rate` after a round that saved less than its share; with 1 the search
        ends if no group can shrink.
    refit
        Measure losses of a network whose weights are refitted to the cut in closed form, as a
        repair leaves it, and rank channels by reconstruction error instead of by norms.
    proportional
        Scale the tolerance of a step with what it saves.
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
        """Raise UsageError if a value is out of range."""
        if not self.sequential:
            raise UsageError(
                "method-option",
                "pagcp: sequential is false, but the method always visits the groups one after the "
                "other; leave the option out",
            )
        if (
            self.initial_rate <= 0
            or self.initial_thres <= 1
            or not 0 < self.topk <= 1
            or self.round < 1
            or self.relax < 1
        ):
            raise UsageError(
                "method-option",
                f"pagcp: initial_rate {self.initial_rate:g} must be above 0, "
                f"initial_thres {self.initial_thres:g} above 1, topk {self.topk:g} in (0, 1], "
                f"round {self.round} and relax {self.relax:g} at least 1",
            )


@dataclass(frozen=True)
class AcceptedStep:
    """A cut of one group whose losses are within the tolerance.

    Attributes
    ----------
    group
        Name of the group.
    kept
        Channels of the group kept by the step.
    tolerance
        Relative increase that each loss was allowed.
    base
        Losses that the tolerance refers to: the largest so far in the round.
    losses
        Losses after the step.
    saved
        Cost saved by the step, in the unit of `Search.cost`.
    """

    group: str
    kept: tuple[int, ...]
    tolerance: float
    base: Values
    losses: Values
    saved: float

    @property
    def cost(self) -> float:
        """Return the largest relative loss increase of a task per unit of cost saved."""
        increase = max(0.0, *(self.losses[t] / self.base[t] - 1 for t in self.base))
        return increase / max(self.saved, 1.0)


def decay(count: int, initial_rate: float = 0.06, initial_thres: float = 6.0) -> float:
    """Return the factor q between consecutive tolerances of `count` groups.

    It solves prod over i < count of (1 + initial_rate * q^i) = initial_thres. With few groups q is
    above 1: later ones get more. 1.0 if there is nothing to solve (`count` < 2, or the first
    tolerance alone reaches the limit).
    """
    from scipy.optimize import brentq

    def excess(log_factor: float) -> float:
        # an overflow to infinity has the right sign
        with np.errstate(over="ignore"):
            return float(
                np.log1p(initial_rate * np.exp(log_factor * np.arange(count))).sum()
                - np.log(initial_thres)
            )

    if count < 2 or np.log1p(initial_rate) >= np.log(initial_thres):
        return 1.0
    # bracket the root, as brentq needs a change of sign
    low, high = -1.0, 1.0
    while excess(low) > 0:
        low *= 2
    while excess(high) < 0:
        high *= 2
    return float(np.exp(brentq(excess, low, high, xtol=1e-13)))


def pagcp(search: Search) -> Plan:
    """Return the plan of the first round that meets the budget.

    The plan's `rate` lists the tolerance of every round, `tasks` the losses before and after.

    Raises
    ------
    TargetError
        The rounds end above the budget.
    UsageError
        An option is invalid.
    """
    chosen = settings(PagcpSettings, search.options, "pagcp")
    scores = search.own_scores(chosen.refit)
    kept = search.fixed(scores)
    if search.met(kept):
        return search.plan(kept, method="pagcp")
    gate = _Gate(search, chosen)
    # widths that the recipe fixes are not cut further
    free = [g.name for g in search.analysis.groups if g.name in scores and g.name not in kept]
    rates: list[float] = []
    for number in range(chosen.round):
        rates.append(chosen.initial_rate)
        before, steps = dict(kept), visit(search, gate, chosen, scores, kept, free, number)
        # stop at the first step that meets the budget; the rest of the round is not needed
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
        # without a step, only larger tolerances can help, and only if some group can shrink
        if not steps and (
            chosen.relax == 1 or not any(_list_widths(search, g, kept) for g in free)
        ):
            break
        if not steps or search.behind_schedule(before, kept, chosen.round - number):
            chosen = replace(chosen, initial_rate=chosen.initial_rate * chosen.relax)
    options = ["round", "initial_rate", *(["initial_thres"] if chosen.exp else [])]
    raise search.missed(
        kept,
        f"pagcp stopped after {plural(len(rates), 'round')}; raise {', '.join(options)} or relax "
        "(--method-option)",
    )


def _give_back(
    search: Search,
    scores: Scores,
    kept: Kept,
    last: AcceptedStep,
    steps: Sequence[AcceptedStep],
    free: Sequence[str],
) -> Kept:
    """Widen groups until the budget is just met: the last step's first, then by falling cost."""
    by_cost = sorted(steps, key=lambda s: -s.cost)
    order = dict.fromkeys([last.group, *(s.group for s in by_cost), *free])
    names = [n for n in order if n in kept]
    # each trial of a measured budget takes time, so that only one group is widened
    if search.constraints.measured:
        names = names[:1]
    return widen_groups(
        kept,
        names,
        scores,
        lambda n: widths(search.analysis.group(n).size, search.constraints),
        search.met,
    )


def visit(
    search: Search,
    gate: _Gate,
    chosen: PagcpSettings,
    scores: Scores,
    kept: Kept,
    free: Sequence[str],
    number: int,
) -> list[AcceptedStep]:
    """Return the accepted step of each group in one pass over the network as cut so far.

    Parameters
    ----------
    kept
        Channels kept by the earlier rounds.
    free
        Groups that may be cut.
    number
        Number of the round, from 0.
    """
    current, accepted = dict(kept), []
    base = dict(gate.base(kept))
    # groups that save most are visited first, while the losses still have room
    probed = _probe(search, scores, kept, free)
    order = sorted(probed, key=lambda g: -probed[g])
    typical = float(np.mean(list(probed.values()))) if chosen.proportional and order else 0.0
    factor = decay(len(order), chosen.initial_rate, chosen.initial_thres) if chosen.exp else 1.0
    rate = chosen.initial_rate
    for position, group in enumerate(order):
        search.progress(f"pagcp round {number + 1}, group {position + 1} of {len(order)}")
        before, trials = search.cost(current), []
        for width in _list_widths(search, group, current):
            trial = keep_best(remaining_scores(scores, current, group), width)
            saved = before - search.cost({**current, group: trial})
            trials.append((trial, saved, rate * saved / typical if typical else rate))
        step = _find_largest(gate, current, group, trials, base)
        if step is None:
            continue
        accepted.append(step)
        current[group] = step.kept
        # losses may fall by chance; the tolerance refers to the largest so far
        base = {t: max(v, step.losses[t]) for t, v in base.items()}
        rate *= factor  # only after an accepted step, as published
    return accepted


def cheapest(steps: Sequence[AcceptedStep], topk: float) -> list[AcceptedStep]:
    """Return the cheapest share of the steps, at least one, in the order they were made."""
    count = max(1, round(topk * len(steps)))
    chosen = {s.group for s in sorted(steps, key=lambda s: s.cost)[:count]}
    return [s for s in steps if s.group in chosen]


def _probe(search: Search, scores: Scores, kept: Kept, free: Sequence[str]) -> dict[str, float]:
    """Return the cost saved by a trial cut of each group alone, for groups that can shrink."""
    before, saved = search.cost(kept), {}
    for group in free:
        allowed = _list_widths(search, group, kept)
        if not allowed:
            continue
        target = _count(search, kept, group) * (1 - PROBE_RATIO)
        width = min(allowed, key=lambda k: abs(k - target))
        trial = keep_best(remaining_scores(scores, kept, group), width)
        saved[group] = before - search.cost({**kept, group: trial})
    return saved


def _find_largest(
    gate: _Gate,
    kept: Kept,
    group: str,
    trials: Sequence[tuple[tuple[int, ...], float, float]],
    base: Values,
) -> AcceptedStep | None:
    """Bisect for the last trial whose losses are all within tolerance; None if the first fails.

    Parameters
    ----------
    trials
        (channels kept, cost saved, tolerance) by falling number of channels.
    base
        Losses that tolerances refer to.
    """
    step = None
    # start with the smallest cut: if it fails, so do all others
    low, high, middle = 0, len(trials), 0  # trials before `low` pass, trials from `high` on fail
    while low < high:
        trial, saved, tolerance = trials[middle]
        losses = gate.within(kept, group, trial, {t: v * (1 + tolerance) for t, v in base.items()})
        if losses is None:
            high = middle
        else:
            step = AcceptedStep(group, trial, tolerance, dict(base), losses, saved)
            low = middle + 1
        middle = (low + high) // 2
    return step


def _list_widths(search: Search, group: str, kept: Kept) -> list[int]:
    """Return the widths that RATIOS of the remaining channels give, descending."""
    size, left = search.analysis.group(group).size, _count(search, kept, group)
    nearest = {search.width_near(size, 1 - left * (1 - ratio) / size) for ratio in RATIOS}
    return sorted((w for w in nearest if w < left), reverse=True)


def _count(search: Search, kept: Kept, group: str) -> int:
    """Return the number of channels that a group has left."""
    return len(kept[group]) if group in kept else search.analysis.group(group).size


@dataclass
class _Gate:
    """Losses on the gate data, remembered in the journal.

    Attributes
    ----------
    start
        Losses of the original model.
    """

    search: Search
    settings: PagcpSettings
    start: Values = field(init=False)

    def __post_init__(self) -> None:
        context = self.search.context
        data = self.search.gate("method pagcp")
        batches = list(data.batches(context.batch_size))
        model = context.analysis.model
        heads = () if self.settings.losses else find_heads(model)
        names = tensors_of(heads) or None
        session = Session(model, names, threads=context.threads)
        expected = [values for _, values in session.run_each(batches)]
        self.of: Losses
        if self.settings.losses:
            counts = [samples_of(b) for b in batches]
            samples = np.split(np.asarray(data.chosen), np.cumsum(counts)[:-1])
            self.of = OwnLosses(self.settings.losses, samples)
        else:
            self.of = HeadLosses(expected, heads)
        changed = Refitted.of(context) if self.settings.refit else None
        self.suffix = Suffix(context.analysis, batches, self.of, context.threads, changed, names)
        self.start = summed(self.of, expected)
        if bad := [t for t, v in self.start.items() if not v > 0]:
            raise UsageError(
                "losses-value",
                f"task {bad[0]!r} has loss {self.start[bad[0]]:g} for the original model; "
                "tolerances are relative to it, so return a loss above 0",
            )

    def base(self, kept: Kept) -> Values:
        """Return the losses of the network as cut so far."""
        if not kept:
            return self.start
        # any cut group serves: the suffix takes the others as its base
        group = next(iter(kept))
        return self.losses(kept, group, kept[group])

    def losses(self, kept: Kept, group: str, trial: tuple[int, ...]) -> Values:
        """Return the losses with one group reduced to `trial`."""
        losses = self.within(kept, group, trial, None)
        assert losses is not None  # without bounds nothing stops early
        return losses

    def within(
        self, kept: Kept, group: str, trial: tuple[int, ...], bounds: Values | None
    ) -> Values | None:
        """Return the losses with one group reduced to `trial`; None if one exceeds its bound."""

        def measure() -> Mapping[str, Values | None]:
            return {"losses": self.suffix(kept, group, trial, bounds)}

        name = hash_key(
            self.settings.refit,
            {n: k for n, k in kept.items() if n != group},
            group,
            trial,
            dict(bounds or {}),
        )
        losses: Values | None = self.search.journal.recall(name, measure)["losses"]
        if losses is None or not bounds:
            return losses
        # the suffix stops with a margin for rounding, so that the sums are compared again
        return losses if all(losses[t] <= bounds[t] for t in losses) else None
