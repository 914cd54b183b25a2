"""Which groups to cut by how much, from single-group sensitivities; and rounds of it.

Source: METHODS.md section 4 (pruning of concatenation networks): the saving of a group at a rate, times quality to a power. The single
sensitivities do not add up, so each round's selection is measured together and given up in part where the network suffers more than allowed.
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
from onnxprune.search.base import Kept, Search, keep_best, settings
from onnxprune.search.compose import Smaller, smaller
from onnxprune.search.journal import Journal
from onnxprune.search.sensitivity import RATES, Bench, Sweep, jobs_of, narrowed, sensitivity
from onnxprune.surgery.cut import cut
from onnxprune.types import Plan, Scores

CRITERION = "l2"
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Selection:
    """params_layers, flops_layers, latency_layers: how many groups to take from each list; *_map: exponent of the quality in it."""

    params_layers: int = 6
    flops_layers: int = 5
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
    lists = {
        "params": (how.params_layers, how.params_map, lambda r: r["saved_params"]),
        "flops": (how.flops_layers, how.flops_map, lambda r: r["saved_macs"]),
        "latency": (how.latency_layers, how.latency_map, lambda r: whole["timing"]["inference_ms"] - r["timing"]["inference_ms"] if whole else 0.0),
    }
    found: dict[str, Choice] = {}
    for name, (count, power, saving) in lists.items():
        if not count:
            continue
        best: dict[str, tuple[float, Record]] = {}
        for r in rows:
            value = float(saving(r)) * float(r["quality"]) ** power
            if value > best.get(r["group"], (0.0, r))[0]:
                best[r["group"]] = (value, r)
        top = sorted(best.values(), key=lambda v: -v[0])[:count]
        for value, r in top:
            old = found.get(r["group"])
            rate = min(r["rate"], old.rate) if old else r["rate"]
            share = value / top[0][0]
            found[r["group"]] = Choice(r["group"], r["index"], rate, max(share, old.value if old else 0.0), (*(old.lists if old else ()), name))
    return sorted(found.values(), key=lambda c: c.index)


@dataclass(frozen=True)
class Settings(Selection):
    """As Selection, and: end_map: all exponents at the last round, between which they fall evenly; rounds: at most so many; max_drop: share of the
    quality that the groups of one round may cost together, more is backed off from; repair: between rounds; rates: as text; tune: loss to tune with
    between rounds, such as kd (extra torch), "" = no tuning; tune_epochs: passes over the calibration data each time."""

    end_map: float = 14.0
    rounds: int = 14
    max_drop: float = 0.2
    repair: str = "bias"
    rates: str = ",".join(map(str, RATES))
    tune: str = ""
    tune_epochs: int = 3


def layer_selection(search: Search) -> Plan:
    """Rounds of sensitivity -> select -> joint check -> cut -> repair -> tune, each on the smaller model, until the budget is met.

    Where rounds are tuned, the last round's model is the result (`Search.made`).

    Raises
    ------
    TargetError
        The rounds end above the budget.
    """
    chosen = settings(Settings, search.options, "layer-selection")
    rates = tuple(float(r) for r in chosen.rates.split(","))
    kept = search.fixed({g.name: CRITERIA.get(CRITERION)(search.context)[g.name] for g in search.analysis.groups}) if search.constraints.ratios else {}
    fixed, model, number, rounds = set(kept), None, 0, []
    while number < chosen.rounds and not search.met(kept):
        step = smaller(search.analysis, kept, model)
        added, quality = _round(search, chosen, rates, step, fixed, number)
        if not added:
            break
        kept = step.composed(added)
        rounds.append({"macs": search.analysis.cost(kept).macs, "groups": len(added), "quality": quality})
        model = _next(search, chosen, step, added, number)
        number += 1
    if not search.met(kept):
        raise search.missed(kept, f"layer-selection found no more after {number} rounds: raise rounds or max_drop, lower end_map (--method-option)")
    if not chosen.tune or model is None:
        return search.plan(kept, method="layer-selection", rounds=rounds)
    search.made(model)
    return search.plan(kept, method="layer-selection", rounds=rounds, tuned=chosen.tune)


def _round(search: Search, chosen: Settings, rates: Sequence[float], step: Smaller, fixed: set[str], number: int) -> tuple[Kept, float]:
    """(what this round keeps of the smaller model, the quality with it: agreement with the model that the search began with)."""
    here = replace(search.context, analysis=step.analysis, cache={})
    scores = CRITERIA.get(CRITERION if search.criterion == "auto" else search.criterion)(here)
    free = [n for n in scores if n in step.origin and not {g for places in step.origin[n] for g, _ in places} & fixed]
    sweep = Sweep(
        to_bytes(step.analysis.model), step.analysis.options, {n: scores[n] for n in free}, here.gate_data("method layer-selection"), time=chosen.latency_layers > 0,
        multiple=search.constraints.round_to, threads=here.threads, batch_size=here.batch_size,
    )  # fmt: skip
    journal = search.journal.below(f"round {number} {step.analysis.digest[:16]}:")
    bench = Bench(sweep, step.analysis, search.analysis.model)
    tell = partial(_told, search, number)
    records = sensitivity(sweep, jobs_of(sweep, step.analysis, rates), journal, tell=tell, here=bench)
    choices = _scheduled(records, chosen, number)
    return _together(search, chosen, bench, step, choices, journal, records[0]["quality"])


def _told(search: Search, number: int, text: str) -> None:
    search.tell(f"layer-selection round {number + 1}, {text}")


def _next(search: Search, chosen: Settings, step: Smaller, kept: Kept, number: int) -> Model:
    """The smaller model cut once more, repaired and tuned."""
    plan = Plan(step.analysis.digest, kept, {n: step.analysis.group(n).size for n in kept}, {}, step.analysis.options)
    found = cut(step.analysis, plan)
    if chosen.repair != "none":
        found = REPAIRS.get(chosen.repair)(step.analysis, plan, found, replace(search.context, analysis=step.analysis, cache={}))
    if not chosen.tune:
        return found
    if search.tune is None:
        raise UsageError("method-option", "layer-selection: tune works inside of a whole run (optimize) with --data; here it cannot")
    _told(search, number, f"tuning by {chosen.tune}")
    return search.tune(found, chosen.tune, chosen.tune_epochs)


def _scheduled(records: Sequence[Record], chosen: Settings, number: int) -> list[Choice]:
    """The selection with this round's exponents."""
    share = number / max(chosen.rounds - 1, 1)
    powers = {n: v + (chosen.end_map - v) * share for n, v in vars(chosen).items() if n in ("params_map", "flops_map", "latency_map")}
    return select(records, Selection(chosen.params_layers, chosen.flops_layers, chosen.latency_layers, **powers))


def _together(
    search: Search, chosen: Settings, bench: Bench, step: Smaller, choices: Sequence[Choice], journal: Journal, before: float
) -> tuple[Kept, float]:
    """The best choices that the network bears together, no more of them than the budget needs, and the quality with them; the first one in any case."""
    scores, multiple = bench.sweep.scores, bench.sweep.multiple
    kept = {c.group: narrowed(scores[c.group], c.rate, multiple) for c in sorted(choices, key=lambda c: -c.value)}
    kept = {n: k for n, k in kept.items() if len(k) < step.analysis.group(n).size and _allowed(search, step.analysis.group(n).size, len(k), step, n)}
    names, quality = list(kept), before
    while names:
        trial = _trimmed(search, step, {n: kept[n] for n in names}, scores, multiple)
        name = f"together {sorted((n, len(k)) for n, k in trial.items())}"
        if not journal.has(name):
            journal.write(name, {"quality": bench.figures(trial)["quality"]})
        quality = float(journal.recall(name, dict)["quality"])
        if len(names) == 1 or quality >= before * (1 - chosen.max_drop):
            return trial, quality
        names.pop()
    return {}, quality


def _trimmed(search: Search, step: Smaller, kept: Kept, scores: Scores, multiple: int) -> Kept:
    """What meets the budget with the most channels, given back from the last choice on; all of it where the budget is not met anyway.

    No group can have one step of its width back after that.
    """
    found = dict(kept)
    if not search.met(step.composed(found)):
        return found
    for name in reversed(kept):
        size = step.analysis.group(name).size
        counts = [k for k in range(len(found[name]) + 1, size + 1) if k % multiple == 0 or k == size]
        low, high = 0, len(counts)  # counts below `low` can be had back
        while low < high:
            middle = (low + high) // 2
            wider = {**found, name: keep_best(scores[name], counts[middle])}
            low, high = (middle + 1, high) if search.met(step.composed(wider)) else (low, middle)
        if low:
            found[name] = keep_best(scores[name], counts[low - 1])
    return {n: k for n, k in found.items() if len(k) < step.analysis.group(n).size}


def _allowed(search: Search, size: int, count: int, step: Smaller, name: str) -> bool:
    """Whether the original groups keep as many channels as floor and max_fraction ask for."""
    for group in {g for places in step.origin[name] for g, _ in places}:
        whole = search.analysis.group(group).size
        left = len(step.kept.get(group, range(whole))) - (size - count)
        if left < max(search.constraints.floor, whole * (1 - search.constraints.max_fraction), 1):
            return False
    return True
