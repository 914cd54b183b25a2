"""Models to compare the written one with: trade-off curve and random controls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from onnxprune.criteria import CRITERIA
from onnxprune.errors import TargetError
from onnxprune.report.data import CurvePoint, Figures, MetricFigure
from onnxprune.run.evaluation import Evaluation
from onnxprune.run.planning import find_dead
from onnxprune.run.recipe import Recipe
from onnxprune.run.variants import Variants, dependencies, plan_key
from onnxprune.search.base import keep_best
from onnxprune.types import Plan

CURVE = (0.8, 0.7, 0.6, 0.5, 0.4)  # shares of the MACs
RELATIVE_ERROR = "relative output error"


def build_curve(
    variants: Variants, recipe: Recipe, plan: Plan, evaluation: Evaluation
) -> tuple[list[CurvePoint], list[str]]:
    """Return the trade-off curve in ascending order of MACs, and the points that failed.

    Parameters
    ----------
    plan, evaluation
        Of the written model, which is a point as well, as is the original.
    """
    points, problems = [], []
    written = plan_key(recipe, plan)
    for share in CURVE:
        label = f"macs={share:.0%}"
        row = _measure_point(variants, recipe.but({"target": label}), share, written)
        if row["problem"]:
            problems.append(f"trade-off curve: {row['problem']}")
        # the written model is added below with the figures of its evaluation
        elif row["plan"] != written:
            points.append(_make_point(label, row["macs"], Figures.from_json(row)))
    label = ", ".join(str(target) for target in recipe.target)
    own = _make_point(label, variants.macs_share(plan), _collect_own_figures(evaluation))
    points.append(replace(own, chosen=True))
    points.append(_make_point("original", 1.0, _original_figures(evaluation)))
    if all(point.quality is None for point in points):
        problems.append(
            "trade-off curve: quality not measured, because no calibration inputs could be held "
            "out; give at least 8 different ones"
        )
    return sorted(points, key=lambda point: point.macs), problems


def _make_point(label: str, macs: float, figures: Figures) -> CurvePoint:
    """Return a point whose plotted measure is the first metric, or without, the output error."""
    metric, quality = RELATIVE_ERROR, figures.relative_error
    for name in list(figures.metrics)[:1]:
        metric, quality = name, figures.metrics[name].value
    return CurvePoint(
        label,
        macs,
        figures.relative_error,
        figures.agreement,
        figures.metrics,
        metric=metric,
        quality=quality,
    )


def _measure_point(
    variants: Variants, variant: Recipe, share: float, written: str
) -> Mapping[str, Any]:
    """Build and measure one model; the written one, if its plan is the same, is not repeated."""

    def work() -> Mapping[str, Any]:
        try:
            plan = variants.plan(variant)
        # an unreachable point is no reason to fail a run whose model is complete
        except TargetError as problem:
            return {"problem": problem.message.splitlines()[0], "plan": ""}
        name = plan_key(variant, plan)
        row = {"problem": "", "plan": name, "macs": variants.macs_share(plan)}
        if name == written:
            return row
        figures = variants.measure(variants.repair(variant, plan), variant)
        return {**row, **figures.to_json()}

    return variants.do(f"curve {share:.0%}", work, _list_dependencies(variants, variant, written))


def _collect_own_figures(evaluation: Evaluation) -> Figures:
    """Return the figures of the written model."""
    metrics = {
        name: MetricFigure(row.after, row.standard_error)
        for name, row in evaluation.quality.items()
    }
    return Figures(evaluation.fidelity.relative_error, evaluation.fidelity.agreement, metrics)


def _original_figures(evaluation: Evaluation) -> Figures:
    """Return the figures of the original, whose outputs equal themselves."""
    fidelity = evaluation.fidelity
    metrics = {name: MetricFigure(row.before) for name, row in evaluation.quality.items()}
    return Figures(
        None if fidelity.relative_error is None else 0.0,
        None if fidelity.agreement is None else 1.0,
        metrics,
    )


def build_controls(
    variants: Variants, recipe: Recipe, plan: Plan
) -> tuple[list[Figures], list[Figures]]:
    """Return the figures of models with the plan's widths and random channels.

    Returns
    -------
    With the recipe's repair, and without any: how much the choice of channels and the repair
    contribute. The second list is empty if the recipe has no repair.
    """
    depends = _list_dependencies(variants, recipe, plan_key(recipe, plan))
    bare = recipe.but({"repair": "none"})
    repaired, unrepaired = [], []
    for number in range(1, recipe.control + 1):
        # the default binds this control's number, whenever the stage calls the function
        def work(number: int = number) -> Mapping[str, Any]:
            random_plan = _draw_plan(variants, recipe, plan, number)
            row = {}
            if recipe.repair != "none":
                row["unrepaired"] = variants.measure(
                    variants.repair(bare, random_plan), bare
                ).to_json()
            # last, so that the stage's line shows these figures
            return row | variants.measure(variants.repair(recipe, random_plan), recipe).to_json()

        row = variants.do(f"control {number}", work, depends)
        # absent in artifacts of earlier versions
        if without := row.pop("unrepaired", None):
            unrepaired.append(Figures.from_json(without))
        repaired.append(Figures.from_json(row))
    return repaired, unrepaired


def _draw_plan(variants: Variants, recipe: Recipe, plan: Plan, number: int) -> Plan:
    """Return the plan with random channels; dead ones are removed first, as in the plan."""
    context = variants.context
    criterion = CRITERIA.get("random")
    # other channels per control, and the same ones whenever the run is repeated
    random_scores = criterion(replace(context, seed=context.seed + number))
    scores = {name: np.array(values) for name, values in random_scores.items()}
    for name, index in find_dead(context, recipe).items():
        # below all random scores, which are between 0 and 1
        scores[name][index] = -1.0
    kept = {name: keep_best(scores[name], len(channels)) for name, channels in plan.kept.items()}
    return replace(plan, kept=kept, decided_by={"criterion": "random", "number": number})


def _list_dependencies(variants: Variants, recipe: Recipe, written: str) -> dict[str, Any]:
    """Return what a model that is measured on held-out inputs depends on."""
    return {
        **dependencies(recipe, "decoder", "class_offset", "metric"),
        "labels": variants.report_labels_key(),
        # a point with the written model's plan holds no figures of its own
        "written": written,
    }
