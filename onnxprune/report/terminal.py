"""Summary of a run as text: tables, verdicts, warnings."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from os import PathLike
from typing import TextIO

from onnxprune.errors import plural, printable
from onnxprune.report.coco_table import coco_tables
from onnxprune.report.conclusions import BAD, FAIR, GOOD
from onnxprune.report.data import FidelitySummary, Figures, MetricFigure, Report
from onnxprune.report.quantized import format_quantization
from onnxprune.report.text import amount, clip, columns, legible
from onnxprune.report.verdict import agreement_name, judge, own_figures

COLORS = {GOOD: "\x1b[32m", FAIR: "\x1b[33m", BAD: "\x1b[31m"}  # by level of a verdict
RESET = "\x1b[0m"
MOST_SHAPES = 200  # characters of the shapes of the inputs
_COSTS = (
    ("macs", "MACs", ""),
    ("params", "params", ""),
    ("bytes", "size", "B"),
    ("activation_bytes", "activations", "B"),
)


def before_after(report: Report) -> str:
    """Return the table of costs, quality and latency before and after."""
    rows = [("", "before", "after", "")]
    for key, title, unit in _COSTS:
        if key in report.before and key in report.after:
            before, after = report.before[key], report.after[key]
            share = f"{after / before:.1%}" if before else ""
            rows.append((title, amount(before, unit), amount(after, unit), share))
    for metric, quality in report.quality.items():
        # a difference, not a share: metrics may be negative or 0
        change = f"{quality.after - quality.before:+.4g}"
        rows.append((metric, f"{quality.before:.4g}", f"{quality.after:.4g}", change))
    for engine, latency in report.latency.items():
        before_ms, after_ms = f"{latency.before_ms:.3g} ms", f"{latency.after_ms:.3g} ms"
        rows.append((f"latency {engine}", before_ms, after_ms, f"{latency.speedup:.2f}x"))
    return "\n".join(filter(None, (counted_at(report), columns(rows))))


def counted_at(report: Report) -> str:
    """Return at which shapes costs are counted, and what is not counted."""
    lines = []
    if report.counted_at:
        lines.append(f"costs at {clip(report.counted_at, MOST_SHAPES)}")
    if report.not_counted:
        lines.append(f"MACs not counted: {printable(report.not_counted)}")
    return "\n".join(lines)


def ratios(report: Report) -> str:
    """Return the share of the channels that ratios asked to remove, and what was removed.

    >>> group = GroupRow("conv", 32, 26, ratio=0.2)
    >>> ratios(Report("", "", Costs(2), Costs(1), groups=[group]))
    '--ratio: 20% of the channels of 1 group asked, 18.75% removed'
    """
    lines = []
    shares = dict.fromkeys(row.ratio for row in report.groups if row.ratio is not None)
    for asked in shares:
        # groups that share a ratio are one line: widths of small groups are rounded
        rows = [row for row in report.groups if row.ratio == asked]
        channels = sum(row.before for row in rows)
        removed = sum(row.before - row.after for row in rows) / max(channels, 1)
        lines.append(
            f"--ratio: {100 * asked:.4g}% of the channels of {plural(len(rows), 'group')} asked, "
            f"{100 * removed:.4g}% removed"
        )
    return "\n".join(lines)


def held_out(report: Report) -> str:
    """Return the fidelity on held-out inputs, "" if there were none.

    >>> fidelity = FidelitySummary(samples=51, relative_error=0.131)
    >>> held_out(Report("", "", Costs(2), Costs(1), fidelity=fidelity))
    'held-out inputs (51): relative output error 0.13'
    """
    figures = format_fidelity(report.fidelity)
    return f"held-out inputs ({report.fidelity.samples}): {figures}" if figures else ""


def format_fidelity(fidelity: FidelitySummary) -> str:
    """Return relative output error and agreement, "" if they were not measured."""
    figures = []
    if fidelity.relative_error is not None:
        figures.append(f"relative output error {fidelity.relative_error:.2g}")
    if fidelity.agreement is not None:
        figures.append(f"{agreement_name(fidelity)} {fidelity.agreement:.1%}")
    return ", ".join(figures)


def alternatives(report: Report) -> str:
    """Return the figures of all models but the written one, "" if there are none.

    These are the trade-off curve, the search for a tolerance, candidates and random controls.
    """
    parts = (
        _curve(report),
        _bisection(report),
        _describe_selection(report),
        _describe_control(report),
        format_quantization(report.quantization),
    )
    return "\n\n".join(filter(None, parts))


def _curve(report: Report) -> str:
    """Return the table of the trade-off curve."""
    if not report.curve:
        return ""
    measures = [
        name
        for name in ("relative_error", "agreement")
        if any(point[name] is not None for point in report.curve)
    ]
    metrics = dict.fromkeys(name for point in report.curve for name in point.metrics)
    none = MetricFigure()
    rows = [("trade-off", "MACs", *metrics, *(name.replace("_", " ") for name in measures))]
    for point in report.curve:
        label = f"{point.label} (written)" if point.chosen else point.label
        values = [point.metrics.get(name, none).value for name in metrics]
        values += [point[name] for name in measures]
        rows.append((label, f"{point.macs:.1%}", *map(_figure, values)))
    return columns(rows)


def _bisection(report: Report) -> str:
    """Return the outcome of the search for a tolerance."""
    search = report.bisection
    if not search:
        return ""
    inputs = plural(search.samples or 0, "selection input")
    models = plural(len(search.rows), "model")
    return (
        f"max_divergence {search.max_divergence:g}: reached {_figure(search.reached)} "
        f"on {inputs}, {models} tried"
    )


def _describe_selection(report: Report) -> str:
    """Return the metric of each candidate."""
    selection = report.selection
    if not selection:
        return ""
    candidates = []
    for row in selection.rows:
        written = " (written)" if row.chosen else ""
        candidates.append(f"{row.criterion}+{row.allocate} {_figure(row.value)}{written}")
    samples = plural(selection.samples, "selection sample")
    return f"candidates by {selection.metric} on {samples}: {', '.join(candidates)}"


def _describe_control(report: Report) -> str:
    """Return the figures of the models with random channels."""
    if not report.control:
        return ""
    own = own_figures(report)
    rows = [("this model", _list_figures([own]))]
    rows.append(("random channels, same repair", _list_figures(report.control)))
    if report.control_unrepaired:
        rows.append(("random channels, no repair", _list_figures(report.control_unrepaired)))
    width = max(len(name) for name, _ in rows)
    return "\n".join(
        ["control at equal widths:", *(f"  {name:{width}}  {figures}" for name, figures in rows)]
    )


def _list_figures(rows: Sequence[Figures]) -> str:
    """Return the metrics and the output errors of models, those of equal name together."""
    texts = []
    for metric in rows[0].metrics:
        values = ", ".join(_figure(row.metrics[metric].value) for row in rows)
        texts.append(f"{metric} {values}")
    if any(row.relative_error is not None for row in rows):
        errors = ", ".join(_figure(row.relative_error) for row in rows)
        texts.append(f"relative output error {errors}")
    return "; ".join(texts)


def _figure(value: float | None) -> str:
    """Return a figure with four digits, "-" if there is none."""
    return "-" if value is None else f"{value:.4g}"


def verdicts(report: Report) -> str:
    """Return the verdicts, one per line."""
    return columns([(row.aspect, row.text) for row in judge(report)], left=2)


def next_steps(report: Report) -> str:
    """Return what to run next: each purpose as a comment above its command."""
    lines = ["What next:"]
    for step in report.next_steps:
        # as a comment, so that both lines can be pasted into a shell
        lines += [f"  # {printable(step.purpose)}", f"  {printable(step.command)}"]
    return "\n".join(lines) if report.next_steps else ""


def summary(report: Report, page: PathLike[str] | None = None) -> str:
    """Return tables and verdicts of a run, the paths of its files, and what to run next."""
    parts = [before_after(report), verdicts(report), ratios(report), held_out(report)]
    parts += [table.text() for table in coco_tables(report)]
    parts.append(alternatives(report))
    # after the tables: the last lines are those that stay in view
    paths = []
    if report.output:
        paths.append(f"written to {report.output}")
    if page:
        paths.append(f"report: {page}")
    return "\n\n".join(filter(None, [*parts, "\n".join(paths), next_steps(report)]))


def write_summary(report: Report, page: PathLike[str] | None, stream: TextIO) -> None:
    """Write the summary to a stream; on a terminal, the lines of the verdicts have colors."""
    control = getattr(stream, "control", stream.write)
    colored = {}
    # see no-color.org
    if stream.isatty() and not os.environ.get("NO_COLOR"):
        levels = [row.level for row in judge(report)]
        colored = dict(zip(verdicts(report).split("\n"), levels, strict=True))
    for line in summary(report, page).split("\n"):
        # lines are matched by text, because the summary is also used without colors
        color = COLORS.get(colored.get(line, ""), "")
        control(color)
        stream.write(legible(line, stream))
        control(RESET if color else "")
        stream.write("\n")
    stream.flush()


def warnings(report: Report, page: PathLike[str] | None = None, shown: Collection[str] = ()) -> str:
    """Return the warnings, one per line; with a page that lists all of them, one per topic.

    Parameters
    ----------
    shown
        Warnings that are on the screen already, which are left out.
    """
    by_topic: dict[str, list[str]] = {}
    # reports of earlier releases have no topics
    topics = report.warning_topics if page else ()
    for number, text in enumerate(report.warnings):
        topic = topics[number] if number < len(topics) else str(number)
        if text not in shown:
            by_topic.setdefault(topic, []).append(text)
    lines = []
    for texts in by_topic.values():
        more = f" (and {len(texts) - 1} more in {page})" if len(texts) > 1 else ""
        lines.append(f"warning: {printable(texts[0])}{more}")
    return "\n".join(lines)
