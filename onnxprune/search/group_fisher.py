"""Group Fisher pruning: again and again the globally least important channels, importance being the squared mask gradient over what a channel costs.

Source: Liu et al. 2021, "Group Fisher Pruning for Practical Network Compression", and METHODS.md section 3. Without training: the same loop on
calibration data, with a fresh backward pass over other inputs after each few channels. Labels are drawn: from the smaller model, which makes importance
the Fisher information, of which the mean over all passes so far is taken; or from the original, and then the gradients also say how far the smaller model
is from it now, as true labels would. Neither is the better one for every network, so both searches are made and the one kept that ends nearer to the
original on inputs that scored nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnxprune.allocate.base import ordered
from onnxprune.calibrate.gradients import BATCHES
from onnxprune.calibrate.moments import refittable
from onnxprune.engines.channel_costs import NORMALIZATIONS, channel_costs
from onnxprune.engines.layers import LatencyCache
from onnxprune.errors import UsageError, unknown
from onnxprune.saliency import CRITERIA
from onnxprune.saliency.gradient import fisher
from onnxprune.search.base import Kept, Search, part, settings
from onnxprune.search.compose import Places, Smaller, smaller
from onnxprune.search.refitted import Refitted
from onnxprune.search.sensitivity import Bench, Sweep
from onnxprune.types import Plan, Scores

LABELS = ("both", "original", "own")  # from the model as it came, from the smaller one that is scored, or the better of the two
STEPS = 50  # re-scorings of a whole network, where `step` does not say it


@dataclass(frozen=True)
class Settings:
    """normalization: of NORMALIZATIONS, what a channel's importance is divided by; step: channels between two scorings, 0 = a fiftieth of all;
    interval: batches that a scoring looks at; labels: of LABELS, what draws them; average: with its own labels, importance is the mean over all scorings
    so far; engine: whose latency, "" = the first that the run measures on."""

    normalization: str = "flops"
    step: int = 0
    interval: int = 10
    labels: str = "both"
    average: bool = True
    engine: str = ""

    def __post_init__(self) -> None:
        if self.normalization not in NORMALIZATIONS:
            raise unknown("normalization", self.normalization, NORMALIZATIONS)
        if self.labels not in LABELS:
            raise unknown("labels", self.labels, LABELS)
        if self.step < 0 or self.interval < 1:
            raise UsageError("method-option", f"group-fisher: step {self.step} must be 0 or more, interval {self.interval} at least 1")


@dataclass(frozen=True)
class Bundle:
    """The next channels of a group of the smaller model that can go together: how many an allowed width asks for. value: importance over cost."""

    group: str
    channels: tuple[int, ...]
    value: float


def group_fisher(search: Search) -> Plan:
    """The plan of as many steps as the budget needs. Widths are allowed ones (round_to) all the way.

    Raises
    ------
    TargetError
        No channel is left that may go.
    """
    chosen = settings(Settings, search.options, "group-fisher")
    ways = ("own",) if search.criterion != "auto" else LABELS[1:] if chosen.labels == LABELS[0] else (chosen.labels,)
    cache, known = LatencyCache(), dict[str, Any]()
    found = {labels: _searched(search, replace(chosen, labels=labels), cache, known) for labels in ways}
    labels = _nearest(search, {labels: kept for labels, (kept, _) in found.items()}) if len(found) > 1 else ways[0]
    kept, number = found[labels]
    return search.plan(kept, method="group-fisher", steps=number, normalization=chosen.normalization, labels=labels)


def _searched(search: Search, chosen: Settings, cache: LatencyCache, known: dict[str, Any]) -> tuple[Kept, int]:
    """What one search keeps, and in how many steps."""
    analysis = search.analysis
    kept = search.fixed(CRITERIA.get("l2")(search.context)) if search.constraints.ratios else {}
    fixed, number = frozenset(kept), 0
    count = chosen.step or max(1, sum(g.size for g in analysis.groups) // STEPS)
    past: dict[Places, tuple[float, int]] = {}
    while not search.met(kept):
        left = analysis.cost(kept).macs / max(analysis.cost().macs, 1)
        search.tell(f"group-fisher, {chosen.labels} labels, step {number + 1}, {left:.1%} of the MACs left")
        step = smaller(analysis, kept)
        scores = _scores(search, chosen, step, number, known)
        if chosen.average and chosen.labels == "own":
            scores = _averaged(step, scores, past)
        costs = _costs(search, chosen, step, number, cache)
        gone: dict[str, set[int]] = {}
        removed = 0
        for bundle in _least(search, step, scores, costs, fixed):
            gone.setdefault(bundle.group, set()).update(bundle.channels)
            removed += len(bundle.channels)
            rest = {n: [c for c in range(step.analysis.group(n).size) if c not in g] for n, g in gone.items()}
            kept = step.composed(rest)
            if removed >= count or search.met(kept):
                break
        if not removed:
            raise search.missed(kept, "group-fisher: every group is at its least width")
        number += 1
    return kept, number


def _nearest(search: Search, found: Mapping[str, Kept]) -> str:
    """Which of the results is nearest to the original once refitted, on the gate's inputs; the first of those that are as near."""
    context = search.context
    sweep = Sweep("", search.analysis.options, {}, search.gate("method group-fisher"), time=False, threads=context.threads, batch_size=context.batch_size)
    bench = Bench(sweep, search.analysis, changed=Refitted.of(context) if refittable(search.analysis) else None)
    return max(found, key=lambda labels: search.journal.recall(f"quality {labels}", lambda: {"quality": bench.figures(found[labels])["quality"]})["quality"])


def _costs(search: Search, chosen: Settings, step: Smaller, number: int, cache: LatencyCache) -> dict[str, np.ndarray]:
    """What a channel of the smaller model costs; times are remembered, because no two measurements are equal."""
    if chosen.normalization != "latency":
        return channel_costs(step.analysis, chosen.normalization)

    def measured() -> dict[str, dict[str, float]]:
        least = {n: _left_at_least(search, step, n) for n in step.origin}
        found = channel_costs(step.analysis, "latency", chosen.engine or search.engine, cache, options=search.engine_options, least=least)
        return {"ms": {n: float(v[0]) for n, v in found.items()}}

    name = f"latency {number} {step.analysis.digest}"
    ms = search.journal.recall(name, measured)["ms"]
    return {g.name: np.full(g.size, ms[g.name]) for g in step.analysis.groups}


def _left_at_least(search: Search, step: Smaller, name: str) -> int:
    """The least width that a group of the smaller model may have."""
    return max(step.widths(name, search.constraints)[-1], 1)


def _scores(search: Search, chosen: Settings, step: Smaller, number: int, known: dict[str, Any]) -> Scores:
    """Importance of the smaller model's channels on this step's inputs, remembered. known: what the first scoring found of batches."""
    name = f"step {number} {step.analysis.digest} {chosen.labels}"
    if not search.journal.has(name):
        data = part(search.context.statistics_data("method group-fisher"), chosen.interval * search.context.batch_size, number)
        here = replace(search.context, analysis=step.analysis, data=data, seed=search.context.seed + number, cache=dict(known))
        teacher = search.analysis.model if chosen.labels == "original" else None
        found = fisher(here, teacher) if search.criterion == "auto" else CRITERIA.get(search.criterion)(here)
        known.update({n: v for n, v in here.cache.items() if n.startswith(BATCHES)})
        search.journal.write(name, {"scores": {n: np.asarray(v, np.float64).tolist() for n, v in found.items()}})
    return {n: np.asarray(v) for n, v in search.journal.recall(name, dict)["scores"].items()}


def _averaged(step: Smaller, scores: Scores, past: dict[Places, tuple[float, int]]) -> Scores:
    """Means over the scorings so far, which saw other inputs; past: sum and number of each channel's, this one's added."""
    found = {}
    for name, values in scores.items():
        channels = step.origin.get(name, ())
        for places, value in zip(channels, values.tolist()):
            total, count = past.get(places, (0.0, 0))
            past[places] = total + value, count + 1
        if channels:
            found[name] = np.array([past[places][0] / past[places][1] for places in channels])
    return found


def _least(search: Search, step: Smaller, scores: Scores, costs: Mapping[str, np.ndarray], fixed: frozenset[str]) -> Iterator[Bundle]:
    """Bundles in ascending order of importance over cost, the later ones of a group after its earlier ones."""
    waiting = {name: _bundles(search, step, name, scores[name], costs[name]) for name in scores if name in step.origin}
    heads: dict[str, Bundle] = {}
    for name, bundles in waiting.items():
        if not step.groups(name) & fixed:
            heads |= {name: b for b in [next(bundles, None)] if b is not None}
    while heads:
        name = min(heads, key=lambda n: heads[n].value)
        yield heads.pop(name)
        heads |= {name: b for b in [next(waiting[name], None)] if b is not None}


def _bundles(search: Search, step: Smaller, name: str, scores: np.ndarray, costs: np.ndarray) -> Iterator[Bundle]:
    """The channels between one allowed width and the next, the least important first."""
    order, taken = ordered(scores), 0
    for width in step.widths(name, search.constraints):
        until = len(scores) - width
        if taken < until < len(scores):
            channels = order[taken:until]
            yield Bundle(name, tuple(channels.tolist()), float(scores[channels].sum() / costs[channels].sum()))
            taken = until
