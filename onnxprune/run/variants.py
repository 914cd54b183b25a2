"""Build and measure models for alternative recipes from one analysis, scores and data.

Scores, statistics and an allocator's ranking are computed once; each model costs a cut, a repair
and a measurement. The figures are kept in the run directory, so that an interrupted run resumes
after the last model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from onnxprune.criteria import CRITERIA
from onnxprune.criteria.base import Context
from onnxprune.files import hash_key
from onnxprune.ir.io import Model
from onnxprune.metrics.base import plain
from onnxprune.repair import REPAIRS
from onnxprune.report.data import Figures, MetricFigure
from onnxprune.run.evaluation import compare_outputs, measure_metrics
from onnxprune.run.planning import decide
from onnxprune.run.recipe import Recipe
from onnxprune.run.splits import Splits
from onnxprune.run.stages import Stages, json_artifact
from onnxprune.run.stored import describe_added
from onnxprune.surgery.cut import cut
from onnxprune.types import Plan, Scores


@dataclass(frozen=True)
class Variants:
    """Builder of the models of one run.

    Attributes
    ----------
    scores
        By criterion, as far as computed.
    built
        The last repaired model, by `plan_key`, so that a chosen one is not built twice.
    """

    stages: Stages
    source: Model
    context: Context
    splits: Splits
    scores: dict[str, Scores] = field(default_factory=dict)
    built: dict[str, Model] = field(default_factory=dict)

    def scores_of(self, criterion: str) -> Scores:
        """Return the scores of a criterion, computed once."""
        if criterion not in self.scores:
            self.scores[criterion] = CRITERIA.get(criterion)(self.context)
        return self.scores[criterion]

    def plan(self, recipe: Recipe) -> Plan:
        """Return the plan of a recipe with counted targets."""
        return decide(self.context, self.scores_of(recipe.criterion), recipe)

    def repair(self, recipe: Recipe, plan: Plan, pruned: Model | None = None) -> Model:
        """Return the repaired model of a plan; `pruned` is its cut, if there is one already."""
        name = plan_key(recipe, plan)
        if name not in self.built:
            model = pruned = pruned or cut(self.context.analysis, plan)
            # only one model is kept, because models may be large
            self.built.clear()
            if recipe.repair != "none":
                model = REPAIRS.get(recipe.repair)(
                    self.context.analysis, plan, pruned, self.context
                )
                self.stages.detail(describe_added(pruned, model))
            self.built[name] = model
        return self.built[name]

    def measure(self, model: Model, recipe: Recipe) -> Figures:
        """Return the figures of a model on the held-out inputs."""
        relative_error, agreement = None, None
        details = ["not measured: no held-out inputs"]
        if self.splits.report is not None:
            fidelity = compare_outputs(self.source, model, self.splits.report, recipe)
            relative_error, agreement = plain(fidelity.relative_error), plain(fidelity.agreement)
            # None if it is not finite
            details = [f"relative output error {or_infinite(relative_error):.3g}"]
        metrics = {}
        if self.splits.report_labels is not None:
            scores = measure_metrics(model, self.splits.report_labels, recipe)
            for name, score in zip(recipe.metric, scores, strict=True):
                metrics[name] = MetricFigure(plain(score.value), plain(score.standard_error))
        if metrics:
            details = [f"{name} {or_infinite(row.value):.4g}" for name, row in metrics.items()]
        self.stages.detail(", ".join(details))
        return Figures(relative_error, agreement, metrics)

    def do(
        self, name: str, work: Callable[[], Mapping[str, Any]], depends: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return the JSON that `work` gives, as a stage and an artifact of that name."""
        # the name as a file name: without spaces and %
        artifact = json_artifact(f"{name.replace(' ', '-').rstrip('%')}.json")
        row: Mapping[str, Any] = self.stages.do(name, work, depends, artifact)
        return dict(row)

    def report_labels_key(self) -> str:
        """Return the fingerprint of the held-out labeled inputs, "" without."""
        labels = self.splits.report_labels
        return labels.fingerprint() if labels is not None else ""

    def macs_share(self, plan: Plan) -> float:
        """Return the share of the original's MACs that a plan keeps."""
        analysis = self.context.analysis
        return analysis.cost(plan.kept).macs / max(analysis.original.cost().macs, 1)


def plan_key(recipe: Recipe, plan: Plan) -> str:
    """Return a key that is equal for equal channels and repair."""
    return hash_key(recipe.repair, {name: list(kept) for name, kept in plan.kept.items()})


def dependencies(recipe: Recipe, *names: str) -> dict[str, Any]:
    """Return the options that a variant depends on besides those of earlier stages.

    Parameters
    ----------
    names
        Options of stage "evaluate" that it depends on.
    """
    evaluate = recipe.plain("evaluate")
    return {
        **recipe.plain("plan"),
        **recipe.plain("repair"),
        "criterion": recipe.criterion,
        **{name: value for name, value in evaluate.items() if name in names},
    }


def or_infinite(value: float | None) -> float:
    """Return a figure from JSON, which holds None for what is not finite."""
    return math.inf if value is None else value
