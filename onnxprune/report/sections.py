"""Content of the sections of the report page, computed from the report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from markupsafe import Markup

from onnxprune.report.data import (
    CandidateRow,
    CurvePoint,
    Figures,
    FrozenAxis,
    GroupRow,
    LayerCost,
    MetricFigure,
    Report,
)
from onnxprune.report.picture import MOST_BOXES, picture, tints
from onnxprune.report.plots import AFTER, BEFORE, Curve, curves, plot
from onnxprune.report.roles import spell_roles
from onnxprune.report.text import clip, number
from onnxprune.report.verdict import own_figures

MOST_ROWS = 400  # per table; with MOST_NAME, it keeps the page below a megabyte
MOST_NAME = 160  # characters shown of a name
MOST_TEXT = 600
MOST_CURVES = 12
MOST_CLASSES = 30
MOST_REASONS = 40
LEAST_AXES = 5  # shown per reason, however many reasons there are
_COSTS = (
    ("macs", "Multiply-accumulates (MACs)", ""),
    ("params", "Parameters", ""),
    ("bytes", "Size of the weights", "B"),
    ("activation_bytes", "Activation memory", "B"),
)
Measures = list[tuple[str, list[float | None]]]  # (measure, its value for each model)


@dataclass(frozen=True)
class CostLine:
    """A counted cost before and after; share: after over before."""

    title: str
    before: str
    after: str
    share: float


def cost_lines(report: Report) -> list[CostLine]:
    """Return the costs that both models have."""
    lines = []
    for key, title, unit in _COSTS:
        # only macs are always counted
        if key in report.before and key in report.after:
            before, after = report.before[key], report.after[key]
            share = after / before if before else 1.0
            lines.append(CostLine(title, number(before, unit), number(after, unit), share))
    return lines


@dataclass(frozen=True)
class MetricLine:
    """A metric before and after, with its standard error and the change measured by it."""

    metric: str
    before: float
    after: float
    change: float
    error: float | None
    note: str
    samples: int | None


def metric_lines(report: Report) -> list[MetricLine]:
    """Return the metrics, each with a note on the significance of its change."""
    lines = []
    for metric, row in report.quality.items():
        error, change = row.standard_error, row.after - row.before
        note = ""
        # an error of 0 gives no scale for the change
        if error:
            within = abs(change) <= 2 * error
            note = f"{'within' if within else 'more than'} two standard errors"
        lines.append(MetricLine(metric, row.before, row.after, change, error, note, row.samples))
    return lines


# what is compared in a head, see `onnxprune.ir.heads`
_HEAD_KINDS = {"binary": "probabilities", "classes": "classes", "values": "values"}


@dataclass(frozen=True)
class OutputLine:
    """Fidelity of one output."""

    name: str
    error: float | None
    agreement: float | None
    largest: float | None


def output_lines(report: Report) -> list[OutputLine]:
    """Return the fidelity of each output and of its heads; none if there is only one."""
    lines = []
    for name, row in report.fidelity.outputs.items():
        agreements = (row.get("top1_agreement"), row.get("location_agreement"))
        agreement = next((a for a in agreements if a is not None), None)
        lines.append(OutputLine(name, row["relative_error"], agreement, row["max_abs"]))
    for name, row in (report.fidelity.heads or {}).items():
        kind = _HEAD_KINDS.get(row["kind"], row["kind"])
        title = f"{row['output']}: {kind} {name}"
        lines.append(OutputLine(title, row["relative_error"], None, None))
    return lines if len(lines) > 1 else []


@dataclass(frozen=True)
class Control:
    """Comparison of the written model with random ones.

    Attributes
    ----------
    models
        Titles of the models, this one first.
    measures
        Their figures.
    total
        Number of random models.
    farther
        How many of them have a larger relative output error; None if this model has none.
    """

    models: list[str]
    measures: Measures
    total: int
    farther: int | None


def control(report: Report) -> Control | None:
    """Return the comparison with models of random channels, None if there are none."""
    if not report.control:
        return None
    rows = [own_figures(report), *report.control]
    # own_figures come first in `rows`
    own, *others = [row.relative_error for row in rows]
    farther = None
    if own is not None:
        # without an error, because its outputs cannot be compared, a model counts as farther
        farther = sum(other is None or other > own for other in others)
    models = ["This model", *(f"Random {i}" for i in range(1, len(rows)))]
    return Control(models, _list_measures(rows), len(others), farther)


def _list_measures(rows: Sequence[Figures | CurvePoint]) -> Measures:
    """Return the measures that at least one of the models has, metrics first."""
    none = MetricFigure()
    measures: Measures = []
    for name in dict.fromkeys(name for row in rows for name in row.metrics):
        measures.append((name, [row.metrics.get(name, none).value for row in rows]))
    measures.append(("Agreement", [row.agreement for row in rows]))
    measures.append(("Relative output error", [row.relative_error for row in rows]))
    return [(name, values) for name, values in measures if any(v is not None for v in values)]


@dataclass(frozen=True)
class CandidateLine:
    """A candidate, titled by its criterion and allocator."""

    title: str
    row: CandidateRow


def candidate_lines(report: Report) -> list[CandidateLine]:
    """Return the candidates."""
    return [CandidateLine(f"{row.criterion}, {row.allocate}", row) for row in report.selection.rows]


@dataclass(frozen=True)
class TradeOff:
    """The trade-off curve.

    Attributes
    ----------
    svg
        Plot of `metric` over the share of the MACs.
    points
        Its points, in ascending order of MACs.
    measures
        Figures of the points.
    error
        Standard error of the written model's metric.
    """

    svg: Markup
    points: list[CurvePoint]
    metric: str
    measures: Measures
    error: float | None


def trade_off(report: Report) -> TradeOff | None:
    """Return the trade-off curve, None with fewer than two points."""
    points = sorted(
        # the quality of a model whose outputs are not finite may be NaN
        (p for p in report.curve if p.quality is not None and isfinite(p.quality)),
        key=lambda p: p.macs,
    )
    if len(points) < 2:
        return None
    metric = points[0].metric
    line = [(float(p.macs), float(p.quality or 0.0)) for p in points]
    # drawn last and large, on top of the line
    chosen = [place for place, p in zip(line, points, strict=True) if p.chosen]
    drawn = [Curve(line, BEFORE), Curve(line, BEFORE, dots=True)]
    if chosen:
        drawn.append(Curve(chosen, AFTER, dots=True, large=True))
    label = f"{metric} over the share of remaining MACs, {len(points)} points"
    svg = plot(drawn, "remaining MACs", clip(metric, 40), label, from_zero=False)
    measures = _list_measures(points) or [(metric, [p.quality for p in points])]
    figures = [p.metrics[metric] for p in points if p.chosen and metric in p.metrics]
    errors = [figure.standard_error for figure in figures if figure.standard_error]
    return TradeOff(Markup(svg), points, metric, measures, max(errors, default=None))


@dataclass(frozen=True)
class GroupLine:
    """A group with its number, color and roles; share: kept share of its channels."""

    row: GroupRow
    number: int
    color: str | None
    share: float
    roles: str


def group_lines(report: Report) -> list[GroupLine]:
    """Return the groups, numbered as in the picture."""
    colors = tints(report.graph)
    roles = {box.node: box.role for box in report.graph if box.role}
    lines = []
    for i, group in enumerate(report.groups, 1):
        share = group.after / max(group.before, 1)
        role = spell_roles(roles, group.makers)
        lines.append(GroupLine(group, i, colors.get(group.name), share, role))
    return lines


def network(report: Report) -> Markup | None:
    """Return the picture of the network, None if it is too large to draw."""
    if not 0 < len(report.graph) <= MOST_BOXES:
        return None
    numbers = {group.name: i for i, group in enumerate(report.groups, 1)}
    widths = {group.name: (group.before, group.after) for group in report.groups}
    return Markup(picture(report.graph, numbers, widths, MOST_NAME))


@dataclass(frozen=True)
class LayerLine:
    """A layer with its times, arithmetic intensities and bars (percent of the longest one)."""

    row: LayerCost
    times: Sequence[float | None]
    intensity: list[float | None]
    bars: list[float]


def layer_lines(report: Report) -> list[LayerLine]:
    """Return the layers in graph order; of more than MOST_ROWS, the most expensive ones."""
    timed = any(row.time_ms for row in report.layers)

    def cost(index: int) -> tuple[float, float]:
        row = report.layers[index]
        time = row.time_ms[0] if row.time_ms else None
        return time or 0.0, row.macs[0]

    expensive = sorted(range(len(report.layers)), key=cost, reverse=True)[:MOST_ROWS]
    rows = [report.layers[i] for i in sorted(expensive)]
    shown = [(row.time_ms or (None, None)) if timed else row.macs for row in rows]
    longest = max((v for values in shown for v in values if v), default=0) or 1
    lines = []
    for row, values in zip(rows, shown, strict=True):
        # 0 bytes: no intensity
        moved = row.bytes or (0, 0)
        intensity = [m / b if b else None for m, b in zip(row.macs, moved, strict=True)]
        bars = [100 * (v or 0) / longest for v in values]
        lines.append(LayerLine(row, row.time_ms or (None, None), intensity, bars))
    return lines


@dataclass(frozen=True)
class OperatorLine:
    """Number of an operator's nodes before and after."""

    op: str
    before: int
    after: int


def operator_lines(report: Report) -> list[OperatorLine]:
    """Return the operators, those with the largest change first."""
    lines = [OperatorLine(op, int(row[0]), int(row[1])) for op, row in report.operators.items()]
    lines.sort(key=lambda line: (-abs(line.after - line.before), -line.before, line.op))
    return lines[:MOST_ROWS]


@dataclass(frozen=True)
class FrozenReason:
    """A reason for frozen axes: how many, and the first of them."""

    reason: str
    total: int
    axes: Sequence[FrozenAxis]


def frozen_reasons(rows: Iterable[FrozenAxis]) -> list[FrozenReason]:
    """Return the reasons, the most frequent one first."""
    by_reason: dict[str, list[FrozenAxis]] = {}
    for row in rows:
        by_reason.setdefault(clip(row.reason, MOST_TEXT), []).append(row)
    ordered = sorted(by_reason.items(), key=lambda item: (-len(item[1]), item[0]))[:MOST_REASONS]
    # rows are shared among the reasons, so that a frequent one does not fill the table
    most = max(MOST_ROWS // max(len(ordered), 1), LEAST_AXES)
    return [FrozenReason(reason, len(axes), axes[:most]) for reason, axes in ordered]


@dataclass(frozen=True)
class SensitivityPlot:
    """Curves of the most sensitive groups.

    Attributes
    ----------
    legend
        (group, its curve) in the order of the plot.
    total
        Number of groups with a curve.
    points
        Group -> its last point.
    """

    svg: Markup
    legend: list[tuple[str, Curve]]
    total: int
    points: Mapping[str, tuple[float, float]]


def sensitivity_plot(
    rows: Mapping[str, Sequence[Sequence[float]]], measure: str
) -> SensitivityPlot | None:
    """Return the plot of the most sensitive groups, None if there are no points."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for name, points in rows.items():
        if points:
            # nothing removed, nothing lost
            lines[name] = [(0.0, 0.0), *((float(x), float(y)) for x, y in points)]
    if not lines:
        return None
    # by name at equal values, so that the page is the same at each run
    worst = sorted(lines, key=lambda name: (-max(y for _, y in lines[name]), name))[:MOST_CURVES]
    drawn = curves([lines[name] for name in worst])
    label = f"sensitivity of {len(worst)} groups"
    svg = plot(drawn, "removed share of the group's channels", measure, label)
    last = {name: lines[name][-1] for name in worst}
    return SensitivityPlot(Markup(svg), list(zip(worst, drawn, strict=True)), len(lines), last)


@dataclass(frozen=True)
class ClassLine:
    """One class before and after; samples: how many occur in the labels."""

    name: str
    before: float
    after: float
    change: float
    samples: Any


@dataclass(frozen=True)
class ClassTable:
    """Classes of a metric with the largest changes, of `total`; worse: how many decreased."""

    metric: str
    lines: list[ClassLine]
    total: int
    worse: int


def class_tables(report: Report) -> list[ClassTable]:
    """Return the metrics by class."""
    tables = []
    for metric, row in report.quality.items():
        lines = [
            ClassLine(name, before, after, after - before, samples)
            for name, (before, after, samples) in row.by_class.items()
            # a class may be absent from the labels, and has no value then
            if before is not None and after is not None
        ]
        # class names are mostly numbers: shorter ones first keeps their order
        lines.sort(key=lambda line: (-abs(line.change), len(line.name), line.name))
        if lines:
            worse = sum(line.change < 0 for line in lines)
            tables.append(ClassTable(metric, lines[:MOST_CLASSES], len(lines), worse))
    return tables
