"""Group Fisher pruning: repeatedly remove the globally least important channels per cost.

Source: Liu et al. (2021), "Group Fisher Pruning for Practical Network Compression".

As published
    The importance of a channel is the squared gradient of a mask shared by all coupled copies,
    summed over samples and divided by what the channel costs. After every few channels, importance
    is computed again on the smaller network.

Changed
    The published loop trains between two scorings and needs labels. Here the loop runs on
    calibration data: weights that consume removed channels are refitted in closed form (`refit`),
    so that importance is that of channels in a network that compensates for the others. Labels are
    drawn from the model, which makes importance the Fisher information; its mean over all scorings
    so far is used (`average`). Several channels are removed per scoring (`step`), and widths are
    allowed ones throughout.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from onnxprune.allocators.base import ordered
from onnxprune.autodiff import Loss
from onnxprune.criteria import CRITERIA
from onnxprune.criteria.gradient import fisher, head_losses, taylor
from onnxprune.criteria.memo import Memo
from onnxprune.data.dataset import Data
from onnxprune.engines.cost.channel_costs import NORMALIZATIONS, channel_costs
from onnxprune.engines.cost.layers import LatencyCache
from onnxprune.errors import UsageError, unknown
from onnxprune.files import hash_key
from onnxprune.search.base import Kept, Search, part, settings
from onnxprune.search.compose import Origin, Reduced, reduce_model
from onnxprune.search.refitted import Refitted
from onnxprune.statistics.moments import refittable
from onnxprune.types import Plan, Scores

# criteria that sum over output heads: they get the losses of the original model's heads, so that
# the heads keep their units at every step
GRADIENTS = {"auto": fisher, "fisher": fisher, "taylor": taylor}
STEPS = 50  # scorings until all channels are removed, if `step` is 0


@dataclass(frozen=True)
class GroupFisherSettings:
    """Options of the method.

    Attributes
    ----------
    normalization
        Cost that importance is divided by, of NORMALIZATIONS.
    step
        Channels removed between two scorings; 0 = a fiftieth of all channels.
    interval
        Number of batches per scoring.
    refit
        Score the smaller model with refitted weights.
    average
        Use the mean importance over all scorings so far.
    engine
        Engine that measures latency; "" = the first that the run measures on.
    """

    normalization: str = "flops"
    step: int = 0
    interval: int = 10
    refit: bool = True
    average: bool = True
    engine: str = ""

    def __post_init__(self) -> None:
        """Raise UsageError if a value is out of range."""
        if self.normalization not in NORMALIZATIONS:
            raise unknown("normalization", self.normalization, NORMALIZATIONS)
        if self.step < 0 or self.interval < 1:
            raise UsageError(
                "method-option",
                f"group-fisher: step {self.step} must be 0 or more, interval {self.interval} at "
                "least 1",
            )


@dataclass(frozen=True)
class ChannelBundle:
    """The next channels of a group to remove together, from one allowed width to the next.

    Attributes
    ----------
    group
        Group of the reduced model.
    channels
        Indices within the group.
    value
        Importance over cost.
    """

    group: str
    channels: tuple[int, ...]
    value: float


def group_fisher(search: Search) -> Plan:
    """Return the plan of as many steps as the budget needs.

    Raises
    ------
    TargetError
        Every group is at its least width and the budget is not met.
    UsageError
        An option is invalid.
    """
    chosen = settings(GroupFisherSettings, search.options, "group-fisher")
    analysis = search.analysis
    kept = search.fixed(CRITERIA.get("l2")(search.context)) if search.constraints.ratios else {}
    fixed, number = frozenset(kept), 0
    count = chosen.step or max(1, sum(g.size for g in analysis.groups) // STEPS)
    cache, scorer = LatencyCache(), _Scorer(search, chosen)
    while not search.met(kept):
        left = analysis.cost(kept).macs / max(analysis.cost().macs, 1)
        search.progress(f"group-fisher step {number + 1}, {left:.1%} of the MACs left")
        # scores are of the model as cut so far, so that they account for the earlier steps
        reduced, scores = scorer(kept, number)
        costs = _compute_channel_costs(search, chosen, reduced, number, cache)
        removed: dict[str, set[int]] = {}
        removed_count = 0
        for bundle in _order_by_value(search, reduced, scores, costs, fixed):
            # indices of the reduced model, which `compose` translates to those of the original
            removed.setdefault(bundle.group, set()).update(bundle.channels)
            removed_count += len(bundle.channels)
            kept = reduced.compose(_complement(reduced, removed))
            # the budget is checked per bundle, so that the last step does not overshoot
            if removed_count >= count or search.met(kept):
                break
        if not removed_count:
            raise search.missed(kept, "group-fisher: every group is at its least width")
        number += 1
    return search.plan(
        kept, method="group-fisher", steps=number, normalization=chosen.normalization
    )


def _complement(reduced: Reduced, removed: Mapping[str, set[int]]) -> dict[str, list[int]]:
    """Return the channels of each group that are not removed, sorted."""
    kept = {}
    for name, channels in removed.items():
        kept[name] = sorted(set(range(reduced.analysis.group(name).size)) - channels)
    return kept


@dataclass
class _Scorer:
    """Importance of the channels of smaller and smaller models.

    Attributes
    ----------
    data
        Inputs of all scorings; each uses another part.
    refitted
        Factory of the reduced models; None if weights are not refitted.
    batch_sizes
        Batch sizes at which samples do not mix, as for `mask_gradients`; determined by the first
        scoring.
    losses
        Losses of the original model's heads, computed by the first scoring.
    past
        Sum and number of the scores of each channel so far.
    """

    search: Search
    chosen: GroupFisherSettings
    data: Data = field(init=False)
    refitted: Refitted | None = field(init=False)
    batch_sizes: dict[int, int] = field(default_factory=dict)
    losses: tuple[Loss, ...] = ()
    past: dict[Origin, tuple[float, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        context = self.search.context
        self.data = context.statistics_data("method group-fisher")
        refit = self.chosen.refit and refittable(context.analysis)
        self.refitted = Refitted.of(context) if refit else None

    def __call__(self, kept: Kept, number: int) -> tuple[Reduced, Scores]:
        """Return the model that keeps these channels and the importance of its channels.

        Scores of step `number` are remembered in the journal.
        """
        # the first scoring is of the original, which needs no refit
        model = self.refitted.cut(kept) if self.refitted and kept else None
        reduced = reduce_model(self.search.analysis, kept, model)

        def measure() -> dict[str, dict[str, list[float]]]:
            scores = self.measure(reduced, number)
            return {"scores": {n: np.asarray(v, np.float64).tolist() for n, v in scores.items()}}

        rows = self.search.journal.recall(hash_key("scores", number, kept), measure)["scores"]
        scores = {n: np.asarray(v) for n, v in rows.items()}
        return reduced, self.average(reduced, scores) if self.chosen.average else scores

    def measure(self, reduced: Reduced, number: int) -> Scores:
        """Return the scores of the run's criterion on the reduced model."""
        original = self.search.context
        context = replace(
            original,
            analysis=reduced.analysis,
            data=part(self.data, self.chosen.interval * original.batch_size, number),
            seed=original.seed + number,  # fresh labels per scoring
            memo=Memo(),
        )
        if self.search.criterion not in GRADIENTS:
            return CRITERIA.get(self.search.criterion)(context)
        self.losses = self.losses or head_losses(replace(original, data=self.data))
        return GRADIENTS[self.search.criterion](context, self.losses, self.batch_sizes)

    def average(self, reduced: Reduced, scores: Scores) -> Scores:
        """Return the mean over these scores and those of the earlier scorings, per channel."""
        means = {}
        for name, values in scores.items():
            channels = reduced.origin.get(name, ())
            # a group without a counterpart in the original has no origin
            for channel, value in zip(channels, values.tolist(), strict=False):
                total, count = self.past.get(channel, (0.0, 0))
                self.past[channel] = total + value, count + 1
            if channels:
                sums = [self.past[channel] for channel in channels]
                means[name] = np.array([total / count for total, count in sums])
        return means


def _compute_channel_costs(
    search: Search,
    chosen: GroupFisherSettings,
    reduced: Reduced,
    number: int,
    cache: LatencyCache,
) -> dict[str, np.ndarray]:
    """Return the cost of each channel of the reduced model.

    Latencies are remembered in the journal, as no two measurements are equal.
    """
    if chosen.normalization != "latency":
        return channel_costs(reduced.analysis, chosen.normalization)

    def measure() -> dict[str, dict[str, float]]:
        costs = channel_costs(
            reduced.analysis,
            "latency",
            chosen.engine or search.engine,
            cache,
            options=search.engine_options,
            least={n: _compute_least_width(search, reduced, n) for n in reduced.origin},
        )
        return {"ms": {n: float(v[0]) for n, v in costs.items()}}

    ms = search.journal.recall(hash_key("latency", number, reduced.kept), measure)["ms"]
    return {g.name: np.full(g.size, ms[g.name]) for g in reduced.analysis.groups}


def _compute_least_width(search: Search, reduced: Reduced, name: str) -> int:
    """Return the least width that a group of the reduced model may have."""
    return max(reduced.widths(name, search.constraints)[-1], 1)


def _order_by_value(
    search: Search,
    reduced: Reduced,
    scores: Scores,
    costs: Mapping[str, np.ndarray],
    fixed: frozenset[str],
) -> Iterator[ChannelBundle]:
    """Yield bundles by importance over cost, the least first, and in order within a group."""
    waiting: dict[str, Iterator[ChannelBundle]] = {}
    heads: dict[str, ChannelBundle] = {}

    def advance(name: str) -> None:
        """Set the head of a group to its next bundle, if it has one."""
        bundle = next(waiting[name], None)
        if bundle is not None:
            heads[name] = bundle

    for name in scores:
        if name in reduced.origin and not reduced.original_groups(name) & fixed:
            waiting[name] = _bundles(search, reduced, name, scores[name], costs[name])
            advance(name)
    # within a group the order is fixed, so that only the next bundle of each group competes
    while heads:
        name = min(heads, key=lambda n: heads[n].value)
        yield heads.pop(name)
        advance(name)


def _bundles(
    search: Search, reduced: Reduced, name: str, scores: np.ndarray, costs: np.ndarray
) -> Iterator[ChannelBundle]:
    """Yield the channels between consecutive allowed widths of a group, least important first."""
    order, taken = ordered(scores), 0
    for width in reduced.widths(name, search.constraints):
        until = len(scores) - width
        # widths below 1 would remove the group, which a channel search may not
        if taken < until < len(scores):
            channels = order[taken:until]
            value = float(scores[channels].sum() / costs[channels].sum())
            yield ChannelBundle(name, tuple(channels.tolist()), value)
            taken = until
