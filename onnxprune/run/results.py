"""Results of a run and of its stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from onnxprune.ir.io import Model
from onnxprune.report.collect import latency_rows
from onnxprune.report.data import (
    BisectionSummary,
    Costs,
    CurvePoint,
    Figures,
    LatencyRow,
    Report,
    SelectionSummary,
    VerificationSummary,
)
from onnxprune.run.evaluation import Evaluation
from onnxprune.run.recipe import Recipe
from onnxprune.summary import Summarized
from onnxprune.types import Plan


@dataclass(frozen=True, repr=False)
class Result(Summarized):
    """Result of `optimize`.

    Attributes
    ----------
    model
        The pruned model.
    plan
        The kept channels, and how they were chosen.
    report
        Everything that was counted and measured.
    """

    model: Model
    plan: Plan
    report: Report

    def _title(self) -> str:
        """Return costs and verdicts."""
        return self.report._title()

    def _rows(self) -> Sequence[Sequence[str]]:
        """Return the figures of the report."""
        return self.report._rows()


@dataclass(frozen=True)
class Decision:
    """Plan of a run, and how its recipe was settled.

    Attributes
    ----------
    recipe
        Recipe with the targets of the tolerance, or the criterion and allocator of the best
        candidate.
    chain
        Key of the stage that made the plan.
    """

    recipe: Recipe
    plan: Plan
    chain: str
    selection: SelectionSummary
    bisection: BisectionSummary


@dataclass(frozen=True)
class Timing:
    """Measurements on the recipe's engines; empty if there are none.

    Attributes
    ----------
    bench
        Everything that was measured, see `BenchReport.as_dict`.
    """

    bench: Mapping[str, Any] = field(default_factory=dict)

    @property
    def latency(self) -> Mapping[str, LatencyRow]:
        """Latencies by engine."""
        return latency_rows(self.bench)


@dataclass(frozen=True)
class ComparisonModels:
    """Models to compare the written one with, and warnings about those that failed."""

    control: Sequence[Figures] = ()
    control_unrepaired: Sequence[Figures] = ()
    curve: Sequence[CurvePoint] = ()
    warnings: Sequence[str] = ()


@dataclass(frozen=True)
class StageResults:
    """Results of all stages of a run but the model and its plan.

    Attributes
    ----------
    costs
        Counted costs of the original and of the artifact.
    """

    decision: Decision
    verification: VerificationSummary
    evaluation: Evaluation
    timing: Timing
    comparison: ComparisonModels
    costs: tuple[Costs, Costs]
    quantization: Mapping[str, Any] = field(default_factory=dict)
