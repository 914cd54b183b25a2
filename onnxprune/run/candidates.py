"""Selection among alternative criteria and allocators on inputs that fitted nothing.

By a metric if they are labeled, else by the divergence from the original.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from onnxprune.errors import OnnxpruneError
from onnxprune.ir.io import Model
from onnxprune.metrics import find_metric
from onnxprune.metrics.base import plain
from onnxprune.report.data import CandidateRow, SelectionSummary
from onnxprune.run.evaluation import compare_outputs, measure_metrics
from onnxprune.run.recipe import Recipe
from onnxprune.run.variants import Variants, dependencies

# candidates of "auto", the fastest first, besides the default, reconstruction with divergence
CANDIDATES = ("reconstruction+layer-error", "reconstruction+uniform", "activation*weight+knapsack")
# of --thorough: how much residual streams count is best chosen per model
THOROUGH = ("reconstruction+divergence-unweighted",)
DIVERGENCE = "divergence"  # what unlabeled inputs are compared by


def select_candidate(variants: Variants, recipe: Recipe) -> tuple[Recipe, SelectionSummary]:
    """Return the recipe with the criterion and allocator of the best candidate, and all of them.

    By a metric, another candidate than the recipe's own must be better by more than the larger one
    of both standard errors.

    Raises
    ------
    OnnxpruneError
        The recipe's own criterion or allocator fails; others are reported with their problem.
    """
    own = f"{recipe.criterion}+{recipe.allocate}"
    # the own candidate is the first: all gains are relative to it, and it wins ties
    names = dict.fromkeys((own, *recipe.candidate))
    rows = [_measure(variants, recipe, name, number) for number, name in enumerate(names, 1)]
    labels, selection = variants.splits.selection_labels, variants.splits.selection
    metric, samples, sign = DIVERGENCE, selection.samples if selection else 0, -1
    if labels is not None:
        metric, samples = recipe.metric[0], labels.samples
        sign = 1 if find_metric(metric).higher_is_better else -1
    gains = [_compute_gain(row, rows[0], sign) for row in rows]
    best = max(range(1, len(rows)), key=lambda i: gains[i], default=0)
    if not gains[best] > 0:
        best = 0
    rows = [replace(row, chosen=i == best) for i, row in enumerate(rows)]
    values = {"criterion": rows[best].criterion, "allocate": rows[best].allocate}
    return recipe.but(values), SelectionSummary(metric, samples, rows)


def _compute_gain(row: CandidateRow, own: CandidateRow, sign: int) -> float:
    """Return by how much a candidate is better than the own one, less the standard error."""
    if row.value is None:
        return -math.inf
    # JSON holds None for what is not finite: any finite value is better
    if own.value is None:
        return math.inf
    # rows hold figures but no samples, so that a paired error cannot be computed
    error = max(row.standard_error or 0.0, own.standard_error or 0.0)
    return sign * (row.value - own.value) - error


def _measure(variants: Variants, recipe: Recipe, name: str, number: int) -> CandidateRow:
    """Build the model of one candidate and measure it on the selection inputs."""
    # a criterion's name may contain +
    criterion, _, allocator = name.rpartition("+")
    variant = recipe.but({"criterion": criterion, "allocate": allocator})
    labels = variants.splits.selection_labels

    def work() -> Mapping[str, Any]:
        row = CandidateRow(criterion, allocator)
        try:
            plan = variants.plan(variant)
            value, error = _score(variants, variants.repair(variant, plan), variant)
        except OnnxpruneError as problem:
            # the user asked for this one, so its failure is that of the run
            if number == 1:
                raise
            variants.stages.detail(f"{name} failed")
            return _to_json(replace(row, problem=problem.message.splitlines()[0]))
        metric = variant.metric[0] if labels is not None else DIVERGENCE
        variants.stages.detail(f"{name}: {metric} {value:.4g}")
        return _to_json(
            replace(
                row,
                macs=variants.macs_share(plan),
                value=plain(value),
                standard_error=plain(error),
            )
        )

    depends = {
        **dependencies(variant, "decoder", "class_offset", "metric"),
        "labels": labels.fingerprint() if labels is not None else "",
    }
    return CandidateRow.from_json(variants.do(f"candidate {number}", work, depends))


def _score(variants: Variants, model: Model, recipe: Recipe) -> tuple[float, float | None]:
    """Return the first metric with its standard error, or the divergence without labels."""
    splits = variants.splits
    if splits.selection_labels is not None:
        score = measure_metrics(model, splits.selection_labels, recipe)[0]
        return score.value, score.standard_error
    assert splits.selection is not None  # the split fails without
    return compare_outputs(variants.source, model, splits.selection, recipe).divergence, None


def _to_json(row: CandidateRow) -> dict[str, Any]:
    """Return a candidate before the selection, which decides `chosen`."""
    return {name: value for name, value in row.to_json().items() if name != "chosen"}
