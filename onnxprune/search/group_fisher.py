"""Group Fisher pruning: again and again the globally least important channels, importance being the squared mask gradient over what a channel costs.

Source: Liu et al. 2021, "Group Fisher Pruning for Practical Network Compression", and METHODS.md section 3. Without training: the same loop on
calibration data, with a fresh backward pass over other inputs after each few channels. Where the published loop trains between two scorings, the weights
that read what is gone are refitted in closed form, so that importance is that of channels in a network that has made up for the others. Labels are drawn
from the model, which makes importance the Fisher information; of it the mean over all scorings so far is taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from onnxprune.allocators.base import ordered
from onnxprune.autodiff import Loss
from onnxprune.criteria import CRITERIA
from onnxprune.criteria.gradient import fisher, head_losses, taylor
from onnxprune.data.dataset import Data
from onnxprune.engines.cost.channel_costs import NORMALIZATIONS, channel_costs
from onnxprune.engines.cost.layers import LatencyCache
from onnxprune.errors import UsageError, unknown
from onnxprune.search.base import Kept, Search, part, settings
from onnxprune.search.compose import Places, Smaller, smaller
from onnxprune.search.journal import key
from onnxprune.search.refitted import Refitted
from onnxprune.statistics.moments import refittable
from onnxprune.types import Plan, Scores

GRADIENTS = {
    "auto": fisher,
    "fisher": fisher,
    "taylor": taylor,
}  # criteria that add up output heads: at every step in the units of the whole model
STEPS = 50  # re-scorings of a whole network, where `step` does not say it


@dataclass(frozen=True)
class Settings:
    """normalization: of NORMALIZATIONS, what a channel's importance is divided by; step: channels between two scorings, 0 = a fiftieth of all;
    interval: batches that a scoring looks at; refit: score the smaller model with refitted weights; average: importance is the mean over all scorings so
    far; engine: whose latency, "" = the first that the run measures on.
    """

    normalization: str = "flops"
    step: int = 0
    interval: int = 10
    refit: bool = True
    average: bool = True
    engine: str = ""

    def __post_init__(self) -> None:
        if self.normalization not in NORMALIZATIONS:
            raise unknown("normalization", self.normalization, NORMALIZATIONS)
        if self.step < 0 or self.interval < 1:
            raise UsageError(
                "method-option",
                f"group-fisher: step {self.step} must be 0 or more, interval {self.interval} at least 1",
            )


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
    chosen, analysis = settings(Settings, search.options, "group-fisher"), search.analysis
    kept = search.fixed(CRITERIA.get("l2")(search.context)) if search.constraints.ratios else {}
    fixed, number = frozenset(kept), 0
    count = chosen.step or max(1, sum(g.size for g in analysis.groups) // STEPS)
    cache, scorer = LatencyCache(), _Scorer(search, chosen)
    while not search.met(kept):
        left = analysis.cost(kept).macs / max(analysis.cost().macs, 1)
        search.tell(f"group-fisher, step {number + 1}, {left:.1%} of the MACs left")
        step, scores = scorer(kept, number)
        costs = _costs(search, chosen, step, number, cache)
        gone: dict[str, set[int]] = {}
        removed = 0
        for bundle in _least(search, step, scores, costs, fixed):
            gone.setdefault(bundle.group, set()).update(bundle.channels)
            removed += len(bundle.channels)
            rest = {
                n: [c for c in range(step.analysis.group(n).size) if c not in g]
                for n, g in gone.items()
            }
            kept = step.composed(rest)
            if removed >= count or search.met(kept):
                break
        if not removed:
            raise search.missed(kept, "group-fisher: every group is at its least width")
        number += 1
    return search.plan(
        kept, method="group-fisher", steps=number, normalization=chosen.normalization
    )


@dataclass
class _Scorer:
    """Importance in smaller and smaller models.

    data: what scorings see, in parts; refitted: makes the models, None where weights stay as they are; known: what the first scoring found of batches;
    losses: of the whole model's heads; past: sum and number of each channel's scores.
    """

    search: Search
    chosen: Settings
    data: Data = field(init=False)
    refitted: Refitted | None = field(init=False)
    known: dict[str, Any] = field(default_factory=dict)
    losses: tuple[Loss, ...] = ()
    past: dict[Places, tuple[float, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        whole = self.search.context
        self.data = whole.statistics_data("method group-fisher")
        self.refitted = (
            Refitted.of(whole) if self.chosen.refit and refittable(whole.analysis) else None
        )

    def __call__(self, kept: Kept, number: int) -> tuple[Smaller, Scores]:
        """The model that keeps these channels, and the importance of its channels on this step's inputs, remembered."""
        step = smaller(
            self.search.analysis, kept, self.refitted.cut(kept) if self.refitted and kept else None
        )
        name, journal = key("scores", number, kept), self.search.journal
        found = journal.recall(
            name,
            lambda: {
                "scores": {
                    n: np.asarray(v, np.float64).tolist()
                    for n, v in self.measured(step, number).items()
                }
            },
        )["scores"]
        scores = {n: np.asarray(v) for n, v in found.items()}
        return step, self.averaged(step, scores) if self.chosen.average else scores

    def measured(self, step: Smaller, number: int) -> Scores:
        """By the run's criterion."""
        whole = self.search.context
        data = part(self.data, self.chosen.interval * whole.batch_size, number)
        here = replace(
            whole, analysis=step.analysis, data=data, seed=whole.seed + number, cache=self.known
        )
        if self.search.criterion not in GRADIENTS:
            return CRITERIA.get(self.search.criterion)(replace(here, cache={}))
        self.losses = self.losses or head_losses(replace(whole, data=self.data))
        return GRADIENTS[self.search.criterion](here, self.losses)

    def averaged(self, step: Smaller, scores: Scores) -> Scores:
        """Means over the scorings so far, which saw other inputs; this one is noted."""
        found = {}
        for name, values in scores.items():
            channels = step.origin.get(name, ())
            for places, value in zip(channels, values.tolist(), strict=False):
                total, count = self.past.get(places, (0.0, 0))
                self.past[places] = total + value, count + 1
            if channels:
                found[name] = np.array(
                    [self.past[places][0] / self.past[places][1] for places in channels]
                )
        return found


def _costs(
    search: Search, chosen: Settings, step: Smaller, number: int, cache: LatencyCache
) -> dict[str, np.ndarray]:
    """What a channel of the smaller model costs; times are remembered, because no two measurements are equal."""
    if chosen.normalization != "latency":
        return channel_costs(step.analysis, chosen.normalization)

    def measured() -> dict[str, dict[str, float]]:
        least = {n: _left_at_least(search, step, n) for n in step.origin}
        found = channel_costs(
            step.analysis,
            "latency",
            chosen.engine or search.engine,
            cache,
            options=search.engine_options,
            least=least,
        )
        return {"ms": {n: float(v[0]) for n, v in found.items()}}

    ms = search.journal.recall(key("latency", number, step.kept), measured)["ms"]
    return {g.name: np.full(g.size, ms[g.name]) for g in step.analysis.groups}


def _left_at_least(search: Search, step: Smaller, name: str) -> int:
    """The least width that a group of the smaller model may have."""
    return max(step.widths(name, search.constraints)[-1], 1)


def _least(
    search: Search,
    step: Smaller,
    scores: Scores,
    costs: Mapping[str, np.ndarray],
    fixed: frozenset[str],
) -> Iterator[Bundle]:
    """Bundles in ascending order of importance over cost, the later ones of a group after its earlier ones."""
    waiting = {
        name: _bundles(search, step, name, scores[name], costs[name])
        for name in scores
        if name in step.origin
    }
    heads: dict[str, Bundle] = {}
    for name, bundles in waiting.items():
        if not step.groups(name) & fixed:
            heads |= {name: b for b in [next(bundles, None)] if b is not None}
    while heads:
        name = min(heads, key=lambda n: heads[n].value)
        yield heads.pop(name)
        heads |= {name: b for b in [next(waiting[name], None)] if b is not None}


def _bundles(
    search: Search, step: Smaller, name: str, scores: np.ndarray, costs: np.ndarray
) -> Iterator[Bundle]:
    """The channels between one allowed width and the next, the least important first."""
    order, taken = ordered(scores), 0
    for width in step.widths(name, search.constraints):
        until = len(scores) - width
        if taken < until < len(scores):
            channels = order[taken:until]
            yield Bundle(
                name,
                tuple(channels.tolist()),
                float(scores[channels].sum() / costs[channels].sum()),
            )
            taken = until
