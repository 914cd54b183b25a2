"""From scores to the plan that meets a recipe's targets, counted and measured ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.allocators.allocate import allocate
from onnxprune.allocators.base import Constraints
from onnxprune.analysis.groups import Analysis
from onnxprune.criteria.base import Context
from onnxprune.criteria.dead import dead_channels
from onnxprune.criteria.memo import Kind
from onnxprune.criteria.swap import swapped
from onnxprune.engines import ENGINES
from onnxprune.engines.base import EngineOptions
from onnxprune.engines.bench import bench
from onnxprune.engines.cost.latency import Probe
from onnxprune.engines.cost.savings import group_savings
from onnxprune.engines.measure import Schedule
from onnxprune.errors import UsageError
from onnxprune.ir.io import Model
from onnxprune.report.data import TargetRow
from onnxprune.run.recipe import Recipe
from onnxprune.run.tuner import Tuner
from onnxprune.search import METHODS, ONE_SHOT
from onnxprune.search.base import Search
from onnxprune.search.journal import Journal
from onnxprune.types import Plan, Scores

CONFIRM = Schedule(
    seconds=1.5, warmup=5
)  # of a plan that meets a latency by the short probes of the search
CONFIRM_ROUNDS = 4
ROUND_TO = 8  # where nothing is said: a block of AVX2, half of one of AVX-512
Tell = Callable[[str], None]
Feeds = Mapping[str, np.ndarray]
_DEAD = Kind[Mapping[str, np.ndarray]]("dead channels")


def decide(
    context: Context,
    scores: Scores,
    recipe: Recipe,
    feeds: Feeds | None = None,
    tell: Tell = lambda text: None,
    journal: Journal | None = None,
    tuner: Tuner | None = None,
) -> Plan:
    """The plan that removes least and meets every target.

    What a group is worth in time comes from its layers, timed alone. A latency is measured on the cut model, interleaved with the original, at every width that the search looks at. The plan it ends with is
    measured for longer; where that falls short, the budget is tightened by as much and the search is done again.

    Parameters
    ----------
    feeds
        One batch to time with; random values where None.
    journal
        Where a search method remembers what it measured.
    tuner
        For a search method that tunes between rounds.

    Raises
    ------
    TargetError
        There is no such plan; says what can be reached.
    UsageError
        Swaps with a criterion that has no error to lower.
    """
    if recipe.swaps and recipe.criterion != "reconstruction":
        raise UsageError(
            "swaps-criterion",
            f"--swaps needs criterion 'reconstruction', not {recipe.criterion!r}: omit --swaps",
        )
    analysis = context.analysis
    original = analysis.cost().as_dict()
    budgets = {t.cost: t.ceiling(original[t.cost]) for t in recipe.target if not t.engine}
    constraints = Constraints(
        budgets=budgets,
        round_to=multiple(recipe),
        half_block=by_engine(recipe),
        floor=recipe.floor,
        max_fraction=recipe.max_fraction,
        ratios=recipe.ratio,
        dead=dead(context, recipe),
        blocks=recipe.blocks,
    )
    timed = [t for t in recipe.target if t.engine]
    with ExitStack() as stack:
        probes = {
            f"latency.{t.engine}": stack.enter_context(
                Probe(ENGINES.get(t.engine), analysis, engine_options(recipe), feeds=feeds)
            )
            for t in timed
        }
        limits = {
            f"latency.{t.engine}": t.ceiling(probes[f"latency.{t.engine}"].original_ms)
            for t in timed
        }
        if timed and not budgets:
            savings = group_savings(
                ENGINES.get(timed[0].engine), analysis, engine_options(recipe), tell=tell
            )
            constraints = replace(constraints, savings=savings)
        shares = {cost: limit / probes[cost].original_ms for cost, limit in limits.items()}
        for round_number in range(CONFIRM_ROUNDS if timed else 1):
            tell(
                f"latency search, round {round_number + 1} of at most {CONFIRM_ROUNDS}"
                if timed
                else ""
            )
            asked = replace(constraints, budgets={**budgets, **limits}, measures=probes)
            if recipe.method == ONE_SHOT:
                plan = allocate(recipe.allocate, context, scores, asked)
            else:
                own = {
                    **recipe.method_option,
                    **({"losses": recipe.losses} if recipe.losses else {}),
                }
                search = Search(
                    context,
                    asked,
                    recipe.criterion,
                    recipe.allocate,
                    own,
                    journal or Journal(),
                    tell,
                    engine_options=engine_options(recipe),
                )
                search = replace(search, engine=next(iter(engines_of(recipe)), search.engine))
                plan = METHODS.get(recipe.method)(
                    replace(search, tune=tuner, on_model=tuner.made) if tuner else search
                )
            if recipe.swaps:
                plan = swapped(context, plan, recipe.swaps)
            missed = _missed(analysis, plan, recipe, shares, feeds)
            if not missed:
                break
            limits = {cost: limit / missed.get(cost, 1.0) for cost, limit in limits.items()}
    how = (
        {"allocate": recipe.allocate}
        if recipe.method == ONE_SHOT
        else {"method": recipe.method, "method_option": dict(recipe.method_option)}
    )
    return replace(
        plan,
        decided_by={**plan.decided_by, "criterion": recipe.criterion, **how, "seed": recipe.seed},
    )


def _missed(
    analysis: Analysis, plan: Plan, recipe: Recipe, shares: Mapping[str, float], feeds: Feeds | None
) -> dict[str, float]:
    """Latencies that a longer measurement finds above their share of the original's: cost -> measured over allowed."""
    found = {}
    for cost, allowed_share in shares.items():
        engine = ENGINES.get(cost.partition(".")[2])
        with Probe(
            engine, analysis, engine_options(recipe), feeds=feeds, schedule=CONFIRM
        ) as probe:
            excess = probe(plan.kept) / (
                allowed_share * probe.original_ms
            )  # shares, because the machine may have changed its pace
        if excess > 1:
            found[cost] = excess
    return found


def dead(context: Context, recipe: Recipe) -> Mapping[str, np.ndarray]:
    """Channels that change nothing, by group; found once a context."""
    constants = recipe.repair != "none"
    return context.memoize(_DEAD, lambda: dead_channels(context, constants=constants), constants)


def multiple(recipe: Recipe) -> int:
    """`round_to` as a number; where engines decide, the largest multiple of those whose latency is a target, else of those that are measured."""
    if not by_engine(recipe):
        return recipe.round_to if isinstance(recipe.round_to, int) else ROUND_TO
    names = [t.engine for t in recipe.target if t.engine] or engines_of(recipe)
    return max(
        (int(ENGINES.get(name).channel_multiple(recipe.precision)) for name in names), default=1
    )


def by_engine(recipe: Recipe) -> bool:
    """Whether widths follow the engines' multiples: asked for, or not said and the target is a latency."""
    return (
        recipe.round_to == "auto"
        or recipe.round_to is None
        and any(t.engine for t in recipe.target)
    )


def engines_of(recipe: Recipe) -> list[str]:
    """Engines that are targeted or measured on; layers are timed and explained on the first."""
    return list(dict.fromkeys((*(t.engine for t in recipe.target if t.engine), *recipe.engine)))


def engine_options(recipe: Recipe) -> EngineOptions:
    """How engines compile and run."""
    return EngineOptions(
        threads=recipe.threads, precision=recipe.precision, cores=recipe.pin, shapes=recipe.shape
    )


def measured(
    source: Model, pruned: Model, recipe: Recipe, feeds: Feeds, tell: Callable[[str, float], None]
) -> dict[str, Any]:
    """Both models on the recipe's engines, interleaved; `tell` is given what is going on and how many seconds it takes at least."""
    named = [
        replace(model, path=Path(name))
        for model, name in ((source, "original"), (pruned, "pruned"))
    ]
    engines = engines_of(recipe)
    left_s = len(named) * len(engines) * recipe.seconds
    found = bench(
        named,
        engines,
        options=engine_options(recipe),
        schedule=Schedule(seconds=recipe.seconds),
        feeds=feeds,
        seed=recipe.seed,
        progress=lambda text: tell(text, left_s),
    )
    return found.as_dict()


def target_rows(
    recipe: Recipe,
    before: Mapping[str, int],
    after: Mapping[str, int],
    latency: Mapping[str, Mapping[str, float]],
) -> tuple[TargetRow, ...]:
    """Each target with what it allowed and what was reached."""
    rows = []
    for target in recipe.target:
        times = latency.get(target.engine, {})
        was = times.get("before_ms", 0.0) if target.engine else before[target.cost]
        now = times.get("after_ms", 0.0) if target.engine else after[target.cost]
        rows.append(TargetRow(str(target), target.ceiling(was), now))
    return tuple(rows)
