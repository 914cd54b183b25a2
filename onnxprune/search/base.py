"""Inputs of a search method and helpers shared by all methods."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from onnxprune.allocators.base import Constraints, ordered, widths
from onnxprune.allocators.budgets import first_missed, unreachable
from onnxprune.allocators.steps import fixed_widths
from onnxprune.analysis.groups import Analysis
from onnxprune.criteria import CRITERIA
from onnxprune.criteria.base import Context
from onnxprune.criteria.memo import Kind
from onnxprune.data.dataset import Data
from onnxprune.engines.base import DEFAULTS as ENGINE_DEFAULTS
from onnxprune.engines.base import EngineOptions
from onnxprune.errors import TargetError, UsageError, unknown
from onnxprune.ir.io import Model
from onnxprune.search.journal import Journal
from onnxprune.statistics.moments import refittable
from onnxprune.types import Plan, Scores

Kept = dict[str, tuple[int, ...]]
# A trial runs the network on as many gate samples as fit into GATE_MACS, but on at least
# LEAST_SCORED of a model with one score row per sample, or LEAST_DENSE of one with a value per
# position, whose samples carry more information.
GATE_MACS, LEAST_SCORED, LEAST_DENSE = 1e10, 32, 8
TRUTHS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
S = TypeVar("S")
_SCORES = Kind[Scores]("scores")


@dataclass(frozen=True)
class Search:
    """Inputs of a search method.

    Attributes
    ----------
    context
        Analysis, calibration data and seed.
    constraints
        Budgets and allowed widths.
    criterion
        Name of the criterion that ranks channels within a group; "auto" = the method's default.
    allocate
        Name of the allocator, for methods that use one.
    options
        Options of the method, as text or plain values; see `settings`.
    journal
        Store of finished measurements.
    progress
        Callback that receives one line of text per step.
    engine, engine_options
        Engine that measures time, for methods that use it.
    tune
        Callback `(model, loss, epochs) -> tuned model`; None if tuning is not available.
    on_model
        Callback that receives the final model if the method changes weights itself; that model
        replaces the repair of the original.
    """

    context: Context
    constraints: Constraints
    criterion: str = "auto"
    allocate: str = "knapsack"
    options: Mapping[str, Any] = field(default_factory=dict)
    journal: Journal = field(default_factory=Journal)
    progress: Callable[[str], None] = lambda text: None
    engine: str = "onnxruntime"
    engine_options: EngineOptions = ENGINE_DEFAULTS
    tune: Callable[[Model, str, int], Model] | None = None
    on_model: Callable[[Model], None] = lambda model: None

    @property
    def tell(self) -> Callable[[str], None]:
        """Return `progress`, by the name that plug-in methods of earlier releases use."""
        warnings.warn("Search.tell is now Search.progress", DeprecationWarning, stacklevel=2)
        return self.progress

    @property
    def made(self) -> Callable[[Model], None]:
        """Return `on_model`, by the name that plug-in methods of earlier releases use."""
        warnings.warn("Search.made is now Search.on_model", DeprecationWarning, stacklevel=2)
        return self.on_model

    @property
    def analysis(self) -> Analysis:
        """Return the analysis whose groups the plan refers to."""
        return self.context.analysis

    def scores(self, default: str) -> Scores:
        """Return the scores of the chosen criterion, or of `default` for "auto"; computed once."""
        name = default if self.criterion == "auto" else self.criterion
        return self.context.memoize(_SCORES, lambda: CRITERIA.get(name)(self.context), name)

    def own_scores(self, refit: bool) -> Scores:
        """Return the scores of the chosen criterion, or the method's default scores for "auto".

        The default with `refit` is the reconstruction error of the consumers after a refit, and the
        L2 norm for groups whose consumers cannot be refitted.
        """
        if self.criterion != "auto":
            return self.scores(self.criterion)
        norms = self.scores("l2")
        if not (refit and refittable(self.analysis)):
            return norms
        return {**norms, **self.scores("reconstruction")}

    def met(self, kept: Mapping[str, Sequence[int]]) -> bool:
        """Return True if every budget is met."""
        return first_missed(self.analysis, self.constraints, kept) is None

    def gate(self, who: str) -> Data:
        """Return the inputs on which trials are judged, disjoint from those of the statistics.

        The number of samples is limited by GATE_MACS. `who` names the caller in errors.
        """
        data = self.context.gate_data(who)
        outputs = self.analysis.model.proto.graph.output
        # rank 2 is one score row per sample, more axes are values per position
        ranks = [len(self.analysis.shapes.shape(o.name) or ()) for o in outputs]
        least = LEAST_DENSE if any(rank > 2 for rank in ranks) else LEAST_SCORED
        return part(data, max(least, int(GATE_MACS / max(self.analysis.cost().macs, 1))))

    def cost(self, kept: Mapping[str, Sequence[int]]) -> float:
        """Return the cost, in the unit of the counted budget that the original exceeds most.

        MACs if no budget is on a counted cost.
        """
        original = self.analysis.cost().as_dict()
        counted = {
            cost: limit
            for cost, limit in self.constraints.budgets.items()
            if cost not in self.constraints.measures
        }
        # the budget that is hardest to meet decides the unit of savings
        unit = max(counted, key=lambda c: original[c] / max(counted[c], 1), default="macs")
        return float(self.analysis.cost(kept).as_dict()[unit])

    def excess(self, kept: Mapping[str, Sequence[int]]) -> float:
        """Return the largest excess over a counted budget, as a share of the original cost."""
        counted, original = self.analysis.cost(kept).as_dict(), self.analysis.cost().as_dict()
        shares = [
            max(counted[cost] - limit, 0) / max(original[cost], 1)
            for cost, limit in self.constraints.budgets.items()
            if cost in counted
        ]
        return max(shares, default=0.0)

    def behind_schedule(
        self, before: Mapping[str, Sequence[int]], after: Mapping[str, Sequence[int]], rounds: int
    ) -> bool:
        """Return True if a round saved less than its equal share of the excess.

        Parameters
        ----------
        before, after
            Kept channels before and after the round.
        rounds
            Rounds to meet the counted budgets in, this one included.
        """
        return self.excess(after) > self.excess(before) * (1 - 1 / rounds)

    def plan(self, kept: Mapping[str, Sequence[int]], **decided_by: Any) -> Plan:
        """Return the plan that keeps these channels."""
        return self.analysis.plan(
            {g.name: kept[g.name] for g in self.analysis.groups if g.name in kept}, **decided_by
        )

    def missed(self, kept: Mapping[str, Sequence[int]], why: str) -> TargetError:
        """Return the error of a search that ends above a budget; `why` is its last line."""
        cost = first_missed(self.analysis, self.constraints, kept) or next(
            iter(self.constraints.budgets)
        )
        error = unreachable(self.analysis, self.constraints, kept, cost)
        return TargetError(error.code, f"{error.message}\n  {why}")

    def fixed(self, scores: Scores) -> Kept:
        """Return the channels kept in groups with a ratio of the recipe, which are not searched."""
        fixed = fixed_widths(self.analysis, scores, self.constraints)
        return {n: keep_best(scores[n], width) for n, width in fixed.items() if n in scores}

    def width_near(self, size: int, ratio: float) -> int:
        """Return the allowed width nearest to `size * (1 - ratio)`; the larger one of a tie."""
        target = size * (1 - ratio)
        return min(widths(size, self.constraints), key=lambda k: (abs(k - target), -k))


def keep_best(scores: np.ndarray, count: int) -> tuple[int, ...]:
    """Return the sorted indices of the `count` best channels; of equal ones the first are kept."""
    order = ordered(np.asarray(scores, np.float64))
    return tuple(sorted(order[len(order) - count :].tolist()))


def widen_groups(
    kept: Kept,
    order: Sequence[str],
    scores: Scores,
    allowed: Callable[[str], Sequence[int]],
    met: Callable[[Kept], bool],
) -> Kept:
    """Widen each group, in order, to the largest superset of its kept channels that meets budgets.

    Parameters
    ----------
    kept
        Channels kept per group; returned unchanged if they do not meet the budgets.
    order
        Groups to widen.
    allowed
        Function of a group that returns its allowed widths.
    met
        Whether kept channels meet the budgets; monotonic in each width.
    """
    kept = dict(kept)
    for name in order:
        wider = sorted(w for w in allowed(name) if w > len(kept[name]))
        low, high = 0, len(wider)  # the first `low` of the wider widths meet the budgets
        while low < high:
            # rounded up, so that the interval shrinks when `middle` meets the budgets
            middle = (low + high + 1) // 2
            trial = _add_best(scores[name], kept[name], wider[middle - 1])
            if met({**kept, name: trial}):
                low = middle
            else:
                high = middle - 1
        if low:
            kept[name] = _add_best(scores[name], kept[name], wider[low - 1])
    return kept


def _add_best(scores: np.ndarray, kept: Sequence[int], width: int) -> tuple[int, ...]:
    """Return the kept channels and the best of the others, `width` in all."""
    values = np.asarray(scores, np.float64).copy()
    values[list(kept)] = np.inf  # kept channels rank before all others
    return keep_best(values, width)


def remaining_scores(scores: Scores, kept: Mapping[str, Sequence[int]], group: str) -> np.ndarray:
    """Return the scores of a group with -inf for channels that are removed already."""
    values = np.asarray(scores[group], np.float64)
    if group not in kept:
        return values
    masked = np.full(len(values), -np.inf)
    masked[list(kept[group])] = values[list(kept[group])]
    return masked


def part(data: Data, count: int, number: int = 0) -> Data:
    """Return the `number`-th run of `count` consecutive inputs, cyclic over the data.

    `count` is rounded down to a multiple of the batch if the model's batch size is fixed.
    """
    total, batch = len(data.chosen), data.inputs.batch or 1
    count = min(max(count - count % batch, batch), total)
    # sorted, because sources read in order faster and batches do not depend on the start
    positions = sorted((number * count + i) % total for i in range(count))
    return replace(data, chosen=tuple(data.chosen[i] for i in positions))


def settings(kind: type[S], options: Mapping[str, Any], method: str) -> S:
    """Return a settings dataclass filled from options, which may be text.

    Parameters
    ----------
    kind
        Dataclass whose fields are numbers, booleans and text, all with defaults.
    method
        Name of the method, for errors.

    Raises
    ------
    UsageError
        An option is unknown, or its value does not convert to the type of the default.
    """
    defaults = vars(kind())
    values = {}
    for name, value in options.items():
        if name not in defaults:
            raise unknown("method option", name, defaults)
        values[name] = _convert(name, value, defaults[name], method)
    return kind(**values)


def _convert(name: str, value: Any, default: Any, method: str) -> Any:
    """Return a value converted to the type of its default."""
    try:
        # bool("false") is True, so that text needs the table
        if isinstance(default, bool):
            return TRUTHS[str(value).lower()]
        return type(default)(value) if isinstance(default, (int, float, str)) else value
    except (KeyError, TypeError, ValueError):
        raise UsageError(
            "method-option",
            f"{method}: {name} is {value!r}; give a value of type {type(default).__name__}, "
            f"such as {default!r}",
        ) from None
