"""Terminal output: one line per stage, time left, tables, warnings."""

from __future__ import annotations

import io
import itertools
import re
import time
import types
from pathlib import Path

import pytest

from onnxprune.events import Event
from onnxprune.report import terminal
from onnxprune.report.data import Report, Stage
from onnxprune.report.terminal import Progress, before_after, running_line, summary, warnings
from onnxprune.report.text import amount, duration

WAIT_S = 60


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_long_stage_shows_progress_and_ends_as_one_line(
    stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LONG_S", "TERMINAL_S", "LOG_S"):
        monkeypatch.setattr(terminal, name, 0.02)
    # a clock that advances by its readings, so that times do not depend on the machine's load
    ticks = itertools.count()
    clock = types.SimpleNamespace(monotonic=lambda: 0.01 * next(ticks))
    monkeypatch.setattr(terminal, "time", clock)
    with Progress(stream) as progress:
        progress(Event("score", "begin"))
        progress(Event("score", "progress", share=0.5, detail="128 of 256 inputs"))
        deadline = time.monotonic() + WAIT_S
        while "50%" not in stream.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
        progress(Event("score", "end", 3.2, detail="done well"))
        progress(Event("plan", "reused", 1.0))
        time.sleep(0.1)
    lines = [line.rpartition("\x1b[K")[2] for line in stream.getvalue().split("\n")]
    assert lines[-3:-1] == ["score           3.20 s  done well", "plan          reused"] or lines[
        -4:-2
    ] == ["score           3.20 s  done well", "plan          reused"]
    running = re.findall(r"score +50%, 0 s, about 0 s left  128 of 256 inputs", stream.getvalue())
    assert running and stream.getvalue().index("reused") > stream.getvalue().rindex("50%")


def test_short_stage_shows_no_progress() -> None:
    stream = io.StringIO()
    with Progress(stream) as progress:
        progress(Event("plan", "begin"))
        progress(Event("plan", "progress", share=0.5))
        progress(Event("plan", "end", 0.01))
    assert stream.getvalue() == "plan            0.01 s\n"


@pytest.mark.parametrize(
    ("event", "elapsed", "since", "line"),
    [
        (
            Event("score", "progress", share=0.2),
            10.0,
            0.0,
            "score         20%, 10 s, about 40 s left",
        ),
        (
            Event("score", "progress", share=0.2),
            12.0,
            2.0,
            "score         20%, 12 s, about 38 s left",
        ),
        (
            Event("score", "progress", share=0.5),
            600.0,
            0.0,
            "score         50%, 600 s, about 10 min left",
        ),
        (
            Event("measure", "progress", left_s=8.0, detail="timing"),
            3.0,
            5.0,
            "measure       3 s, about 3 s left  timing",
        ),
        (Event("verify", "begin"), 4.0, 4.0, "verify        4 s"),
    ],
)
def test_time_left_is_extrapolated_from_the_last_event(
    event: Event, elapsed: float, since: float, line: str
) -> None:
    assert running_line(event, elapsed, since) == line


def test_numbers_have_three_digits_and_a_unit() -> None:
    assert [amount(v) for v in (0, 12, 999, 1000, 12345, 1.5e9)] == [
        "0",
        "12",
        "999",
        "1 k",
        "12.3 k",
        "1.5 G",
    ]
    assert amount(371432, "B") == "371 kB"
    assert [duration(s) for s in (5, 89, 120, 5400, 8000)] == [
        "5 s",
        "89 s",
        "2 min",
        "1 h 30 min",
        "2 h 13 min",
    ]


def test_table_has_all_measurements() -> None:
    report = Report(
        "a.onnx",
        "b.onnx",
        {"macs": 2000, "params": 10, "bytes": 40, "activation_bytes": 0},
        {"macs": 1000, "params": 4, "bytes": 16, "activation_bytes": 0},
        latency={
            "onnxruntime": {
                "before_ms": 2.0,
                "after_ms": 1.0,
                "speedup": 2.0,
                "low": 1.9,
                "high": 2.1,
            }
        },
        quality={"top1": {"before": 0.9, "after": 0.85, "standard_error": 0.01, "samples": 100}},
    )
    table = [line.split() for line in before_after(report).splitlines()]
    assert ["MACs", "2", "k", "1", "k", "50.0%"] in table and [
        "latency",
        "onnxruntime",
        "2",
        "ms",
        "1",
        "ms",
        "2.00x",
    ] in table
    assert ["top1", "0.9", "0.85", "-0.05"] in table


def test_summary_has_fidelity_and_paths() -> None:
    report = Report(
        "a",
        "b.onnx",
        {"macs": 2},
        {"macs": 1},
        fidelity={
            "samples": 5,
            "relative_error": 0.0213,
            "agreement": 0.8,
            "outputs": {"y": {"top1_agreement": 0.8}},
        },
        warnings=tuple("abcdefgh"),
    )
    said = summary(report, Path("b.run/report.html")).splitlines()
    assert said[-4:] == [
        "held-out inputs (5): relative output error 0.021, top-1 agreement 80.0%",
        "",
        "written to b.onnx",
        f"report: {Path('b.run/report.html')}",
    ]
    assert warnings(report).splitlines() == [f"warning: {w}" for w in "abcdefgh"]
    assert warnings(report, Path("p.html")).splitlines() == [
        *(f"warning: {w}" for w in "abcdef"),
        "2 more warnings are in p.html",
    ]


def test_written_report_reads_as_equal_report() -> None:
    report = Report(
        "a", "b", {"macs": 2}, {"macs": 1}, stages=(Stage("score", 1.0, True),), warnings=("w",)
    )
    assert Report.from_json(report.to_json()) == report
