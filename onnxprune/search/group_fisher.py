"""Group Fisher pruning: again and again the globally least important channels, importance being the squared mask gradient over what a channel costs.

Source: Liu et al. 2021, "Group Fisher Pruning for Practical Network Compression", and METHODS.md section 3. Without training: the same loop on
calibration data, with a fresh backward pass over other inputs after each few channels, and labels drawn from the original model: the true ones'
gradients also say how far what is left is from where it should be, those of the smaller model's own labels do not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnxprune.allocate.base import ordered
from onnxprune.calibrate.gradients import BATCHES
from onnxprune.engines.channel_costs import NORMALIZATIONS, channel_costs
from onnxprune.engines.layers import LatencyCache
from onnxprune.errors import UsageError, unknown
from onnxprune.saliency import CRITERIA
from onnxprune.saliency.gradient import fisher
from onnxprune.search.base import Search, part, settings
from onnxprune.search.compose import Smaller, smaller
from onnxprune.types import Plan, Scores

LABELS = ("original", "own")  # of the model as it came, or of the smaller one that is scored
STEPS = 50  # re-scorings of a whole network, where `step` does not say it


@dataclass(frozen=True)
class Settings:
    """normalization: of NORMALIZATIONS, what a channel's importance is divided by; step: channels between two scorings, 0 = a fiftieth of all;
    interval: batches that a scoring looks at; labels: of LABELS, whose outputs labels are drawn from; engine: whose latency, "" = the first that the
    run measures on."""

    normalization: str = "flops"
    step: int = 0
    interval: int = 10
    labels: str = "original"
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
    analysis = search.analysis
    kept = search.fixed(CRITERIA.get("l2")(search.context)) if search.constraints.ratios else {}
    fixed, number = frozenset(kept), 0
    count = chosen.step or max(1, sum(g.size for g in analysis.groups) // STEPS)
    cache = LatencyCache()
    known: dict[str, Any] = {}
    while not search.met(kept):
        search.tell(f"group-fisher, step {number + 1}, {analysis.cost(kept).macs / max(analysis.cost().macs, 1):.1%} of the MACs left")
        step = smaller(analysis, kept)
        scores = _scores(search, chosen, step, number, known)
        costs = _costs(search, chosen, step, number, cache)
        gone: dict[str, set[int]] = {}
        removed = 0
        for bundle in _least(search, step, scores, costs, fixed):
            gone.setdefault(bundle.group, set()).update(bundle.channels)
            removed += len(bundle.channels)
            left = {n: [c for c in range(step.analysis.group(n).size) if c not in g] for n, g in gone.items()}
            kept = step.composed(left)
            if removed >= count or search.met(kept):
                break
        if not removed:
            raise search.missed(kept, "group-fisher: every group is at its least width")
        number += 1
    return search.plan(kept, method="group-fisher", steps=number, normalization=chosen.normalization)


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
    name = f"step {number} {step.analysis.digest}"
    if not search.journal.has(name):
        data = part(search.context.required_data("method group-fisher"), chosen.interval * search.context.batch_size, number)
        here = replace(search.context, analysis=step.analysis, data=data, seed=search.context.seed + number, cache=dict(known))
        teacher = search.analysis.model if chosen.labels == "original" else None
        found = fisher(here, teacher) if search.criterion == "auto" else CRITERIA.get(search.criterion)(here)
        known.update({n: v for n, v in here.cache.items() if n.startswith(BATCHES)})
        search.journal.write(name, {"scores": {n: np.asarray(v, np.float64).tolist() for n, v in found.items()}})
    return {n: np.asarray(v) for n, v in search.journal.recall(name, dict)["scores"].items()}


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
