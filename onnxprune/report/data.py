"""What a run has to say, as plain data: report.json, from which every page is made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from onnxprune.errors import UsageError

REPORT_FORMAT = 1


@dataclass(frozen=True)
class Stage:
    """One step of the flow. reused: taken from an earlier run of the same command, with the seconds that it took then."""

    name: str
    seconds: float
    reused: bool = False
    detail: str = ""


@dataclass(frozen=True)
class GroupRow:
    """Channels of one group before and after; macs_share: MACs of the layers that make them, in the original model (0 to 1); makers: these layers."""

    name: str
    before: int
    after: int
    exact: bool = True
    macs_share: float = 0.0
    makers: Sequence[str] = ()


@dataclass(frozen=True)
class TargetRow:
    """A target and what came of it: `allowed` and `reached` in the units of the cost (MACs, parameters, bytes, milliseconds)."""

    target: str
    allowed: float
    reached: float


@dataclass(frozen=True)
class Report:
    """All that is known of a run; every field is plain JSON.

    source, output: paths ("" for a model that came from, or stays in, memory). before, after: "macs", "params", "bytes",
    "activation_bytes". verification: the figures of the masked oracle. latency: by engine, {"before_ms", "after_ms", "speedup", "low", "high"}.
    fidelity: divergence from the original's outputs, by measure. quality: metric -> {"before", "after", "standard_error", "samples"} and, where the
    metric has classes, "classes": class -> [before, after, how many]. splits: "calibration", "selection" (between models),
    "report", "selection_labels", "report_labels" -> the inputs in that part and in no other. control: figures of models
    with the same widths and random channels, {"relative_error", "agreement", "metrics": metric -> {"value", "standard_error"}} each.
    selection: candidates compared by labels, {"metric", "samples", "rows": {"criterion", "allocate", "macs", "value", "standard_error", "problem", "chosen"} each}.
    bisection: to a tolerance, {"max_divergence", "reached", "samples", "rows": {"target", "macs", "divergence"} each}. curve: the trade-off, {"macs": share of
    the original's, "quality", "metric", "label", "chosen": whether it is the one written} and the figures that control has, a point. layers: {"node", "op", "macs": [before, after], "bytes": [before, after] read and written and
    "time_ms": [before, after] where known}. graph: see `collect.graph_rows`. frozen: what could not be cut, with the reason.
    sensitivity: group -> [[share removed, divergence estimated from the error of the layers that read it, refitted], ..], each group cut alone.
    measured: the same of the whole model, [[share removed, quality lost], ..], by `onnxprune sensitivity`. data: what calibration saw. provenance: versions and hashes. machine: where it was measured.
    """

    source: str
    output: str
    before: Mapping[str, int]
    after: Mapping[str, int]
    targets: Sequence[TargetRow] = ()
    verification: Mapping[str, Any] = field(default_factory=dict)
    latency: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    fidelity: Mapping[str, Any] = field(default_factory=dict)
    quality: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    splits: Mapping[str, str] = field(default_factory=dict)
    control: Sequence[Mapping[str, Any]] = ()
    selection: Mapping[str, Any] = field(default_factory=dict)
    bisection: Mapping[str, Any] = field(default_factory=dict)
    curve: Sequence[Mapping[str, Any]] = ()
    groups: Sequence[GroupRow] = ()
    layers: Sequence[Mapping[str, Any]] = ()
    graph: Sequence[Mapping[str, Any]] = ()
    frozen: Sequence[Mapping[str, Any]] = ()
    sensitivity: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)
    measured: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)
    data: str = ""
    decided_by: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    stages: Sequence[Stage] = ()
    warnings: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data, in the order of the fields."""
        return {"format": REPORT_FORMAT, **asdict(self)}

    @staticmethod
    def from_json(data: Any) -> Report:
        """The report in `data`; UsageError where it is none."""
        try:
            if data["format"] != REPORT_FORMAT:
                raise UsageError(
                    "report-format", f"report format {data['format']!r} is not {REPORT_FORMAT}"
                )
            values = {f.name: data[f.name] for f in fields(Report) if f.name in data}
            for name, row in (("targets", TargetRow), ("groups", GroupRow), ("stages", Stage)):
                values[name] = tuple(row(**r) for r in values.get(name, ()))
            return Report(**values)
        except (KeyError, TypeError, AttributeError) as problem:
            raise UsageError(
                "report-invalid", f"not a report: {type(problem).__name__} {problem}"
            ) from problem

    @staticmethod
    def load(path: str | Path) -> Report:
        """Read report.json, or the one in a run directory."""
        path = Path(path)
        path = path / "report.json" if path.is_dir() else path
        try:
            return Report.from_json(json.loads(path.read_text(encoding="utf-8")))
        except OSError as problem:
            raise UsageError(
                "report-unreadable", f"cannot read report {path}: {problem.strerror}"
            ) from problem
        except (ValueError, RecursionError) as problem:
            raise UsageError("report-invalid", f"{path} is not a report: {problem}") from problem
