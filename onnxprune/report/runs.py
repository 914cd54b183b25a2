"""Runs of one model, compared by cost, quality and latency."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from urllib.parse import quote

from markupsafe import Markup

from onnxprune.errors import OnnxpruneError, UsageError, plural
from onnxprune.report.conclusions import worst_level
from onnxprune.report.data import Report
from onnxprune.report.plots import AFTER, BEFORE, Canvas, percent, spanning
from onnxprune.report.text import clip
from onnxprune.report.verdict import judge

MOST_RUNS = 40
JOURNAL = "journal.jsonl"  # only a run directory has one, see run/rundir.py
_AGREEMENT, _ERROR = "agreement", "relative output error"
_SIZE = (560, 340)
_OTHER, _FRONT = "s2", "s6"  # classes of colors


@dataclass(frozen=True)
class Run:
    """A report with the name of its run; link: address of its page, "" for none."""

    name: str
    report: Report
    link: str = ""


@dataclass(frozen=True)
class RunLine:
    """Figures of one run.

    Attributes
    ----------
    number
        As in the picture; 0 for the original.
    macs, params, time
        Shares of the original's; None if unknown. `time` is the latency on the engine compared.
    quality, error
        Value of the measure compared, with its standard error.
    level
        Worst of its verdicts; "" for the original.
    is_own
        Whether it is the run of the page.
    is_other_data
        Whether its quality was measured on other inputs than that of the page's run.
    """

    number: int
    name: str
    link: str
    macs: float
    params: float | None
    time: float | None
    quality: float | None
    error: float | None
    level: str
    is_own: bool = False
    is_other_data: bool = False


@dataclass(frozen=True)
class Comparison:
    """Runs of a model, the original first, and pictures of quality over cost and latency.

    Attributes
    ----------
    measure
        Name of the measure of quality.
    engine
        Engine whose latencies are compared, "" without.
    """

    lines: list[RunLine]
    measure: str
    engine: str
    plots: list[Markup]


def find_runs(folder: Path, own: Report) -> list[Run]:
    """Return the other runs of the model of `own` in the folder that a run directory is in.

    At most MOST_RUNS, the latest ones, sorted by name. Directories that cannot be read are left
    out, because a run must not fail for what other runs left.
    """
    folder = folder.resolve()
    # a model in memory may have no hash, and equal ones of no hash say nothing
    if not own.provenance.source_sha256:
        return []
    dated = []
    with contextlib.suppress(OSError):
        for place in folder.parent.iterdir():
            report = place / "report.json"
            if place != folder and (place / JOURNAL).is_file() and report.is_file():
                dated.append((report.stat().st_mtime, place))
    runs = []
    for _, place in sorted(dated, reverse=True)[:MOST_RUNS]:
        other = _load(place)
        if other is not None and is_same_model(other, own) and _is_valid(other):
            runs.append(Run(place.name, other, link_to(place, folder)))
    return sorted(runs, key=lambda run: run.name)


def _load(folder: Path) -> Report | None:
    """Return the report of a run directory, None if it cannot be read."""
    with contextlib.suppress(OnnxpruneError, OSError):
        return Report.load(folder)
    return None


def _is_valid(report: Report) -> bool:
    """Return whether a report of the right structure also holds values of the right types."""
    # a run must not fail at its end for a file that another program changed
    with contextlib.suppress(TypeError, ValueError, KeyError, IndexError, AttributeError):
        for measure in (*report.quality, _AGREEMENT, _ERROR):
            line = _describe(1, Run("", report), report, measure, next(iter(report.latency), ""))
            float(line.macs) + float(line.params or 0) + float(line.time or 0)
            float(line.quality or 0) + float(line.error or 0)
        return True
    return False


def is_same_model(report: Report, other: Report) -> bool:
    """Return whether two reports are of the same original."""
    return report.provenance.source_sha256 == other.provenance.source_sha256


def link_to(place: Path, folder: Path) -> str:
    """Return the relative address of a run's page from a folder, "" if there is no page."""
    page = place / "report.html"
    # between two drives, there is no relative path
    with contextlib.suppress(OSError, ValueError):
        if page.is_file():
            path = Path(os.path.relpath(page.resolve(), folder.resolve())).as_posix()
            # a name may look like a scheme, which a path that starts with a dot cannot
            return "./" + quote(path)
    return ""


def compare(own: Run, others: Sequence[Run]) -> Comparison | None:
    """Return the comparison of a run with others, None without others.

    Raises
    ------
    UsageError
        They are of different models.
    """
    if not others:
        return None
    runs = [own, *others]
    for run in others:
        if not is_same_model(run.report, own.report):
            raise UsageError(
                "report-models",
                f"{run.name} and {own.name} are runs of different models "
                f"({run.report.source or 'in memory'}, {own.report.source or 'in memory'}); "
                "compare runs of one model",
            )
    measure = _choose_measure([run.report for run in runs])
    engine = next(iter(own.report.latency), "")
    lines = [_describe_original(own.report, measure, engine)]
    for number, run in enumerate(runs, 1):
        lines.append(_describe(number, run, own.report, measure, engine))
    is_higher_better = _is_higher_better(own.report, measure)
    plots = []
    for title, costs in (
        ("remaining MACs", [line.macs for line in lines]),
        (f"time on {clip(engine, 24)}", [line.time for line in lines]),
    ):
        places = [
            (line, cost, line.quality)
            for line, cost in zip(lines, costs, strict=True)
            if cost is not None and line.quality is not None
        ]
        # one run and the original alone are no picture
        if len(places) > 2:
            plots.append(_draw(places, title, measure, is_higher_better))
    return Comparison(lines, measure, engine, plots)


def _choose_measure(reports: Sequence[Report]) -> str:
    """Return the measure that most runs have: a metric of the first one, else its fidelity."""
    names = [*reports[0].quality, _AGREEMENT, _ERROR]
    counts = [sum(_measure(report, name)[0] is not None for report in reports) for name in names]
    # the first of equally many, because metrics come first
    return names[counts.index(max(counts))]


def _measure(report: Report, measure: str) -> tuple[float | None, float | None]:
    """Return a measure of a report with its standard error."""
    value, error = None, None
    if measure == _AGREEMENT:
        value = report.fidelity.agreement
    elif measure == _ERROR:
        value = report.fidelity.relative_error
    elif measure in report.quality:
        value, error = report.quality[measure].after, report.quality[measure].standard_error
    # what is not finite has no place in a picture
    value, error = (v if v is not None and isfinite(v) else None for v in (value, error))
    return value, error


def _is_higher_better(report: Report, measure: str) -> bool:
    """Return the direction of a measure."""
    row = report.quality.get(measure)
    return row.higher_is_better if row is not None else measure == _AGREEMENT


def _describe_original(report: Report, measure: str, engine: str) -> RunLine:
    """Return the line of the original."""
    row = report.quality.get(measure)
    exact = 1.0 if measure == _AGREEMENT else 0.0
    quality = row.before if row is not None else exact
    return RunLine(0, "original", "", 1.0, 1.0, 1.0 if engine else None, quality, None, "")


def _describe(number: int, run: Run, own: Report, measure: str, engine: str) -> RunLine:
    """Return the line of a run."""
    report = run.report
    macs = report.after.macs / report.before.macs if report.before.macs else 1.0
    params = None
    if report.before.params and report.after.params is not None:
        params = report.after.params / report.before.params
    latency = report.latency.get(engine)
    time = 1 / latency.speedup if latency is not None and latency.speedup > 0 else None
    quality, error = _measure(report, measure)
    part = "report_labels" if measure in own.quality else "report"
    return RunLine(
        number,
        run.name,
        run.link,
        macs,
        params,
        time,
        quality,
        error,
        worst_level(row.level for row in judge(report)),
        number == 1,
        report.splits.get(part) != own.splits.get(part),
    )


def find_front(
    points: Sequence[tuple[float, float]], is_higher_better: bool
) -> list[tuple[float, float]]:
    """Return the points (cost, quality) that no other one beats in both, in ascending cost.

    >>> find_front([(1.0, 0.9), (0.5, 0.8), (0.6, 0.7)], True)
    [(0.5, 0.8), (1.0, 0.9)]
    """
    sign = 1 if is_higher_better else -1
    front: list[tuple[float, float]] = []
    # of equal costs, the best one comes first
    for cost, quality in sorted(points, key=lambda point: (point[0], -sign * point[1])):
        if not front or sign * quality > sign * front[-1][1]:
            front.append((cost, quality))
    return front


def _draw(
    places: Sequence[tuple[RunLine, float, float]], x: str, measure: str, is_higher_better: bool
) -> Markup:
    """Return the picture of (run, cost, quality) with the Pareto front."""
    across = spanning([0.0, *(cost for _, cost, _ in places)], x, from_zero=True)
    ends = []
    for line, _, quality in places:
        error = 2 * (line.error or 0.0)
        ends += [quality - error, quality + error]
    canvas = Canvas(replace(across, format=percent), spanning(ends, clip(measure, 30)), _SIZE)
    front = find_front([(cost, quality) for _, cost, quality in places], is_higher_better)
    canvas.line(front, _FRONT, "5 4")
    # the page's own run is drawn last, on top
    for line, cost, quality in sorted(places, key=lambda place: place[0].is_own):
        color = AFTER if line.is_own else _OTHER
        if not line.number:
            color = BEFORE
        if line.error:
            canvas.error(cost, (quality - 2 * line.error, quality + 2 * line.error), color)
        title = f"{clip(line.name, 80)}: {cost:.1%}, {quality:.4g}"
        mark = str(line.number) if line.number else line.name
        canvas.dot(cost, quality, color, 7 if line.is_own else 5, title, mark)
    label = (
        f"{clip(measure, 40)} over {x} of {plural(len(places) - 1, 'run')} and the original, "
        f"{len(front)} of them on the Pareto front; the table has the same figures"
    )
    return Markup(canvas.svg(label))
