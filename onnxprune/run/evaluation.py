"""Verify a pruned model against the masked oracle and evaluate its quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxprune.analysis.groups import Analysis
from onnxprune.data.dataset import Data
from onnxprune.data.labeled import LabeledData
from onnxprune.errors import VerificationError
from onnxprune.files import write_json
from onnxprune.ir.io import Model, digest
from onnxprune.metrics import find_metric
from onnxprune.metrics.base import Metric, Score, plain
from onnxprune.metrics.compare import paired_error
from onnxprune.metrics.fidelity import Fidelity, fidelity
from onnxprune.metrics.run import measure
from onnxprune.report.data import FidelitySummary, QualityRow
from onnxprune.report.example import Example
from onnxprune.run.adapter import metric_options
from onnxprune.run.recipe import Recipe
from onnxprune.run.stages import Artifact, read_json
from onnxprune.surgery.cut import cut
from onnxprune.surgery.verify import verify
from onnxprune.types import Plan

RESULT = "result_sha256"  # in a plan's decided_by: hash of the model that its run wrote


@dataclass(frozen=True)
class Evaluation:
    """Fidelity on held-out inputs and metrics on labeled inputs; empty if not measured.

    Attributes
    ----------
    examples
        Some of these inputs with the predictions of both models.
    """

    fidelity: FidelitySummary = field(default_factory=FidelitySummary)
    quality: Mapping[str, QualityRow] = field(default_factory=dict)
    examples: Sequence[Example] = ()


def _write_evaluation(path: Path, evaluation: Evaluation) -> None:
    """Write an evaluation as JSON."""
    quality = {metric: row.to_json() for metric, row in evaluation.quality.items()}
    examples = [row.to_json() for row in evaluation.examples]
    facts = {"fidelity": evaluation.fidelity.to_json(), "quality": quality, "examples": examples}
    write_json(path, facts)


def _read_evaluation(path: Path) -> Evaluation:
    """Read what `_write_evaluation` wrote."""
    data = read_json(path)
    quality = {metric: QualityRow.from_json(row) for metric, row in data["quality"].items()}
    examples = tuple(Example.from_json(row) for row in data["examples"])
    return Evaluation(FidelitySummary.from_json(data["fidelity"]), quality, examples)


EVALUATION: Artifact[Evaluation] = Artifact("quality.json", _write_evaluation, _read_evaluation)


def verify_cut(
    analysis: Analysis, plan: Plan, pruned: Model, data: Data | None, recipe: Recipe
) -> dict[str, Any]:
    """Compare a cut model (before repair) with the masked original on one input.

    Returns the figures of `onnxprune.surgery.verify.Verification` as plain data.

    Raises
    ------
    VerificationError
        They differ by more than the tolerance.
    """
    feeds = next(iter(data.batches(1))) if data else None
    result = verify(
        analysis,
        plan,
        pruned,
        feeds,
        tolerance=recipe.tolerance,
        seed=recipe.seed,
        threads=recipe.compute_threads,
    )
    if not result.ok:
        worst = max(result.outputs, key=lambda name: result.outputs[name])
        raise VerificationError(
            "verification-failed",
            f"output {worst!r} of the pruned model differs from the masked original's by "
            f"{result.difference:.2g} of its largest value; the limit is {result.tolerance:.2g} "
            "(--tolerance)",
        )
    return result.as_dict()


def verify_written(
    analysis: Analysis, plan: Plan, pruned: Model, data: Data | None, recipe: Recipe
) -> dict[str, Any]:
    """Verify a model that a plan's run wrote; return figures as `verify_cut` does.

    Repaired weights no longer equal the masked original's. The plan is then verified by cutting
    the original again, and the model by the hash that its run left in the plan (or as that cut).

    Raises
    ------
    VerificationError
        The model does not belong to the plan, or the cut is wrong.
    """
    plan = analysis.check(plan)
    repair, result = plan.decided_by.get("repair", "none"), plan.decided_by.get(RESULT)
    # without a repair the weights equal the original's; without a hash there is nothing else to
    # compare the model with
    if repair == "none" or not result:
        return verify_cut(analysis, plan, pruned, data, recipe)
    # the cut is exact only before the repair, so it is made again
    own_cut = cut(analysis, plan)
    figures = verify_cut(analysis, plan, own_cut, data, recipe)
    expected, actual = _shapes(own_cut), _shapes(pruned)
    if digest(pruned) == result:
        # the repair adds biases and copies of shared weights, but changes no shape
        actual = {name: actual.get(name, shape) for name, shape in expected.items()}
    # before the hash: a shape names the weight that is wrong, a hash only shows that something is
    if expected != actual:
        raise VerificationError(
            "verification-failed",
            f"the model's weights do not match the plan: {_find_difference(expected, actual)}",
        )
    if digest(pruned) not in (result, digest(own_cut)):
        raise VerificationError(
            "verification-failed",
            f"the model (sha256 {digest(pruned)[:12]}...) is not the one that the plan's run wrote "
            f"(sha256 {str(result)[:12]}...): its weights were modified afterwards",
        )
    return {**figures, "repair": repair, RESULT: result}


def evaluate(
    original: Model,
    pruned: Model,
    held_out: Data | None,
    labels: LabeledData | None,
    recipe: Recipe,
) -> Evaluation:
    """Compare both models on held-out inputs and by the recipe's metrics on labeled ones."""
    summary = FidelitySummary()
    if held_out is not None:
        result = compare_outputs(original, pruned, held_out, recipe)
        summary = FidelitySummary.from_json(result.as_dict())
    if labels is None:
        return Evaluation(summary)
    # metrics instead of scores: they keep the samples that the error of the difference needs
    measured = [_update_metrics(model, labels, recipe) for model in (original, pruned)]
    rows = [_make_quality_row(before, after) for before, after in zip(*measured, strict=True)]
    return Evaluation(summary, dict(zip(recipe.metric, rows, strict=True)))


def _make_quality_row(first: Metric, second: Metric) -> QualityRow:
    """Return one metric of both models, which saw the same samples."""
    before, after = first.result(), second.result()
    classes = None
    if after.per_class:
        classes = {
            str(name): [score, after.per_class.get(name, 0.0), after.counts.get(name)]
            for name, score in sorted(before.per_class.items())
        }
    return QualityRow(
        before.value,
        after.value,
        after.standard_error,
        after.n,
        classes,
        paired_error(first, second),
        after.higher_is_better,
        {
            name: [plain(value), plain(after.details.get(name))]
            for name, value in before.details.items()
        }
        or None,
    )


def compare_outputs(original: Model, pruned: Model, data: Data, recipe: Recipe) -> Fidelity:
    """Return the fidelity of the pruned model's outputs on these inputs."""
    return fidelity(
        original,
        pruned,
        data,
        decoder=recipe.decoder,
        threads=recipe.compute_threads,
        batch_size=recipe.batch_size,
    )


def measure_metrics(model: Model, labels: LabeledData, recipe: Recipe) -> list[Score]:
    """Return the recipe's metrics of a model, in their order."""
    return [metric.result() for metric in _update_metrics(model, labels, recipe)]


def _update_metrics(model: Model, labels: LabeledData, recipe: Recipe) -> list[Metric]:
    """Return the recipe's metrics after they saw all labeled inputs."""
    metrics = [find_metric(name, metric_options(recipe)) for name in recipe.metric]
    measure(model, labels, metrics, threads=recipe.compute_threads, batch_size=recipe.batch_size)
    return metrics


def _shapes(model: Model) -> Mapping[str, tuple[int, ...]]:
    """Return weight -> its shape."""
    return {name: tuple(weight.shape) for name, weight in model.weights.items()}


def _find_difference(
    expected: Mapping[str, tuple[int, ...]], actual: Mapping[str, tuple[int, ...]]
) -> str:
    """Return the first weight whose shape is not the expected one."""
    names = expected.keys() | actual.keys()
    # the first by name, because sets have no order
    name = min(n for n in names if expected.get(n) != actual.get(n))
    return f"{name!r} has shape {actual.get(name)}, expected {expected.get(name)}"
