"""What a search method is given, and what all of them share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from onnxprune.allocators.base import (
    Constraints,
    first_missed,
    fixed_widths,
    ordered,
    unreachable,
    widths,
)
from onnxprune.analysis.groups import Analysis
from onnxprune.criteria import CRITERIA
from onnxprune.criteria.base import Context
from onnxprune.data.dataset import Data
from onnxprune.engines.base import DEFAULTS as ENGINE_DEFAULTS
from onnxprune.engines.base import EngineOptions
from onnxprune.errors import TargetError, UsageError, unknown
from onnxprune.ir.io import Model
from onnxprune.search.journal import Journal
from onnxprune.statistics.moments import refittable
from onnxprune.types import Plan, Scores

Kept = dict[str, tuple[int, ...]]
# A trial runs the network on as many samples of the gate as these MACs allow, and at least so many: of class scores, and of outputs with a value a place.
GATE_MACS, LEAST_SCORED, LEAST_DENSE = 1e10, 32, 8
S = TypeVar("S")


@dataclass(frozen=True)
class Search:
    """A search to be done.

    context: analysis, calibration data, seed; constraints: budgets and what widths are allowed; criterion: inside of a group, "auto" = the method's own;
    options: of the method, as text or plain values; journal: remembers what was measured; allocate: the allocator, for methods that use one;
    engine, engine_options: whose time counts where a method asks for it;
    tell: told what is going on; tune: (model, loss, epochs) -> the model with tuned weights, None where there is no tuning; made: told the final model
    where the method changes weights itself, in place of a repair of the original.
    """

    context: Context
    constraints: Constraints
    criterion: str = "auto"
    allocate: str = "knapsack"
    options: Mapping[str, Any] = field(default_factory=dict)
    journal: Journal = field(default_factory=Journal)
    tell: Callable[[str], None] = lambda text: None
    engine: str = "onnxruntime"
    engine_options: EngineOptions = ENGINE_DEFAULTS
    tune: Callable[[Model, str, int], Model] | None = None
    made: Callable[[Model], None] = lambda model: None

    @property
    def analysis(self) -> Analysis:
        """What the plan speaks of."""
        return self.context.analysis

    def scores(self, own: str) -> Scores:
        """Of the criterion; `own` where none was chosen. Taken once."""
        name = own if self.criterion == "auto" else self.criterion
        if f"scores by {name}" not in self.context.cache:
            self.context.cache[f"scores by {name}"] = CRITERIA.get(name)(self.context)
        found: Scores = self.context.cache[f"scores by {name}"]
        return found

    def own_scores(self, refit: bool) -> Scores:
        """Of the criterion; where none was chosen, errors of what reads a group once it is refitted, where that can be, and norms elsewhere."""
        if self.criterion != "auto":
            return self.scores(self.criterion)
        found = self.scores("l2")
        return (
            {**found, **self.scores("reconstruction")}
            if refit and refittable(self.analysis)
            else found
        )

    def met(self, kept: Mapping[str, Sequence[int]]) -> bool:
        """Whether every budget is met."""
        return first_missed(self.analysis, self.constraints, kept) is None

    def gate(self, who: str) -> Data:
        """Inputs that say what a trial does to the outputs, apart from those that statistics are taken from: as many as GATE_MACS allow, or the least."""
        found = self.context.gate_data(who)
        outputs = (
            len(self.analysis.shapes.shape(o.name) or ())
            for o in self.analysis.model.proto.graph.output
        )
        least = LEAST_DENSE if any(rank > 2 for rank in outputs) else LEAST_SCORED
        return part(found, max(least, int(GATE_MACS / max(self.analysis.cost().macs, 1))))

    def cost(self, kept: Mapping[str, Sequence[int]]) -> float:
        """What the counted budget counts that the model as it came exceeds most; MACs where none is counted."""
        whole, counted = (
            self.analysis.cost().as_dict(),
            {
                c: most
                for c, most in self.constraints.budgets.items()
                if c not in self.constraints.measures
            },
        )
        return float(
            self.analysis.cost(kept).as_dict()[
                max(counted, key=lambda c: whole[c] / max(counted[c], 1), default="macs")
            ]
        )

    def excess(self, kept: Mapping[str, Sequence[int]]) -> float:
        """By what share of the original the counted budgets are exceeded, the worst of them; 0 = by none."""
        counted, whole = self.analysis.cost(kept).as_dict(), self.analysis.cost().as_dict()
        return max(
            (
                max(counted[c] - most, 0) / max(whole[c], 1)
                for c, most in self.constraints.budgets.items()
                if c in counted
            ),
            default=0.0,
        )

    def behind(
        self, before: Mapping[str, Sequence[int]], after: Mapping[str, Sequence[int]], rounds: int
    ) -> bool:
        """Whether a round saved less than it had to, for it and the `rounds` - 1 behind it to meet the counted budgets with as much each."""
        return self.excess(after) > self.excess(before) * (1 - 1 / rounds)

    def plan(self, kept: Mapping[str, Sequence[int]], **decided_by: Any) -> Plan:
        """The plan that keeps these channels."""
        return self.analysis.plan(
            {g.name: kept[g.name] for g in self.analysis.groups if g.name in kept}, **decided_by
        )

    def missed(self, kept: Mapping[str, Sequence[int]], why: str) -> TargetError:
        """The error of a search that ends above a budget."""
        cost = first_missed(self.analysis, self.constraints, kept) or next(
            iter(self.constraints.budgets)
        )
        error = unreachable(self.analysis, self.constraints, kept, cost)
        return TargetError(error.code, f"{error.message}\n  {why}")

    def fixed(self, scores: Scores) -> Kept:
        """What the recipe's ratios keep; these groups are not searched."""
        return {
            n: keep_best(scores[n], k)
            for n, k in fixed_widths(self.analysis, scores, self.constraints).items()
            if n in scores
        }

    def width_near(self, size: int, ratio: float) -> int:
        """The allowed width nearest to what is left when `ratio` of `size` channels goes, not more than all and not fewer than allowed."""
        want = size * (1 - ratio)
        return min(widths(size, self.constraints), key=lambda k: (abs(k - want), -k))


def keep_best(scores: np.ndarray, count: int) -> tuple[int, ...]:
    """Indices of the `count` best channels, sorted; ties keep the earlier ones."""
    order = ordered(np.asarray(scores, np.float64))
    return tuple(sorted(order[len(order) - count :].tolist()))


def relaxed(
    kept: Kept,
    order: Sequence[str],
    scores: Scores,
    allowed: Callable[[str], Sequence[int]],
    met: Callable[[Kept], bool],
) -> Kept:
    """Each group in turn with the most channels with which the budgets are still met, those that it keeps among them.

    allowed: widths that a group may have; where the budgets are not met, nothing changes.
    """
    kept = dict(kept)
    for name in order:
        wider = sorted(w for w in allowed(name) if w > len(kept[name]))
        low, high = 0, len(wider)  # so many of them can be had
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (
                (middle, high)
                if met({**kept, name: _wider(scores[name], kept[name], wider[middle - 1])})
                else (low, middle - 1)
            )
        if low:
            kept[name] = _wider(scores[name], kept[name], wider[low - 1])
    return kept


def _wider(scores: np.ndarray, kept: Sequence[int], width: int) -> tuple[int, ...]:
    """The channels that are kept and the best of the others."""
    values = np.asarray(scores, np.float64).copy()
    values[list(kept)] = np.inf
    return keep_best(values, width)


def remaining(scores: Scores, kept: Mapping[str, Sequence[int]], group: str) -> np.ndarray:
    """Scores of a group with what is gone already at the bottom."""
    values = np.asarray(scores[group], np.float64)
    if group not in kept:
        return values
    masked = np.full(len(values), -np.inf)
    masked[list(kept[group])] = values[list(kept[group])]
    return masked


def part(data: Data, count: int, number: int = 0) -> Data:
    """The `number`th `count` inputs, whole batches where the model has a fixed batch, from the beginning again after the last."""
    whole, batch = len(data.chosen), data.inputs.batch or 1
    count = min(max(count - count % batch, batch), whole)
    at = sorted((number * count + i) % whole for i in range(count))
    return replace(data, chosen=tuple(data.chosen[i] for i in at))


def settings(kind: type[S], options: Mapping[str, Any], method: str) -> S:
    """A dataclass of numbers, truths and texts from options given as text.

    Raises
    ------
    UsageError
        An unknown option, or a value that is not of its default's type.
    """
    defaults = vars(kind())
    values = {}
    for name, value in options.items():
        if name not in defaults:
            raise unknown("method option", name, defaults)
        values[name] = _read(name, value, defaults[name], method)
    return kind(**values)


def _read(name: str, value: Any, default: Any, method: str) -> Any:
    """A value in the type of its default."""
    try:
        if isinstance(default, bool):
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[
                str(value).lower()
            ]
        return type(default)(value) if isinstance(default, (int, float, str)) else value
    except (KeyError, TypeError, ValueError):
        raise UsageError(
            "method-option",
            f"{method}: {name} is {value!r}, not {type(default).__name__} such as {default!r}",
        ) from None
