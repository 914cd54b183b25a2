"""Which groups to cut by how much, from single-group sensitivities; and rounds of it.

Source: METHODS.md section 4 (pruning of concatenation networks): the saving of a group at a rate, times quality to a power. The single
sensitivities do not add up, so each round's selection is measured together and put off in part where the network suffers more than allowed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from onnxprune.errors import UsageError
from onnxprune.model.io import Model, to_bytes
from onnxprune.repair import REPAIRS
from onnxprune.saliency import CRITERIA
from onnxprune.search.base import Kept, Search, keep_best, remaining, settings
from onnxprune.search.compose import Smaller, smaller, unchanged
from onnxprune.search.journal import Journal
from onnxprune.search.refitted import Refitted
from onnxprune.search.sensitivity import RATES, Bench, Sweep, jobs_of, sensitivity
from onnxprune.surgery.cut import cut
from onnxprune.types import Plan

CRITERION = "l2"
LAYERS = {"params": 6, "flops": 5, "latency": 5}  # the first two as published
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
        raise UsageError("select-empty", "there are no sensitivities to select from; run: onnxprune sensitivity MODEL --data ...")
    if how.latency_layers and not (whole and whole.get("timing") and all(r.get("timing") for r in rows)):
        raise UsageError("select-timing", "latency-layers needs timings of every group and of the whole model; measure without --no-time")
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
            found[r["group"]] = Choice(r["group"], r["index"], rate, max(share, old.value if old else 0.0), (*(old.lists if old else ()), name))
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
    form, as a repair leaves them, and channels go by reconstruction error, not by norms; tune: loss to tune with between rounds, such as kd (extra torch),
    "" = no tuning; tune_epochs: passes over the calibration data each time; repair: before it. As published: all lists, and refit false."""

    params_layers: int = -1
    flops_layers: int = -1
    latency_layers: int = -1
    end_map: float = 14.0
    rounds: int = 14
    max_drop: float = 0.05
    rates: str = ",".join(map(str, RATES))
    refit: bool = True
    tune: str = ""
    tune_epochs: int = 3
    repair: str = "least-squares"


@dataclass(frozen=True)
class _Stage:
    """A network that trials are cut from, the one that came or a smaller one that was tuned. free: groups that may be cut; bench: measures them."""

    step: Smaller
    free: tuple[str, ...]
    bench: Bench

    @staticmethod
    def of(search: Search, chosen: Settings, step: Smaller, fixed: Kept) -> _Stage:
        """The stage, where `fixed` groups of the original are not searched."""
        context = search.context if step.analysis is search.analysis else replace(search.context, analysis=step.analysis, cache={})
        own = "reconstruction" if chosen.refit else CRITERION
        scores = CRITERIA.get(own if search.criterion == "auto" else search.criterion)(context)
        free = tuple(n for n in scores if n in step.origin and not {g for places in step.origin[n] for g, _ in places} & fixed.keys())
        sweep = Sweep(
            to_bytes(step.analysis.model), step.analysis.options, scores, search.gate("method layer-selection"), time=chosen.latency_layers > 0,
            multiple=search.constraints.round_to, threads=context.threads, batch_size=context.batch_size,
        )  # fmt: skip
        return _Stage(step, free, Bench(sweep, step.analysis, search.analysis.model, Refitted.of(context) if chosen.refit else None))

    def composed(self, kept: Kept) -> Kept:
        """What the original keeps when this network keeps this."""
        return self.step.composed(kept)


def layer_selection(search: Search) -> Plan:
    """Rounds of sensitivity -> select -> joint check -> cut -> tune, each on the smaller model, until the budget is met.

    Without tuning between them, the rounds mask more and more of one network. With it, the last round's model is the result (`Search.made`).

    Raises
    ------
    TargetError
        The rounds end above the budget.
    """
    chosen = _with_lists(settings(Settings, search.options, "layer-selection"), search)
    fixed = search.fixed(search.scores(CRITERION)) if search.constraints.ratios else {}
    stage = _Stage.of(search, chosen, unchanged(search.analysis), fixed)
    stage.bench.base, kept, model = dict(fixed), fixed, None
    rounds: list[dict[str, float]] = []
    while len(rounds) < chosen.rounds and not search.met(kept):
        added, quality = _round(search, chosen, stage, len(rounds))
        if not added:
            break
        stage.bench.base = {**stage.bench.base, **added}
        kept = stage.composed(stage.bench.base)
        rounds.append({"macs": search.analysis.cost(kept).macs, "groups": len(added), "quality": quality})
        if chosen.tune:
            model = _tuned(search, chosen, stage, len(rounds))
            stage = _Stage.of(search, chosen, smaller(search.analysis, kept, model), fixed)
    if not search.met(kept):
        raise search.missed(kept, f"layer-selection found no more after {len(rounds)} rounds: raise rounds or max_drop, lower end_map (--method-option)")
    if model is None:
        return search.plan(kept, method="layer-selection", rounds=rounds)
    search.made(model)
    return search.plan(kept, method="layer-selection", rounds=rounds, tuned=chosen.tune)


def _with_lists(chosen: Settings, search: Search) -> Settings:
    """The settings with numbers in place of -1."""
    budgets = search.constraints.budgets.keys()
    counted = {"params": {"params", "bytes"}, "flops": {"macs", "activation_bytes"}, "latency": search.constraints.measures.keys()}
    own: dict[str, Any] = {f"{n}_layers": LAYERS[n] if costs & budgets else 0 for n, costs in counted.items() if getattr(chosen, f"{n}_layers") < 0}
    return replace(chosen, **own)


def _round(search: Search, chosen: Settings, stage: _Stage, number: int) -> tuple[Kept, float]:
    """(what this round keeps of the groups that it cuts, the quality with it: agreement with the model that the search began with)."""
    bench, analysis = stage.bench, stage.step.analysis
    journal = search.journal.below(f"round {number} {analysis.digest[:16]}:")
    records = _records(search, chosen, stage, journal, number)
    kept: Kept = {}
    for extra in range(len(stage.free) + 1):
        choices = select(records, _scheduled(chosen, number, extra))
        kept = {c.group: bench.narrowed(c.group, c.rate) for c in sorted(choices, key=lambda c: -c.value)}
        kept = {n: k for n, k in kept.items() if len(k) < len(bench.base.get(n, bench.sweep.scores[n])) and _allowed(search, stage, {n: k})}
        if _paces(search, chosen, stage, kept, number):
            break
    return _together(search, chosen, stage, kept, journal, number, records[0]["quality"])


def _records(search: Search, chosen: Settings, stage: _Stage, journal: Journal, number: int) -> list[Record]:
    """The sensitivities of a round, the whole model's first: each group at higher rates as long as these are worth more in some list."""
    bench, how, going = stage.bench, _scheduled(chosen, number), stage.free
    records: list[Record] = []
    best: dict[tuple[str, str], float] = {}
    for rate in sorted(float(r) for r in chosen.rates.split(",")):
        found = sensitivity(bench.sweep, jobs_of(bench.sweep, stage.step.analysis, [rate], going), journal, tell=partial(_told, search, number), here=bench)
        records += found if not records else found[1:]
        values = {(r["group"], name): _value(name, r, how, found[0]) for r in found[1:] for name in _lists(how)}
        going = tuple(g for g in going if any(v > best.get(at, 0.0) for at, v in values.items() if at[0] == g))
        best |= values
    return records


def _told(search: Search, number: int, text: str) -> None:
    search.tell(f"layer-selection round {number + 1}, {text}")


def _tuned(search: Search, chosen: Settings, stage: _Stage, number: int) -> Model:
    """The network of a stage cut, repaired and tuned."""
    if search.tune is None:
        raise UsageError("method-option", "layer-selection: tune works inside of a whole run (optimize) with --data; here it cannot")
    analysis, kept = stage.step.analysis, stage.bench.base
    plan = Plan(analysis.digest, kept, {n: analysis.group(n).size for n in kept}, {}, analysis.options)
    found = cut(analysis, plan)
    if chosen.repair != "none":
        found = REPAIRS.get(chosen.repair)(analysis, plan, found, replace(search.context, analysis=analysis, cache={}))
    _told(search, number - 1, f"tuning by {chosen.tune}")
    return search.tune(found, chosen.tune, chosen.tune_epochs)


def _scheduled(chosen: Settings, number: int, extra: int = 0) -> Selection:
    """This round's exponents, and `extra` groups more from each list."""
    share = number / max(chosen.rounds - 1, 1)
    powers = {n: v + (chosen.end_map - v) * share for n, v in vars(chosen).items() if n in ("params_map", "flops_map", "latency_map")}
    counts = {n: v and v + extra for n, v in vars(chosen).items() if n in ("params_layers", "flops_layers", "latency_layers")}
    return Selection(**counts, **powers)


def _paces(search: Search, chosen: Settings, stage: _Stage, kept: Kept, number: int) -> bool:
    """Whether a round saves what it has to, for the rounds that are left to meet the budget with as much each."""
    base = stage.bench.base
    return not search.behind(stage.composed(base), stage.composed({**base, **kept}), chosen.rounds - number)


def _together(search: Search, chosen: Settings, stage: _Stage, kept: Kept, journal: Journal, number: int, before: float) -> tuple[Kept, float]:
    """The best choices that the network bears together, no more of them than the budget needs, and the quality with them; what the round has to save in any case."""
    if not kept:
        return {}, before
    names = list(kept)

    def measured(count: int) -> tuple[Kept, float]:
        trial = _trimmed(search, stage, {n: kept[n] for n in names[:count]})
        name = f"together {sorted((n, len(k)) for n, k in trial.items())}"
        return trial, float(journal.recall(name, lambda: {"quality": stage.bench.figures(trial)["quality"]})["quality"])

    low = next((i for i in range(1, len(names)) if _paces(search, chosen, stage, {n: kept[n] for n in names[:i]}, number)), len(names))
    high = count = len(names)
    while low < high:
        borne = measured(count)[1] >= before * (1 - chosen.max_drop)
        low, high = (count, high) if borne else (low, count - 1)
        count = (low + high + 1) // 2
    return measured(low)


def _trimmed(search: Search, stage: _Stage, kept: Kept) -> Kept:
    """What meets the budget with the most channels, given back from the last choice on; all of it where the budget is not met anyway.

    No group can have one step of its width back after that.
    """
    base, scores, multiple = stage.bench.base, stage.bench.sweep.scores, search.constraints.round_to
    found = dict(kept)
    if not search.met(stage.composed({**base, **found})):
        return found
    for name in reversed(kept):
        here = len(base.get(name, scores[name]))
        counts = [k for k in range(len(found[name]) + 1, here + 1) if k % multiple == 0 or k == here]
        values = remaining(scores, base, name)
        low, high = 0, len(counts)  # counts below `low` can be had back
        while low < high:
            middle = (low + high) // 2
            wider = {**found, name: keep_best(values, counts[middle])}
            low, high = (middle + 1, high) if search.met(stage.composed({**base, **wider})) else (low, middle)
        if low:
            found[name] = keep_best(values, counts[low - 1])
    return {n: k for n, k in found.items() if len(k) < len(base.get(n, scores[n]))}


def _allowed(search: Search, stage: _Stage, kept: Kept) -> bool:
    """Whether the original groups that become narrower keep as many channels as floor and max_fraction ask for."""
    base = stage.bench.base
    before, after = stage.composed(base), stage.composed({**base, **kept})
    for name, left in after.items():
        size = search.analysis.group(name).size
        if len(left) < len(before.get(name, range(size))) and len(left) < max(search.constraints.floor, size * (1 - search.constraints.max_fraction), 1):
            return False
    return True
