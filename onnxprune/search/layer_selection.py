"""Which groups to cut by how much, from single-group sensitivities; and rounds of it.

Source: METHODS.md section 4 (pruning of concatenation networks): the saving of a group at a rate, times quality to a power. The single
sensitivities do not add up, so each round's selection is measured together and put off in part where the network suffers more than allowed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnxprune.errors import UsageError
from onnxprune.ir.io import Model
from onnxprune.repair import REPAIRS
from onnxprune.search.base import Kept, Search, keep_best, relaxed, remaining, settings
from onnxprune.search.compose import Smaller, smaller, unchanged
from onnxprune.search.journal import Journal, key
from onnxprune.search.refitted import Refitted
from onnxprune.search.sensitivity import RATES, Bench, Sweep
from onnxprune.surgery.cut import cut
from onnxprune.types import Plan

LAYERS = {"params": 6, "flops": 5, "latency": 5}  # the first two as published
TYPICAL, LEAST = (
    0.01,
    1e-5,
)  # loss of quality of a typical group at the least rate, relative, and the least that is told from none
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Selection:
    """params_layers, flops_layers, latency_layers: how many groups to take from each list; *_map: exponent of the quality in it."""

    params_layers: int = LAYERS["params"]
    flops_layers: int = LAYERS["flops"]
    latency_layers: int = 0
    params_map: float = 20.0
    flops_map: float = 20.0
    latency_map: float = 20.0


@dataclass(frozen=True)
class Choice:
    """A group to cut: its number, the rate, the largest value that it had in a list (relative to the list's best), and which lists took it."""

    group: str
    index: int
    rate: float
    value: float
    lists: tuple[str, ...]


def select(records: Sequence[Record], how: Selection = Selection()) -> list[Choice]:  # noqa: B008 - frozen
    """Groups by saving times quality^exponent, the best rate of each, from each list its first few; in the order of the groups.

    A group that two lists take at different rates is cut at the lower one.

    Raises
    ------
    UsageError
        No record of the whole model where latency is asked for, or no records at all.
    """
    whole = next((r for r in records if not r["group"]), None)
    rows = [r for r in records if r["group"]]
    if not rows:
        raise UsageError(
            "select-empty",
            "there are no sensitivities to select from; run: onnxprune sensitivity MODEL --data ...",
        )
    if how.latency_layers and not (
        whole and whole.get("timing") and all(r.get("timing") for r in rows)
    ):
        raise UsageError(
            "select-timing",
            "latency-layers needs timings of every group and of the whole model; measure without --no-time",
        )
    found: dict[str, Choice] = {}
    for name, count in _lists(how).items():
        best: dict[str, tuple[float, Record]] = {}
        for r in rows:
            value = _value(name, r, how, whole)
            if value > best.get(r["group"], (0.0, r))[0]:
                best[r["group"]] = (value, r)
        top = sorted(best.values(), key=lambda v: -v[0])[:count]
        for value, r in top:
            old = found.get(r["group"])
            rate = min(r["rate"], old.rate) if old else r["rate"]
            share = value / top[0][0]
            found[r["group"]] = Choice(
                r["group"],
                r["index"],
                rate,
                max(share, old.value if old else 0.0),
                (*(old.lists if old else ()), name),
            )
    return sorted(found.values(), key=lambda c: c.index)


def _lists(how: Selection) -> dict[str, int]:
    """The lists that groups are taken from, and how many from each."""
    counts = {"params": how.params_layers, "flops": how.flops_layers, "latency": how.latency_layers}
    return {name: count for name, count in counts.items() if count}


def _value(name: str, record: Record, how: Selection, whole: Record | None) -> float:
    """What a list ranks by: what a cut saves, times the quality that is left to the list's power."""
    if name == "latency":
        saved = whole["timing"]["inference_ms"] - record["timing"]["inference_ms"] if whole else 0.0
    else:
        saved = record["saved_params" if name == "params" else "saved_macs"]
    return float(saved) * float(record["quality"]) ** float(getattr(how, f"{name}_map"))


@dataclass(frozen=True)
class Settings(Selection):
    """As Selection, -1 layers being as many as above where the budgets count that cost, else none; and: end_map: all exponents at the last round, between
    which they fall evenly; rounds: in so many the budget is met; max_drop: share of the quality that the groups of one round may cost together, more is
    backed off from, but not below what the round has to save; rates: as text; refit: trials are networks whose weights were refitted to the cut in closed
    form, as a repair leaves them, and channels go by reconstruction error, not by norms; scaled: exponents are for networks in which a typical group costs
    1 % of the quality at the least rate, and are larger by as much as the first round finds it less; tune: loss to tune with between rounds, such as kd (extra torch),
    "" = no tuning; tune_epochs: passes over the calibration data each time; repair: before it. As published: all lists, refit and scaled false.
    """

    params_layers: int = -1
    flops_layers: int = -1
    latency_layers: int = -1
    end_map: float = 14.0
    rounds: int = 14
    max_drop: float = 0.05
    rates: str = ",".join(map(str, RATES))
    refit: bool = True
    scaled: bool = True
    tune: str = ""
    tune_epochs: int = 3
    repair: str = "least-squares"

    def __post_init__(self) -> None:
        if self.rounds < 1 or not 0 <= self.max_drop <= 1:
            raise UsageError(
                "method-option",
                f"layer-selection: rounds {self.rounds} must be at least 1, max_drop {self.max_drop:g} in [0, 1]",
            )
        _ = self.ascending

    @property
    def ascending(self) -> list[float]:
        """The rates."""
        try:
            found = sorted(float(r) for r in self.rates.split(","))
        except ValueError:
            found = []
        if not found or not 0 < found[0] <= found[-1] < 1:
            raise UsageError(
                "method-option",
                f"layer-selection: rates {self.rates!r} are not numbers between 0 and 1, such as 0.25,0.5",
            )
        return found


class _Stage:
    """A network that trials are cut from, the one that came or a smaller one that was tuned.

    step: how it stands to the original; bench: measures it, and knows what is left so far; free: groups that may be cut; scores: inside of each.
    """

    def __init__(self, search: Search, chosen: Settings, step: Smaller, fixed: Kept) -> None:
        context = (
            search.context
            if step.analysis is search.analysis
            else replace(search.context, analysis=step.analysis, cache={})
        )
        self.search, self.step, self.analysis = search, step, step.analysis
        self.scores = replace(search, context=context).own_scores(chosen.refit)
        self.free = tuple(
            n for n in self.scores if n in step.origin and not step.groups(n) & fixed.keys()
        )
        sweep = Sweep(
            "",
            step.analysis.options,
            self.scores,
            search.gate("method layer-selection"),
            time=chosen.latency_layers > 0,
            threads=context.threads,
            batch_size=context.batch_size,
        )
        self.bench = Bench(
            sweep,
            step.analysis,
            search.analysis.model,
            Refitted.of(context) if chosen.refit else None,
        )
        self.bench.base = {n: k for n, k in fixed.items() if step.analysis is search.analysis}

    @property
    def left(self) -> Kept:
        """What is left so far of the groups of this network."""
        return dict(self.bench.base)

    def met(self, kept: Kept) -> bool:
        """Whether the budgets are, when this network keeps this."""
        return self.search.met(self.step.composed(kept))

    def widths(self, name: str) -> list[int]:
        """Kept counts that a group may have, so that the original's group has one that it may have."""
        return self.step.widths(name, self.search.constraints)

    def narrowed(self, name: str, rate: float) -> tuple[int, ...]:
        """What a group keeps when at least this share of what is left of it goes; nothing where that cannot be."""
        here = len(self.bench.base.get(name, self.scores[name]))
        count = max((w for w in self.widths(name) if w <= here * (1 - rate)), default=0)
        return keep_best(remaining(self.scores, self.bench.base, name), count) if count > 0 else ()


def layer_selection(search: Search) -> Plan:
    """Rounds of sensitivity -> select -> joint check -> cut -> tune until the budget is met.

    Without tuning between them, the rounds mask more and more of one network. With it, each begins with the smaller model, and the last round's is the
    result (`Search.made`).

    Raises
    ------
    TargetError
        The rounds end above the budget.
    """
    chosen = _with_lists(settings(Settings, search.options, "layer-selection"), search)
    if chosen.tune and search.tune is None:
        raise UsageError(
            "method-option",
            "layer-selection: tune works inside of a whole run (optimize) with --data; here it cannot",
        )
    kept = fixed = (
        search.fixed(search.own_scores(chosen.refit)) if search.constraints.ratios else {}
    )
    step, stage, model = unchanged(search.analysis), None, None
    rounds: list[dict[str, float]] = []
    factor = 1.0
    while len(rounds) < chosen.rounds and not search.met(kept):
        stage = stage or _Stage(search, chosen, step, fixed)
        if chosen.scaled and not rounds:
            factor = _factor(chosen, stage)
        left, quality = _round(chosen, stage, len(rounds), factor)
        cut_now = sum(len(k) < len(stage.left.get(n, stage.scores[n])) for n, k in left.items())
        if not cut_now:
            break
        stage.bench.base, kept = left, stage.step.composed(left)
        rounds.append(
            {"macs": search.analysis.cost(kept).macs, "groups": cut_now, "quality": quality}
        )
        if chosen.tune:
            model = _tuned(chosen, stage, len(rounds))
            step, stage = smaller(search.analysis, kept, model), None
    if not search.met(kept):
        more = "max_drop or rounds" if search.constraints.measured else "rounds"
        raise search.missed(
            kept,
            f"layer-selection found no more after {len(rounds)} rounds: raise {more}, or give higher rates (--method-option)",
        )
    if model is None:
        return search.plan(kept, method="layer-selection", rounds=rounds)
    search.made(model)
    return search.plan(kept, method="layer-selection", rounds=rounds, tuned=chosen.tune)


def _with_lists(chosen: Settings, search: Search) -> Settings:
    """The settings with numbers in place of -1."""
    budgets = search.constraints.budgets.keys()
    counted = {
        "params": {"params", "bytes"},
        "flops": {"macs", "activation_bytes"},
        "latency": search.constraints.measures.keys(),
    }
    own: dict[str, Any] = {
        f"{n}_layers": LAYERS[n] if costs & budgets else 0
        for n, costs in counted.items()
        if getattr(chosen, f"{n}_layers") < 0
    }
    return replace(chosen, **own)


def _factor(chosen: Settings, stage: _Stage) -> float:
    """What the exponents are multiplied by where a typical group costs less than TYPICAL at the least rate: to their power it then costs as much as if it did.

    With the published ones the search takes most of a few groups of a deep network, because none alone costs anything. Chosen by divergence on calibration
    images that nothing else saw: ResNet-56 .035 for .104; smaller exponents where groups cost more were worse (a detector).
    """
    lowest = _records(
        replace(chosen, rates=str(chosen.ascending[0])), stage, _journal(stage, 0), 0, 1.0
    )
    lost = [math.log(lowest[0]["quality"] / max(r["quality"], LEAST)) for r in lowest[1:]]
    return max(TYPICAL / max(float(np.median(lost)), LEAST), 1.0) if lost else 1.0


def _journal(stage: _Stage, number: int) -> Journal:
    """Where a round notes what it measures."""
    return stage.search.journal.below(
        f"round {number} {stage.analysis.digest[:16]} {key(stage.left)[:16]}:"
    )


def _round(chosen: Settings, stage: _Stage, number: int, factor: float) -> tuple[Kept, float]:
    """(what is left behind this round, the quality with it: agreement with the model that the search began with)."""
    journal = _journal(stage, number)
    records = _records(chosen, stage, journal, number, factor)
    added: Kept = {}
    for extra in range(len(stage.free) if len(records) > 1 else 0):
        choices = select(records, _scheduled(chosen, number, factor, extra))
        added = {
            c.group: stage.narrowed(c.group, c.rate)
            for c in sorted(choices, key=lambda c: -c.value)
        }
        if added and _paces(chosen, stage, {**stage.left, **added}, number):
            break
    return _together(chosen, stage, added, journal, number, float(records[0]["quality"]))


def _tuned(chosen: Settings, stage: _Stage, number: int) -> Model:
    """The network of a stage cut, repaired and tuned."""
    search, analysis = stage.search, stage.analysis
    plan = analysis.plan(stage.left)
    found = cut(analysis, plan)
    if chosen.repair != "none":
        found = REPAIRS.get(chosen.repair)(
            analysis, plan, found, replace(search.context, analysis=analysis, cache={})
        )
    search.tell(f"layer-selection round {number}, tuning by {chosen.tune}")
    assert search.tune is not None  # asked for at the beginning
    return search.tune(found, chosen.tune, chosen.tune_epochs)


def _records(
    chosen: Settings, stage: _Stage, journal: Journal, number: int, factor: float
) -> list[Record]:
    """The sensitivities of a round, the whole model's first: each group at higher rates as long as these are worth more in some list."""
    bench, how = stage.bench, _scheduled(chosen, number, factor)

    def measured(index: int, group: str, rate: float, kept: tuple[int, ...]) -> Record:
        about = {"index": index, "group": group, "rate": rate}
        return journal.recall(
            f"{group} {len(kept)}",
            lambda: {**about, **bench.figures({group: kept} if group else {})},
        )

    records = [measured(-1, "", 0.0, ())]
    for index, group in enumerate(stage.free):
        best: dict[str, float] = {}
        for rate in chosen.ascending:
            kept = stage.narrowed(group, rate)
            if not kept:
                break
            records.append(measured(index, group, rate, kept))
            values = {name: _value(name, records[-1], how, records[0]) for name in _lists(how)}
            if not any(v > best.get(n, 0.0) for n, v in values.items()):
                break
            best = {n: max(v, best.get(n, 0.0)) for n, v in values.items()}
        stage.search.tell(
            f"layer-selection round {number + 1}, {index + 1} of {len(stage.free)}: {group}, quality {records[-1]['quality']:.4f}"
        )
    return records


def _scheduled(chosen: Settings, number: int, factor: float, extra: int = 0) -> Selection:
    """This round's exponents times a factor, and `extra` groups more from each list."""
    share = number / max(chosen.rounds - 1, 1)
    powers = {
        n: factor * (v + (chosen.end_map - v) * share)
        for n, v in vars(chosen).items()
        if n in ("params_map", "flops_map", "latency_map")
    }
    counts = {
        n: v and v + extra
        for n, v in vars(chosen).items()
        if n in ("params_layers", "flops_layers", "latency_layers")
    }
    return Selection(**counts, **powers)


def _paces(chosen: Settings, stage: _Stage, left: Kept, number: int) -> bool:
    """Whether a round saves what it has to, for the rounds that are left to meet the budget with as much each."""
    return not stage.search.behind(
        stage.step.composed(stage.left), stage.step.composed(left), chosen.rounds - number
    )


def _together(
    chosen: Settings, stage: _Stage, added: Kept, journal: Journal, number: int, before: float
) -> tuple[Kept, float]:
    """What is left with the best choices that the network bears together, no more of them than the budget needs, and the quality with them; what the round
    has to save in any case.
    """
    names = list(added)
    if not names:
        return stage.left, before

    def measured(count: int) -> tuple[Kept, float]:
        left = _trimmed(stage, {n: added[n] for n in names[:count]})
        name = f"together {sorted((n, len(k)) for n, k in left.items())}"
        return left, float(
            journal.recall(name, lambda: {"quality": stage.bench.figures(left)["quality"]})[
                "quality"
            ]
        )

    low = next(
        (
            i
            for i in range(1, len(names))
            if _paces(chosen, stage, {**stage.left, **{n: added[n] for n in names[:i]}}, number)
        ),
        len(names),
    )
    high = count = len(names)
    while low < high:
        borne = measured(count)[1] >= before * (1 - chosen.max_drop)
        low, high = (count, high) if borne else (low, count - 1)
        count = (low + high + 1) // 2
    return measured(low)


def _trimmed(stage: _Stage, added: Kept) -> Kept:
    """What is left with these choices, no channel more than what meets the budget needs: from the last choice on, then from those of earlier rounds.

    Where the budget is met, no group can have one step of its width back after that; of a measured one, the last choice.
    """
    left = {**stage.left, **added}
    if not stage.met(left):
        return left
    order = [*reversed(added), *(n for n in left if n in stage.free and n not in added)]
    if stage.search.constraints.measured:
        order = order[:1]
    found = relaxed(left, order, stage.scores, stage.widths, stage.met)
    return {n: k for n, k in found.items() if len(k) < stage.analysis.group(n).size}
