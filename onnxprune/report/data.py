"""Report data model, serialized as report.json; all pages are rendered from it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxprune.errors import UsageError
from onnxprune.files import read_text
from onnxprune.report.conclusions import NextStep, Verdict
from onnxprune.report.example import Example
from onnxprune.report.record import ReportRecord, many, named, omitted, one, required
from onnxprune.report.structure import FrozenAxis, GraphBox, GroupRow, LayerCost
from onnxprune.report.summary import ReportSummary

REPORT_FORMAT = 1
_HASHES = ("source_sha256", "data_sha256")


@dataclass(frozen=True, eq=False)
class Stage(ReportRecord):
    """One stage of a run.

    Attributes
    ----------
    seconds
        Time it took; if `reused`, in the earlier run.
    reused
        Whether the result is that of an earlier run of the same command.
    detail
        One short phrase on the result.
    """

    name: str
    seconds: float
    reused: bool = False
    detail: str = ""


@dataclass(frozen=True, eq=False)
class Costs(ReportRecord):
    """Counted costs of a model per inference."""

    macs: int
    params: int | None = omitted(None)
    bytes: int | None = omitted(None)
    activation_bytes: int | None = omitted(None)


@dataclass(frozen=True, eq=False)
class TargetRow(ReportRecord):
    """A target with the allowed and the reached cost, in its unit (MACs, bytes, ms, ...)."""

    target: str
    allowed: float
    reached: float


@dataclass(frozen=True, eq=False)
class VerificationSummary(ReportRecord):
    """Comparison of the pruned model with the masked original.

    Attributes
    ----------
    ok
        Whether `difference` is within `tolerance`.
    exact
        Whether no axis of a mixing operator was pruned.
    difference
        Largest difference of the outputs, relative to their largest value.
    masked_difference
        The same between the masked and the unmasked original.
    outputs
        Difference by output.
    vacuous
        Whether masking changed the outputs so little that the comparison proves nothing.
    random
        Labels of random nodes, which drew the same numbers in the compared models.
    ties
        Labels of selecting nodes that chose differently on inputs that agree.
    """

    ok: bool | None = None
    exact: bool | None = None
    difference: float | None = None
    masked_difference: float | None = None
    tolerance: float | None = None
    outputs: Mapping[str, float] = field(default_factory=dict)
    vacuous: bool = omitted(False)
    random: Sequence[str] = omitted(())
    ties: Sequence[str] = omitted(())


@dataclass(frozen=True, eq=False)
class LatencyRow(ReportRecord):
    """Latency on one engine, with the 95 % interval of the speed-up.

    Attributes
    ----------
    before_times, after_times
        Ascending quantiles of the single inferences in ms, from which distributions are drawn.
    threads
        Number of threads that computed; None if the engine has no such option, as on a GPU.
    """

    before_ms: float
    after_ms: float
    speedup: float
    low: float | None = omitted(None)
    high: float | None = omitted(None)
    before_times: Sequence[float] = omitted(())
    after_times: Sequence[float] = omitted(())
    threads: int | None = omitted(None)


@dataclass(frozen=True, eq=False)
class FidelitySummary(ReportRecord):
    """Comparison of the outputs with the original's on held-out inputs.

    See `onnxprune.metrics.fidelity.Fidelity`; `outputs` has the measures by output, `boxes` is the
    number of boxes of both models, None if the outputs are no boxes; `heads` has by tensor the
    measures of what outputs are made of.
    """

    samples: int | None = None
    relative_error: float | None = None
    agreement: float | None = None
    box_agreement: float | None = None
    outputs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    boxes: int | None = omitted(None)
    heads: Mapping[str, Mapping[str, Any]] | None = omitted(None)


@dataclass(frozen=True, eq=False)
class QualityRow(ReportRecord):
    """One metric on labeled inputs.

    Attributes
    ----------
    standard_error
        Of `after`; None if the metric has none.
    samples
        Number of labeled inputs.
    classes
        Class -> [before, after, count], for metrics by class.
    difference_error
        Standard error of after - before on the same inputs.
    details
        Related figure -> [before, after], such as those of COCO's table.
    """

    before: float
    after: float
    standard_error: float | None = None
    samples: int | None = None
    classes: Mapping[str, Sequence[Any]] | None = omitted(None)
    difference_error: float | None = omitted(None)
    higher_is_better: bool = omitted(True)
    details: Mapping[str, Sequence[float | None]] | None = omitted(None)

    @property
    def by_class(self) -> Mapping[str, Sequence[Any]]:
        """Class -> [before, after, count]; empty for metrics without classes."""
        return self.classes or {}


@dataclass(frozen=True, eq=False)
class MetricFigure(ReportRecord):
    """Value of a metric with its standard error."""

    value: float | None = None
    standard_error: float | None = None


@dataclass(frozen=True, eq=False)
class Figures(ReportRecord):
    """Figures of one model on held-out inputs: fidelity, and its metrics by name."""

    relative_error: float | None = None
    agreement: float | None = None
    metrics: Mapping[str, MetricFigure] = named(MetricFigure)


@dataclass(frozen=True, eq=False)
class CurvePoint(ReportRecord):
    """One model of the trade-off curve.

    Attributes
    ----------
    macs
        Share of the original's MACs.
    chosen
        Whether it is the written model.
    metric, quality
        Name and value of the plotted measure.
    """

    label: str
    macs: float
    relative_error: float | None = None
    agreement: float | None = None
    metrics: Mapping[str, MetricFigure] = named(MetricFigure)
    chosen: bool = omitted(False)
    # plotted by the page, see run/comparison.py: a metric if there is one, else an error
    metric: str = "quality"
    quality: float | None = None


@dataclass(frozen=True, eq=False)
class CandidateRow(ReportRecord):
    """A candidate with its figure on the selection samples, or the problem that prevented it."""

    criterion: str
    allocate: str
    macs: float | None = None
    value: float | None = None
    standard_error: float | None = None
    problem: str = ""
    chosen: bool = False


@dataclass(frozen=True, eq=False)
class SelectionSummary(ReportRecord):
    """Candidates for one target, compared by a metric or the divergence on further samples."""

    metric: str = ""
    samples: int = 0
    rows: Sequence[CandidateRow] = many(CandidateRow)


@dataclass(frozen=True, eq=False)
class BisectionStep(ReportRecord):
    """One model of the search for a tolerance: targets, share of the MACs, divergence."""

    target: Sequence[str]
    macs: float
    divergence: float | None


@dataclass(frozen=True, eq=False)
class BisectionSummary(ReportRecord):
    """Search for the smallest model within a tolerance, on selection inputs."""

    max_divergence: float | None = None
    reached: float | None = None
    samples: int | None = None
    rows: Sequence[BisectionStep] = many(BisectionStep)


@dataclass(frozen=True, eq=False)
class Provenance(ReportRecord):
    """Versions of Python and libraries, and hashes of the inputs; its JSON is one flat table."""

    versions: Mapping[str, str] = field(default_factory=dict)
    source_sha256: str = ""
    data_sha256: str = ""

    def __getitem__(self, key: str) -> str:
        """Return a version or a hash."""
        value: str = getattr(self, key) if key in _HASHES else self.versions[key]
        # an empty hash is left out of JSON, and must be missing here too
        if not value and key in _HASHES:
            raise KeyError(key)
        return value

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return dict(self)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of versions and hashes."""
        yield from self.versions
        yield from (name for name in _HASHES if getattr(self, name))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Provenance:
        """Return the provenance in a flat table."""
        # the table is flat: every key that is no hash is the name of a library
        versions = {name: value for name, value in data.items() if name not in _HASHES}
        return cls(versions, *(data.get(name, "") for name in _HASHES))


@dataclass(frozen=True, eq=False, repr=False)
class Report(ReportSummary, ReportRecord):
    """All results of a run; every part is also a mapping with the keys of report.json.

    Attributes
    ----------
    source, output
        Paths, "" for a model in memory.
    before, after
        Counted costs of the original and of the written model.
    counted_at
        Shapes of the inputs that costs are counted at, and where they come from.
    not_counted
        Nodes whose multiply-accumulates are not known, by operator.
    latency
        By engine.
    quality
        By metric.
    splits
        "calibration", "selection", "report", "selection_labels" and "report_labels" -> the
        inputs in that part; no input is in two parts.
    control, control_unrepaired
        Models with equal widths and random channels, with the same repair and without any.
    sensitivity
        Group -> [[removed share, estimated divergence], ...] when it alone is pruned.
    measured
        Group -> [[removed share, quality lost], ...], by `onnxprune sensitivity`.
    operators
        Operator -> nodes of the original and of the written model.
    examples
        Held-out inputs with the predictions of both models.
    data
        Calibration inputs.
    decided_by
        Criterion, allocator, repair, seed and the like of the plan.
    machine
        Machine that latencies were measured on.
    quantization
        Form, excluded nodes and the float and quantized models, if --quantize is given.
    warning_topics
        Topic of each warning, see `onnxprune.run.warnings`.
    run_dir
        Run directory as the run was told, relative to where it was started; "" without one.
    """

    source: str
    output: str
    before: Costs = required(Costs)
    after: Costs = required(Costs)
    counted_at: str = ""
    not_counted: str = ""
    targets: Sequence[TargetRow] = many(TargetRow)
    verification: VerificationSummary = one(VerificationSummary)
    latency: Mapping[str, LatencyRow] = named(LatencyRow)
    fidelity: FidelitySummary = one(FidelitySummary)
    quality: Mapping[str, QualityRow] = named(QualityRow)
    splits: Mapping[str, str] = field(default_factory=dict)
    control: Sequence[Figures] = many(Figures)
    control_unrepaired: Sequence[Figures] = many(Figures)
    selection: SelectionSummary = one(SelectionSummary)
    bisection: BisectionSummary = one(BisectionSummary)
    curve: Sequence[CurvePoint] = many(CurvePoint)
    groups: Sequence[GroupRow] = many(GroupRow)
    layers: Sequence[LayerCost] = many(LayerCost)
    graph: Sequence[GraphBox] = many(GraphBox)
    frozen: Sequence[FrozenAxis] = many(FrozenAxis)
    sensitivity: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)
    measured: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)
    operators: Mapping[str, Sequence[int]] = field(default_factory=dict)
    examples: Sequence[Example] = many(Example)
    data: str = ""
    decided_by: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    provenance: Provenance = one(Provenance)
    machine: Mapping[str, Any] = field(default_factory=dict)
    quantization: Mapping[str, Any] | None = omitted(None)
    stages: Sequence[Stage] = many(Stage)
    warnings: Sequence[str] = ()
    warning_topics: Sequence[str] = omitted(())
    run_dir: str = omitted("")
    verdicts: Sequence[Verdict] = many(Verdict)
    next_steps: Sequence[NextStep] = many(NextStep)

    def to_json(self) -> dict[str, Any]:
        """Return plain data, in the order of the fields."""
        return {"format": REPORT_FORMAT, **super().to_json()}

    @classmethod
    def from_json(cls, data: Any) -> Report:
        """Return the report in plain data.

        Raises
        ------
        UsageError
            The data are not a report.
        """
        try:
            if data["format"] != REPORT_FORMAT:
                raise UsageError(
                    "report-format",
                    f"report format {data['format']!r} is not supported, only {REPORT_FORMAT}",
                )
            return super().from_json(data)
        # what the conversion raises for JSON of another structure
        except (KeyError, TypeError, AttributeError) as problem:
            raise UsageError(
                "report-invalid", f"not a report: {type(problem).__name__} {problem}"
            ) from problem

    @staticmethod
    def load(path: str | Path) -> Report:
        """Read report.json, or the one in a run directory.

        Raises
        ------
        UsageError
            The file cannot be read, or is not a report.
        """
        path = Path(path)
        # a run directory stands for its report, as on the command line
        path = path / "report.json" if path.is_dir() else path
        try:
            return Report.from_json(json.loads(read_text(path)))
        except OSError as problem:
            raise UsageError(
                "report-unreadable", f"cannot read report {path}: {problem.strerror}"
            ) from problem
        except (ValueError, RecursionError) as problem:
            text = f"{path} is not a report: {problem}"
            if path.suffix == ".onnx":
                text = f"{path} is a model, not a report; write {path.with_suffix('.run')}"
            raise UsageError("report-invalid", text) from problem
