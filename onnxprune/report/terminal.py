"""A run on a terminal or in a log: one line a stage, what is left of long ones, a table, warnings at the end."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from os import PathLike
from types import TracebackType
from typing import TextIO

from onnxprune.events import Event
from onnxprune.report.data import Report

LONG_S = 2.0  # a stage that takes longer shows its progress
TERMINAL_S, LOG_S = 0.2, 10.0  # how often: a line that is written over, and lines of a log
MOST_WARNINGS = 6  # on a terminal, where all of them can be read elsewhere
_STAGE_WIDTH = 12
_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


class Progress:
    """Writes events as they come; a context manager, so that a stage without news still shows that it is alive.

    Parameters
    ----------
    stream
        Where to write; on a terminal the line of the running stage is written over, in a log it comes every ten seconds.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._out = stream or sys.stderr
        self._live = self._out.isatty()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._running: Event | None = None
        self._began = self._shown = self._told = 0.0
        self._ticker = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> Progress:  # noqa: PYI034 - typing.Self is newer than Python 3.10
        self._ticker.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._ticker.join()
        self._clear()

    def __call__(self, event: Event) -> None:
        with self._lock:
            now = time.monotonic()
            if event.state == "begin":
                self._running, self._began, self._shown, self._told = event, now, now, now
            elif event.state == "progress":
                self._running, self._told = event, now
            else:
                self._running = None
                self._clear()
                took = f"{event.seconds:8.2f} s" if event.state == "end" else "  reused  "
                self._out.write(
                    f"{event.stage:<{_STAGE_WIDTH}}{took}  {event.detail}".rstrip() + "\n"
                )
                self._out.flush()

    def _tick(self) -> None:
        while not self._stop.wait(TERMINAL_S):
            with self._lock:
                now = time.monotonic()
                due = (
                    self._running
                    and now - self._began >= LONG_S
                    and now - self._shown >= (0 if self._live else LOG_S)
                )
                if due and self._running:
                    self._shown = now
                    self._show(running_line(self._running, now - self._began, now - self._told))

    def _show(self, line: str) -> None:
        self._out.write(f"\r\x1b[K{line}" if self._live else f"{line}\n")
        self._out.flush()

    def _clear(self) -> None:
        if self._live:
            self._out.write("\r\x1b[K")
            self._out.flush()


def running_line(event: Event, elapsed: float, since: float = 0.0) -> str:
    """The line of a stage that goes on, `since` seconds after its last news: what is done, what is left.

    >>> running_line(Event("score", "progress", share=0.25), 5.0)
    'score         25%, 5 s, about 15 s left'
    """
    parts = [f"{elapsed:.0f} s"]
    if event.share:
        before = elapsed - since
        parts = [
            f"{event.share:.0%}",
            *parts,
            f"about {duration(max(before * (1 - event.share) / event.share - since, 0))} left",
        ]
    elif event.left_s is not None:
        parts.append(f"about {duration(max(event.left_s - since, 0))} left")
    return (
        f"{event.stage:<{_STAGE_WIDTH}}  "
        + ", ".join(parts)
        + (f"  {event.detail}" if event.detail else "")
    )


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def amount(value: float, unit: str = "") -> str:
    """Three figures and a decimal prefix: 12.3 M."""
    for factor, prefix in _PREFIXES:
        if value >= factor:
            return (
                f"{value / factor:.3g} {prefix}{unit}"
                if value / factor < 999.5
                else f"{value / factor:.0f} {prefix}{unit}"
            )
    return f"{value:.4g} {unit}".rstrip()


def columns(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Rows as aligned columns, the first `left` ones to the left, the others to the right."""
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            c.ljust(w) if i < left else c.rjust(w)
            for i, (c, w) in enumerate(zip(row, widths, strict=False))
        ).rstrip()
        for row in rows
    )


def before_after(report: Report) -> str:
    """The table of a run: MACs, params, bytes, activation bytes, quality, latency."""
    rows = [("", "before", "after", "")]
    for key, title, unit in (
        ("macs", "MACs", ""),
        ("params", "params", ""),
        ("bytes", "size", "B"),
        ("activation_bytes", "activations", "B"),
    ):
        if key in report.before and key in report.after:
            before, after = report.before[key], report.after[key]
            rows.append(
                (
                    title,
                    amount(before, unit),
                    amount(after, unit),
                    f"{after / before:.1%}" if before else "",
                )
            )
    for metric, row in report.quality.items():
        rows.append(
            (
                metric,
                f"{row['before']:.4g}",
                f"{row['after']:.4g}",
                f"{row['after'] - row['before']:+.4g}",
            )
        )
    for engine, row in report.latency.items():
        rows.append(
            (
                f"latency {engine}",
                f"{row['before_ms']:.3g} ms",
                f"{row['after_ms']:.3g} ms",
                f"{row['speedup']:.2f}x",
            )
        )
    return columns(rows)


def others(report: Report) -> str:
    """What was made beside the model that is written: the trade-off, the way to a tolerance, candidates, random controls; empty where nothing was."""
    parts = []
    if report.curve:
        names = [
            name
            for name in ("relative_error", "agreement")
            if any(p.get(name) is not None for p in report.curve)
        ]
        metrics = list(dict.fromkeys(m for p in report.curve for m in p.get("metrics", {})))
        rows = [("trade-off", "MACs", *metrics, *(n.replace("_", " ") for n in names))]
        for p in report.curve:
            values = [p.get("metrics", {}).get(m, {}).get("value") for m in metrics] + [
                p.get(n) for n in names
            ]
            rows.append(
                (
                    f"{p['label']}{' (written)' if p.get('chosen') else ''}",
                    f"{p['macs']:.1%}",
                    *map(_figure, values),
                )
            )
        parts.append(columns(rows))
    if report.bisection:
        found = report.bisection
        where = f"on the {found['samples']} inputs that chose, after {len(found['rows'])} cuts"
        parts.append(
            f"max_divergence {found['max_divergence']:g}: {_figure(found['reached'])} {where}"
        )
    if report.selection:
        ways = [
            f"{row['criterion']}+{row['allocate']} {_figure(row['value'])}{' (written)' if row['chosen'] else ''}"
            for row in report.selection["rows"]
        ]
        parts.append(
            f"{report.selection['metric']} on {report.selection['samples']} labeled samples that chose: "
            + ", ".join(ways)
        )
    if report.control:
        errors, own = (
            ", ".join(_figure(row["relative_error"]) for row in report.control),
            report.fidelity.get("relative_error"),
        )
        told = (
            [f"outputs differ by {errors}, of this model by {_figure(own)}"]
            if own is not None
            else []
        )
        told += [
            f"{m} {', '.join(_figure(row['metrics'][m]['value']) for row in report.control)}"
            for m in report.quality
        ]
        parts.append("random channels of the same widths: " + "; ".join(told))
    return "\n\n".join(parts)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def held_out(report: Report) -> str:
    """How close the outputs are on inputs that chose nothing; empty where none were kept apart."""
    found = report.fidelity
    if found.get("relative_error") is None:
        return ""
    same = (
        f", the largest is the same for {found['agreement']:.1%}"
        if found.get("agreement") is not None
        else ""
    )
    return f"on {found['samples']} inputs that chose nothing, outputs differ by {found['relative_error']:.2g} of their size{same}"


def summary(report: Report, page: PathLike[str] | None = None) -> str:
    """The tables, and where the result and its page are."""
    told = [text for text in (held_out(report), others(report)) if text]
    where = [f"written to {report.output}"] * bool(report.output) + [f"report: {page}"] * bool(page)
    return "\n\n".join([before_after(report), *told, *(["\n".join(where)] if where else [])])


def warnings(report: Report, page: PathLike[str] | None = None) -> str:
    """The warnings, one a line; empty where there are none. With a page that has all of them, the first ones."""
    most = (
        MOST_WARNINGS if page and len(report.warnings) > MOST_WARNINGS + 1 else len(report.warnings)
    )
    more = (
        [f"{len(report.warnings) - most} more warnings are in {page}"]
        if len(report.warnings) > most
        else []
    )
    return "\n".join([*(f"warning: {w}" for w in report.warnings[:most]), *more])
