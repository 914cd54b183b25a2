"""Quantization of a run's model, and the comparison of float and quantized models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from glob import escape
from typing import Any

from onnxprune.analysis.groups import Analysis
from onnxprune.data.dataset import Data, flips
from onnxprune.engines.devices import get_device
from onnxprune.ir.io import Model, digest
from onnxprune.ir.quantize import is_quantized
from onnxprune.metrics.base import plain
from onnxprune.quantize.half import quantize_half
from onnxprune.quantize.names import AUTO
from onnxprune.quantize.ranges import find_nodes, prepare
from onnxprune.quantize.static import quantize
from onnxprune.report.data import Costs
from onnxprune.run.adapter import engines_of
from onnxprune.run.evaluation import RESULT, compare_outputs, measure_metrics
from onnxprune.run.planning import measure_models
from onnxprune.run.quantize_options import FP16
from onnxprune.run.recipe import Recipe
from onnxprune.run.splits import Splits
from onnxprune.run.stages import Stages, json_artifact
from onnxprune.run.stored import count_artifact
from onnxprune.types import Plan

BOTH = "pruned {}"  # name of the model that is pruned and quantized
HALF_TEXT = "float16; inputs and outputs stay float32"
Progress = Callable[[float, str], None]


def quantize_for(
    model: Model,
    recipe: Recipe,
    data: Data,
    progress: Progress,
    max_divergence: float | None = None,
    *,
    pruned: bool = False,
) -> tuple[Model, dict[str, Any]]:
    """Quantize a model as a recipe says; return it with the facts of `Quantized`.

    Parameters
    ----------
    pruned
        Whether nodes of `quantize_exclude` may have been removed.
    max_divergence
        Exclude sensitive nodes until the divergence is within this limit.
    """
    if recipe.quantize == FP16:
        return quantize_half(model, data), {"form": FP16, "warnings": [], "text": HALF_TEXT}
    exclude = list(recipe.quantize_exclude)
    if pruned and exclude:
        proto = prepare(model)
        exclude = [pattern for pattern in exclude if find_nodes(proto, pattern)]
    result = quantize(
        model,
        data,
        recipe.quantize_form,
        recipe.quantize_calibrate,
        exclude,
        engine=_find_target(recipe),
        max_divergence=max_divergence,
        decoder=recipe.decoder,
        threads=recipe.compute_threads,
        progress=progress,
    )
    return result.model, {**result.facts(), "text": result.describe()}


def _find_target(recipe: Recipe) -> str:
    """Return the hand-off target of the device, else the first engine, "" without both."""
    if recipe.device is None:
        return next(iter(engines_of(recipe)), "")
    device = get_device(recipe.device)
    return device.handoff or device.engine


@dataclass(frozen=True)
class QuantizedRun:
    """Result of the stage "quantize".

    Attributes
    ----------
    facts
        For the report: those of `Quantized`, and "models" with the rows of `compare_models`;
        empty if nothing is quantized.
    """

    model: Model
    plan: Plan
    facts: Mapping[str, Any] = field(default_factory=dict)

    def count(self, costs: Costs, analysis: Analysis) -> Costs:
        """Return counted costs with the bytes of the quantized model.

        Scales and zero points are no parameters.
        """
        if not self.facts:
            return costs
        return replace(costs, bytes=count_artifact(self.model, analysis).bytes)


def calibration_inputs(recipe: Recipe, splits: Splits) -> Data:
    """Return the inputs that a model is quantized with."""
    return flips(splits.calibration) if recipe.flip else splits.calibration


def quantize_candidate(source: Model, model: Model, recipe: Recipe, splits: Splits) -> Model:
    """Return a candidate of a search in the type in which the result is written.

    The calibrator is minmax, which takes the least time; the final model gets the best one.
    """
    if recipe.quantize is None or is_quantized(source):
        return model
    if recipe.quantize_calibrate == AUTO:
        recipe = recipe.but({"quantize_calibrate": "minmax"})
    data = calibration_inputs(recipe, splits)
    return quantize_for(model, recipe, data, lambda share, text: None, pruned=True)[0]


def exclude_within(
    source: Model, recipe: Recipe, splits: Splits, limit: float, progress: Progress
) -> list[str]:
    """Return patterns of the nodes that stay float32 so that int8 alone diverges by `limit`."""
    recipe = recipe.but({"quantize_calibrate": "minmax"})
    data = calibration_inputs(recipe, splits)
    _, facts = quantize_for(source, recipe, data, progress, limit)
    given = set(recipe.quantize_exclude)
    return [*given, *(escape(name) for name in facts["excluded"] if name not in given)]


def quantize_stage(
    stages: Stages, recipe: Recipe, source: Model, pruned: Model, plan: Plan, splits: Splits
) -> QuantizedRun:
    """Quantize the pruned model and the original, and compare the four models.

    The plan gets the hash of the quantized model, so that `verify` accepts it.
    """
    if recipe.quantize is None:
        return QuantizedRun(pruned, plan)
    if is_quantized(source):
        stages.warn("the model is quantized already and stays so: --quantize has no effect")
        return QuantizedRun(pruned, plan)
    kind = recipe.quantize
    data = calibration_inputs(recipe, splits)
    stages.used = True

    def work() -> tuple[Model, dict[str, Any]]:
        model, facts = quantize_for(pruned, recipe, data, stages.progress, pruned=True)
        stages.detail(str(facts["text"]))
        return model, facts

    model, facts = stages.do("quantize", work, recipe.plain("quantize"))

    def compare() -> Mapping[str, Any]:
        dense, _ = quantize_for(source, recipe, data, stages.progress)
        models = {"float": source, kind: dense, "pruned": pruned, BOTH.format(kind): model}
        return compare_models(models, recipe, splits, stages.progress)

    chain = stages.chain
    depends = {**recipe.plain("evaluate"), **recipe.plain("measure")}
    rows = stages.do("compare quantized", compare, depends, json_artifact("quantized.json"))
    stages.chain = chain  # no later stage depends on a time
    limit = recipe.max_divergence
    warnings = [*facts["warnings"], *judge_rows(rows, BOTH.format(kind), "pruned", limit)]
    decided = {**plan.decided_by, "quantize": kind, RESULT: digest(model)}
    facts = {**facts, "models": dict(rows), "warnings": warnings}
    return QuantizedRun(model, replace(plan, decided_by=decided), facts)


def compare_models(
    models: Mapping[str, Model], recipe: Recipe, splits: Splits, progress: Progress
) -> dict[str, dict[str, Any]]:
    """Return name -> divergence, metrics, bytes and speed of models, against the first one.

    Speeds are ratios over paired rounds on each engine: median and 95 % interval.
    """
    (reference, original), *_ = models.items()
    rows: dict[str, dict[str, Any]] = {}
    for i, (name, model) in enumerate(models.items()):
        progress(i / (len(models) + 1), f"evaluating {name}")
        row: dict[str, Any] = {"bytes": model.size_bytes(), "divergence": None, "metrics": {}}
        if splits.report is not None:
            same = name == reference
            fidelity = None if same else compare_outputs(original, model, splits.report, recipe)
            row["divergence"] = plain(fidelity.divergence) if fidelity else 0.0
        if splits.report_labels is not None:
            scores = measure_metrics(model, splits.report_labels, recipe)
            for metric, score in zip(recipe.metric, scores, strict=True):
                row["metrics"][metric] = plain(score.value)
        rows[name] = {**row, "speed": {}}
    engines = engines_of(recipe)
    if engines:
        progress(1 - 1 / (len(models) + 1), "measuring latency")
        feeds = next(splits.calibration.batches(1))
        report = measure_models(models, recipe, feeds, lambda text, left_s: None, layers=False)
        for engine, ratios in report["ratios"].items():
            for ratio in ratios:
                speed = {key: ratio[key] for key in ("median", "low", "high")}
                rows[ratio["contender"]]["speed"][engine] = speed
    return rows


def judge_rows(
    rows: Mapping[str, Mapping[str, Any]], name: str, base: str, limit: float | None
) -> list[str]:
    """Return sentences about a quantized model: slower than the float one, divergence too large."""
    sentences = []
    reached = rows[name]["divergence"]
    if limit is not None and (reached is None or reached > limit):
        text = "is not finite or not measured" if reached is None else f"is {reached:.3g}"
        sentences.append(
            f"the divergence of the quantized model on held-out inputs {text}, the limit "
            f"(--max-divergence) is {limit:g}"
        )
    for engine, speed in rows[name]["speed"].items():
        # the first model has no ratio
        against = rows[base]["speed"].get(engine, {"median": 1.0, "low": 1.0})
        # the intervals of both, so that noise alone is no reason
        if speed["high"] < against["low"]:
            sentences.append(
                f"the quantized model is slower than the {base} model on {engine} of this machine "
                f"({speed['median'] / against['median']:.2f}x its speed): keep the {base} model "
                "unless it runs elsewhere"
            )
    return sentences
