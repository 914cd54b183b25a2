"""Selection among alternative criteria and allocators by a metric on labeled inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from onnxprune.data.labeled import LabeledData
from onnxprune.errors import OnnxpruneError
from onnxprune.metrics import find_metric
from onnxprune.metrics.base import plain
from onnxprune.report.data import CandidateRow, SelectionSummary
from onnxprune.run.evaluation import measure_metrics
from onnxprune.run.recipe import Recipe
from onnxprune.run.variants import Variants, dependencies

# candidates of "auto", the fastest first, besides the default, reconstruction with divergence
CANDIDATES = ("reconstruction+layer-error", "reconstruction+uniform", "activation*weight+knapsack")


def select_candidate(
    variants: Variants, recipe: Recipe, labels: LabeledData
) -> tuple[Recipe, SelectionSummary]:
    """Return the recipe with the criterion and allocator of the best candidate, and all of them.

    Another candidate than the recipe's own must be better by more than the larger one of both
    standard errors.

    Raises
    ------
    OnnxpruneError
        The recipe's own criterion or allocator fails; others are reported with their problem.
    """
    own = f"{recipe.criterion}+{recipe.allocate}"
    # the own candidate is the first: all gains are relative to it, and it wins ties
    names = dict.fromkeys((own, *recipe.candidate))
    rows = [
        _measure(variants, recipe, labels, name, number) for number, name in enumerate(names, 1)
    ]
    sign = 1 if find_metric(recipe.metric[0]).higher_is_better else -1
    gains = [_compute_gain(row, rows[0], sign) for row in rows]
    best = max(range(1, len(rows)), key=lambda i: gains[i], default=0)
    if not gains[best] > 0:
        best = 0
    rows = [replace(row, chosen=i == best) for i, row in enumerate(rows)]
    values = {"criterion": rows[best].criterion, "allocate": rows[best].allocate}
    return recipe.but(values), SelectionSummary(recipe.metric[0], labels.samples, rows)


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


def _measure(
    variants: Variants, recipe: Recipe, labels: LabeledData, name: str, number: int
) -> CandidateRow:
    """Build the model of one candidate and measure the first metric on the selection labels."""
    # a criterion's name may contain +
    criterion, _, allocator = name.rpartition("+")
    variant = recipe.but({"criterion": criterion, "allocate": allocator})

    def work() -> Mapping[str, Any]:
        row = CandidateRow(criterion, allocator)
        try:
            plan = variants.plan(variant)
            score = measure_metrics(variants.repair(variant, plan), labels, variant)[0]
        except OnnxpruneError as problem:
            # the user asked for this one, so its failure is that of the run
            if number == 1:
                raise
            variants.stages.detail(f"{name} failed")
            return _to_json(replace(row, problem=problem.message.splitlines()[0]))
        variants.stages.detail(f"{name}: {variant.metric[0]} {score.value:.4g}")
        return _to_json(
            replace(
                row,
                macs=variants.macs_share(plan),
                value=plain(score.value),
                standard_error=plain(score.standard_error),
            )
        )

    depends = {
        **dependencies(variant, "decoder", "class_offset", "metric"),
        "labels": labels.fingerprint(),
    }
    return CandidateRow.from_json(variants.do(f"candidate {number}", work, depends))


def _to_json(row: CandidateRow) -> dict[str, Any]:
    """Return a candidate before the selection, which decides `chosen`."""
    return {name: value for name, value in row.to_json().items() if name != "chosen"}
