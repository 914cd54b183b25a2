"""Plan: choose the channels to keep so that all targets of a recipe are met."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from onnx import NodeProto

from onnxprune.allocators.allocate import allocate
from onnxprune.allocators.base import Constraints
from onnxprune.analysis.groups import Analysis
from onnxprune.criteria.base import Context
from onnxprune.criteria.dead import dead_channels
from onnxprune.criteria.memo import Kind
from onnxprune.criteria.swap import swapped
from onnxprune.engines import ENGINES
from onnxprune.engines.bench import bench
from onnxprune.engines.cost.latency import Probe
from onnxprune.engines.cost.savings import group_savings
from onnxprune.engines.measure import NOISE_LIMIT, Schedule
from onnxprune.errors import TargetError, UsageError
from onnxprune.ir.io import Model
from onnxprune.ir.nodes import attribute
from onnxprune.report.data import Costs, LatencyRow, TargetRow
from onnxprune.run.adapter import (
    constraints_for,
    counted_budgets,
    engine_options,
    engines_of,
)
from onnxprune.run.recipe import Recipe
from onnxprune.run.target import Target
from onnxprune.run.timed_form import probe_options
from onnxprune.run.tuner import Tuner
from onnxprune.search import METHODS, ONE_SHOT
from onnxprune.search.base import Search
from onnxprune.search.journal import Journal
from onnxprune.types import Plan, Scores

# measures again, for longer, a plan that meets a latency by the short probes of the search
CONFIRM = Schedule(seconds=1.5, warmup=5)
CONFIRM_ROUNDS = 4
PRECISE = 0.01  # half-width of the interval of a speed-up at which measuring ends
LATENCY_SLACK = 0.05  # a plan that is faster than asked by more has lost channels for nothing
COUNT_SLACK = 0.005  # excess over a counted target that passes as rounding
Feeds = Mapping[str, np.ndarray]
_DEAD = Kind[Mapping[str, np.ndarray]]("dead channels")


def _ignore(text: str) -> None:
    """Report no progress."""


@dataclass(frozen=True)
class PlanInputs:
    """What a plan may need besides the context, the scores and the recipe.

    Attributes
    ----------
    feeds
        One batch to measure latencies with; random values if None.
    progress
        Receives one line per step.
    journal
        Measurements of a search method.
    tuner
        Tunes between the rounds of a search method.
    """

    feeds: Feeds | None = None
    progress: Callable[[str], None] = _ignore
    journal: Journal = field(default_factory=Journal)
    tuner: Tuner | None = None


@dataclass(frozen=True)
class _LatencyTargets:
    """Latency targets by cost ("latency.ENGINE").

    Attributes
    ----------
    probes
        Measure the latency of a plan.
    limits
        Milliseconds that the search may reach.
    shares
        Limit as a share of the original's latency. Shares hold if the machine's speed changes
        between two measurements.
    savings
        Group -> milliseconds that it is worth; empty if a counted target ranks the groups, or if
        the original meets the targets.
    slower
        Sentences on engines where the original is slower in the type of the written model.
    """

    probes: Mapping[str, Probe]
    limits: Mapping[str, float]
    shares: Mapping[str, float]
    savings: Mapping[str, float]
    slower: tuple[str, ...] = ()

    def measure(self, plan: Plan) -> dict[str, float]:
        """Return cost -> measured over allowed, measured for longer than in the search."""
        return {
            cost: probe.measure(plan.kept, CONFIRM) / self.shares[cost]
            for cost, probe in self.probes.items()
        }

    def tighten(self, excess: Mapping[str, float]) -> _LatencyTargets:
        """Return the targets with lower limits, by the factors that were missed."""
        limits = {cost: limit / max(excess[cost], 1.0) for cost, limit in self.limits.items()}
        return replace(self, limits=limits)

    def forget(self) -> None:
        """Have every plan measured again: a disturbance has misled the search."""
        for probe in self.probes.values():
            probe.forget()


def decide(
    context: Context, scores: Scores, recipe: Recipe, inputs: PlanInputs | None = None
) -> Plan:
    """Return the plan that removes least and meets every target.

    Latencies are measured on cut models, interleaved with the original, at every width that the
    search visits; groups are ranked by the time of their layers, measured alone. The final plan
    is measured for longer. If it misses a target, the limit is tightened by the excess and the
    search repeated; if it is much faster than asked or much slower, with all plans measured anew.

    Raises
    ------
    TargetError
        There is no such plan; the message says what is reachable.
    UsageError
        Swaps with a criterion that does not support them.
    """
    if recipe.swaps and recipe.criterion != "reconstruction":
        raise UsageError(
            "swaps-criterion",
            f"--swaps needs criterion 'reconstruction', not {recipe.criterion!r}: omit --swaps",
        )
    inputs = inputs or PlanInputs()
    constraints = counted_constraints(context, recipe)
    # open for all rounds: a probe measures the original when it is opened
    with _open_latency_targets(context.analysis, recipe, inputs) as latency:
        try:
            plan = _search(context, scores, recipe, inputs, constraints, latency)
        except TargetError as problem:
            # the reason is then another one than the limits that the message names
            raise TargetError(
                problem.code, "\n  ".join([problem.message, *latency.slower])
            ) from None
    method: dict[str, Any] = {"allocate": recipe.allocate}
    if recipe.method != ONE_SHOT:
        method = {"method": recipe.method, "method_option": dict(recipe.method_option)}
    if context.analysis.origin:
        method["low_rank"] = True
    decided_by = {"criterion": recipe.criterion, **method, "seed": recipe.seed}
    # what the allocator or the search has recorded itself remains
    return replace(plan, decided_by={**plan.decided_by, **decided_by})


def counted_constraints(context: Context, recipe: Recipe) -> Constraints:
    """Return the constraints of a recipe without those on latencies."""
    budgets = counted_budgets(recipe, context.analysis.original.cost().as_dict())
    depthwise = any(map(_is_depthwise, context.analysis.model.proto.graph.node))
    return constraints_for(recipe, budgets, depthwise, dead=find_dead(context, recipe))


def _is_depthwise(node: NodeProto) -> bool:
    """Return whether a node is a grouped convolution, most of which are depthwise."""
    return node.op_type == "Conv" and attribute(node, "group", 1) > 1


@contextmanager
def _open_latency_targets(
    analysis: Analysis, recipe: Recipe, inputs: PlanInputs
) -> Iterator[_LatencyTargets]:
    """Open a probe per latency target; the first engine ranks groups if no cost is counted."""
    options = engine_options(recipe)
    targets = [target for target in recipe.target if target.engine]
    with ExitStack() as stack:
        probes: dict[str, Probe] = {}
        slower: list[str] = []
        for target in targets:
            engine = ENGINES.get(target.engine)
            form = probe_options(engine, analysis.model, recipe, inputs.feeds)
            probe = Probe(engine, analysis, options, feeds=inputs.feeds, **form)
            probes[f"latency.{target.engine}"] = stack.enter_context(probe)
            _check_noise(probe, target)
            if form and probe({}) > probe.original_ms:
                slower.append(_explain_slower(probe, recipe, target.engine))
                inputs.progress(slower[-1])
        limits = {
            f"latency.{target.engine}": target.ceiling(
                probes[f"latency.{target.engine}"].original_ms
            )
            for target in targets
        }
        savings: Mapping[str, float] = {}
        # otherwise the counted cost ranks the groups, without a measurement of each
        missed = any(probes[cost]({}) > limit for cost, limit in limits.items())
        if missed and len(targets) == len(recipe.target):
            engine = ENGINES.get(targets[0].engine)
            savings = group_savings(engine, analysis, options, progress=inputs.progress)
        shares = {cost: limit / probes[cost].original_ms for cost, limit in limits.items()}
        yield _LatencyTargets(probes, limits, shares, savings, tuple(slower))


def _explain_slower(probe: Probe, recipe: Recipe, engine: str) -> str:
    """Return that the original is slower in the type of the written model."""
    return (
        f"The original in {recipe.quantize} runs at {probe.original_ms / probe({}):.2f}x the speed "
        f"of float on {engine} of this machine: omit --quantize to time float models."
    )


def _check_noise(probe: Probe, target: Target) -> None:
    """Raise TargetError if the original's time against itself varies too much to search by it."""
    noise = probe.noise
    if noise > NOISE_LIMIT:  # a disturbance may have ended
        noise = probe.measure_noise(CONFIRM)
    if noise > NOISE_LIMIT:
        raise TargetError(
            "machine-noisy",
            f"the time of the original on {target.engine} varies by {noise:.0%} against itself on "
            f"this machine (limit {NOISE_LIMIT:.0%}), too much to meet {target}: end other "
            "programs, use --bench-threads 1, or set a target on macs",
        )


def _search(
    context: Context,
    scores: Scores,
    recipe: Recipe,
    inputs: PlanInputs,
    constraints: Constraints,
    latency: _LatencyTargets,
) -> Plan:
    """Return the plan that meets all latencies with least to spare, or that of the last round."""
    if not latency.limits:
        # allocators pass over the data many times, so the share of each pass is of no use
        inputs.progress("")
        return _plan_once(context, scores, recipe, inputs, constraints)
    constraints = replace(constraints, savings=latency.savings, measures=latency.probes)
    best: tuple[float, Plan] | None = None
    plans: list[Plan] = []
    # bounded, because timings of a busy machine may never agree; the report warns of a miss
    for number in range(1, CONFIRM_ROUNDS + 1):
        inputs.progress(f"latency search, round {number} of at most {CONFIRM_ROUNDS}")
        budgets = {**constraints.budgets, **latency.limits}
        plan = _plan_once(context, scores, recipe, inputs, replace(constraints, budgets=budgets))
        excess = latency.measure(plan)
        worst = max(excess.values())
        if worst <= 1 and (best is None or worst > best[0]):
            best = worst, plan
        # the search may have no widths between two plans, or a counted target rules
        if 1 - LATENCY_SLACK <= worst <= 1 or any(plan.kept == other.kept for other in plans):
            break
        plans.append(plan)
        if abs(worst - 1) > LATENCY_SLACK:
            latency.forget()
        latency = latency.tighten(excess)
    return plan if best is None else best[1]


def _plan_once(
    context: Context,
    scores: Scores,
    recipe: Recipe,
    inputs: PlanInputs,
    constraints: Constraints,
) -> Plan:
    """Return the plan of the allocator or of the search method, with swaps if asked for."""
    if recipe.method == ONE_SHOT:
        plan = allocate(recipe.allocate, context, scores, constraints)
    else:
        search = _build_search(context, recipe, inputs, constraints)
        plan = METHODS.get(recipe.method)(search)
    return swapped(context, plan, recipe.swaps) if recipe.swaps else plan


def _build_search(
    context: Context, recipe: Recipe, inputs: PlanInputs, constraints: Constraints
) -> Search:
    """Return what a search method is called with."""
    # an option that is absent has the method's own default
    options: dict[str, Any] = dict(recipe.method_option)
    if recipe.losses:
        options["losses"] = recipe.losses
    search = Search(
        context,
        constraints,
        recipe.criterion,
        recipe.allocate,
        options,
        inputs.journal,
        inputs.progress,
        engine_options=engine_options(recipe),
    )
    for engine in engines_of(recipe)[:1]:
        search = replace(search, engine=engine)
    if inputs.tuner is None:
        return search
    return replace(search, tune=inputs.tuner, on_model=inputs.tuner.accept)


def find_dead(context: Context, recipe: Recipe) -> Mapping[str, np.ndarray]:
    """Return group -> indices of channels that have no effect, computed once per context.

    With a repair, these include channels with constant values, which a bias replaces.
    """
    constants = recipe.repair != "none"
    return context.memoize(_DEAD, lambda: dead_channels(context, constants=constants), constants)


def measure_models(
    models: Mapping[str, Model],
    recipe: Recipe,
    feeds: Feeds,
    progress: Callable[[str, float], None],
    layers: bool = True,
) -> dict[str, Any]:
    """Measure models by name on the recipe's engines, interleaved; the first is the base.

    Parameters
    ----------
    progress
        Receives one line per step and the least number of seconds that are left.
    layers
        Profile each layer too.
    """
    engines = engines_of(recipe)
    # at least: compilation and warm-up come on top
    left_s = len(models) * len(engines) * recipe.seconds
    report = bench(
        # bench names models after their paths, which may be equal or missing
        [replace(model, path=Path(name)) for name, model in models.items()],
        engines,
        options=engine_options(recipe),
        schedule=Schedule(seconds=recipe.seconds, precise=PRECISE),
        feeds=feeds,
        layers=layers,
        seed=recipe.seed,
        progress=lambda text: progress(text, left_s),
    )
    return report.as_dict()


def tighten_targets(recipe: Recipe, before: Costs, after: Costs) -> Recipe | None:
    """Return the recipe with counted targets lowered by the factors that the artifact misses.

    A repair adds biases, and a cut constants, that no plan counts. None if no target is missed, or
    if plans are not repeated: those of searches and measured latencies take too long, and a
    tolerance has targets of its own.
    """
    repeatable = recipe.method == ONE_SHOT and not any(t.engine for t in recipe.target)
    if not repeatable or recipe.max_divergence is not None:
        return None
    missed = _find_missed_targets(recipe, before, after)
    if not missed:
        return None
    targets = []
    for target in recipe.target:
        if target not in missed:
            targets.append(str(target))
            continue
        share = target.ceiling(before[target.cost]) / max(before[target.cost], 1)
        # a further tenth of a percent, because widths are whole numbers
        excess = after[target.cost] / max(target.ceiling(before[target.cost]), 1) + 0.001
        targets.append(f"{target.cost}={100 * share / excess:.6g}%")
    return recipe.but({"target": targets})


def check_targets(recipe: Recipe, before: Costs, after: Costs, counted_at: str) -> None:
    """Check that the artifact meets every counted target, up to rounding.

    Raises
    ------
    TargetError
        It misses one; the message says what was reached.
    """
    if recipe.max_divergence is not None:  # a tolerance may stop before the targets
        return
    for target in _find_missed_targets(recipe, before, after)[:1]:
        total = max(before[target.cost], 1)
        # the message suggests a target that is lower by the excess, as `tighten_targets` does
        allowed, reached = target.ceiling(total) / total, after[target.cost] / total
        raise TargetError(
            "target-missed",
            f"target {target} is missed: the repaired model has {reached:.1%} of the original's "
            f"{target.cost} at {counted_at}, {allowed:.1%} are allowed. The cut and the repair "
            "added to what the plan keeps (biases, constants, copies of shared weights); set "
            f"--target {target.cost}={100 * allowed**2 / reached:.3g}% or --repair none",
        )


def _find_missed_targets(recipe: Recipe, before: Costs, after: Costs) -> list[Target]:
    """Return the counted targets that are exceeded by more than rounding."""
    counted = [target for target in recipe.target if not target.engine]
    return [
        target
        for target in counted
        if after[target.cost] > target.ceiling(before[target.cost]) * (1 + COUNT_SLACK)
    ]


def target_rows(
    recipe: Recipe, before: Costs, after: Costs, latency: Mapping[str, LatencyRow]
) -> tuple[TargetRow, ...]:
    """Return each target with the allowed and the reached cost."""
    rows = []
    for target in recipe.target:
        if target.engine:
            times = latency.get(target.engine)
            original, reached = (times.before_ms, times.after_ms) if times else (0.0, 0.0)
        else:
            original, reached = before[target.cost], after[target.cost]
        rows.append(TargetRow(str(target), target.ceiling(original), reached))
    return tuple(rows)
