"""Progress on a terminal, in a log, and with --quiet."""

from __future__ import annotations

import io
import itertools
import os
import re
import select
import signal
import sys
import time
from pathlib import Path

import pytest

from onnxprune import demo
from onnxprune.cli import lines as log_lines
from onnxprune.cli import run
from onnxprune.cli.lines import running_line
from onnxprune.cli.progress import can_redraw, show_progress
from onnxprune.cli.time_left import TimeLeft
from onnxprune.events import Event, Expected

WAIT_S = 60
MODEL, CALIBRATION, _ = map(str, demo.files())
QUICK = [MODEL, "--data", CALIBRATION, "--samples", "40", "--criterion", "l2", "--engine", "none"]
EVENTS = [
    Event("load", "begin"),
    Event("load", "end", 0.01),
    Event("", "expect", expected={"score": Expected(4.0), "plan": Expected(2.0)}),
    Event("", "warning", detail="input 'x' is [red]constant"),
    Event("score", "begin"),
    Event("score", "progress", share=0.5, detail="[bold]a\x1b[2Kb[/bold] of :smile: layers"),
]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class Clock:
    """A clock that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the variables that terminals depend on."""
    for name in ("NO_COLOR", "LC_ALL", "LC_CTYPE", "FORCE_COLOR", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm", "LANG": "C.UTF-8", "COLUMNS": "80", "LINES": "24"}.items():
        monkeypatch.setenv(name, value)


def draw() -> str:
    """Return what a terminal receives from a run that is in the middle of a stage."""
    stream = Terminal()
    with show_progress(stream) as view:
        for event in EVENTS:
            view(event)
            # a frame while the stage runs; the last one is of the end
        view._live.refresh()  # type: ignore[attr-defined]
    return stream.getvalue()


def plain(text: str) -> str:
    """Return a text without control sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_table_has_finished_running_and_following_stages() -> None:
    frame = plain(draw()).split("load")[-2]
    assert "warning: input 'x' is [red]constant" in plain(draw())
    assert re.search(r"score +0 s +50%  ", frame) and re.search(r"^plan", frame, re.MULTILINE)
    assert re.search(r"1 s so far, about \d s left", frame)
    # the last frame has no stage that never began
    assert "plan" not in plain(draw()).split("load")[-1]


def test_names_do_not_act_on_the_terminal() -> None:
    text = draw()
    assert r"[bold]a\u001b[2Kb[/bold] of :smile: layers" in text
    # always visible, because a process can end at any time
    assert "\x1b[?25l" not in text


def test_no_color_and_ascii_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b[36m" in draw() or "\x1b[1;36m" in draw()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", draw())
    assert not draw().isascii()
    monkeypatch.setenv("LC_ALL", "C")
    assert draw().isascii()


def test_signs_are_ascii_where_the_locale_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C")
    stream = io.StringIO()
    with show_progress(stream) as view:
        view(Event("measure", "end", 1.0, detail="0.5 ± 0.1"))
    assert stream.getvalue() == "measure         1.00 s  0.5 +- 0.1\n"


@pytest.mark.parametrize(("columns", "lines"), [(20, 24), (40, 6), (59, 4), (200, 50)])
def test_frame_fits_the_terminal(monkeypatch: pytest.MonkeyPatch, columns: int, lines: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("LINES", str(lines))
    frames = list(map(plain, re.split(r"\r(?:\x1b\[2K|\x1b\[1A)+", draw())))
    assert max(len(row) for frame in frames for row in frame.split("\n")) <= columns
    # without the last frame, which may scroll, and those with a warning above
    live = [frame for frame in frames[1:-1] if "warning" not in frame]
    assert live and all(frame.count("\n") < lines for frame in live)


def test_log_has_one_line_per_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_lines, "TICK_S", 0.01)
    stream = io.StringIO()
    with show_progress(stream) as view:
        for event in [*EVENTS, Event("score", "end", 3.2, detail="done"), Event("plan", "reused")]:
            view(event)
        time.sleep(0.1)
    assert stream.getvalue().splitlines() == [
        "load            0.01 s",
        "warning: input 'x' is [red]constant",
        "score           3.20 s  done",
        "plan          reused",
    ]


def test_long_stage_has_ever_fewer_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_lines, "TICK_S", 0.001)
    # a clock that advances by its readings
    ticks = itertools.count()
    monkeypatch.setattr(log_lines.time, "monotonic", lambda: 1.0 * next(ticks))
    stream = io.StringIO()
    with show_progress(stream) as view:
        view(Event("score", "begin"))
        view(Event("score", "progress", share=0.5, detail="128 of 256 inputs"))
        # the clock of the waiting is not patched
        deadline = time.perf_counter() + WAIT_S
        while stream.getvalue().count("\n") < 6 and time.perf_counter() < deadline:
            time.sleep(0.01)
    lines = stream.getvalue().splitlines()
    pattern = r"score +50%, (\d+) s, about .* left in this stage  128 of 256 inputs"
    elapsed = [float(m[1]) for line in lines if (m := re.fullmatch(pattern, line))]
    assert len(elapsed) == len(lines) >= 6
    assert all(b >= 1.4 * a for a, b in itertools.pairwise(elapsed))


def test_dumb_terminals_get_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    assert can_redraw(Terminal()) and not can_redraw(io.StringIO())
    monkeypatch.setenv("TERM", "dumb")
    assert not can_redraw(Terminal())


def test_quiet_command_writes_no_progress(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = str(tmp_path / "plan.json")
    assert run(["plan", *QUICK[:-2], "-o", plan]) == 0
    assert "score" in capsys.readouterr().err
    assert run(["plan", *QUICK[:-2], "-o", plan, "--overwrite", "--quiet"]) == 0
    captured = capsys.readouterr()
    assert captured.err == captured.out == ""
    assert run(["plan", "missing.onnx", "-q"]) == 1
    assert capsys.readouterr().err.startswith("error[")


def start_on_terminal(*arguments: str) -> tuple[int, int]:
    """Start a command on a pseudo-terminal; return its process and the other end."""
    import pty

    process, end = pty.fork()
    if process == 0:
        # a test runner in the background may ignore it
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.execv(sys.executable, [sys.executable, "-m", "onnxprune", *arguments])
    return process, end


def read_until(end: int, text: str) -> str:
    """Return what a command writes until a text, or until it ends."""
    received, deadline = "", time.monotonic() + WAIT_S
    while text not in received or not text:
        ready, _, _ = select.select([end], [], [], max(deadline - time.monotonic(), 0))
        assert ready, received
        try:
            chunk = os.read(end, 1 << 16)
        except OSError:  # the command has ended
            break
        if not chunk:
            break
        received += chunk.decode(errors="replace")
    return received


@pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals are POSIX")
def test_run_draws_on_a_terminal_and_ends_clean(tmp_path: Path) -> None:
    process, end = start_on_terminal("optimize", *QUICK, "-o", str(tmp_path / "out.onnx"))
    text = read_until(end, "")
    assert os.waitpid(process, 0)[1] == 0
    assert "\x1b[?25l" not in text
    # after the last frame only the summary follows, without control of the cursor
    last = re.split(r"\x1b\[2K", text)[-1]
    assert re.search(r"^load .*^score .*^cut .*MACs", last, re.MULTILINE | re.DOTALL)
    assert "so far" not in last and "What next" in last


@pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals are POSIX")
def test_signal_leaves_the_table_and_the_cursor(tmp_path: Path) -> None:
    options = ["--criterion", "reconstruction"]
    process, end = start_on_terminal("optimize", *QUICK, *options, "-o", str(tmp_path / "out.onnx"))
    before = read_until(end, "score")
    os.kill(process, signal.SIGINT)
    after = read_until(end, "")
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 130
    assert "\x1b[?25l" not in before + after
    assert re.search(r"\nerror\[interrupted\]: stopped in stage", plain(after))


def test_expectation_follows_the_speed_of_finished_stages() -> None:
    clock = Clock()
    left = TimeLeft(clock)
    assert left.of_run() is None
    expected = {"score": Expected(10.0), "plan": Expected(5.0), "measure": Expected(0.0, 4.0)}
    left(Event("", "expect", expected=expected))
    assert left.of_run() == pytest.approx(19.0)
    left(Event("score", "begin"))
    clock.now = 20.0
    left(Event("score", "end", 20.0))
    # about half as fast as expected; the measurement takes the time that it is given
    assert left.of_run() == pytest.approx(5.0 * 2 + 4.0, rel=0.02)
    assert left.ahead == ("plan", "measure")


def test_progress_replaces_the_expectation() -> None:
    clock = Clock()
    left = TimeLeft(clock)
    left(Event("", "expect", expected={"score": Expected(10.0)}))
    left(Event("score", "begin"))
    clock.now = 40.0
    left(Event("score", "progress", share=0.8))
    assert 5.0 < (left.of_stage() or 0.0) < 10.0


def test_repeated_and_skipped_stages_are_expected() -> None:
    clock = Clock()
    left = TimeLeft(clock)
    names = ("bisect", "plan", "repair", "evaluate")
    left(Event("", "expect", expected={name: Expected(3.0) for name in names}))
    for name in ("plan", "repair"):
        left(Event(name, "begin"))
        clock.now += 3.0
        left(Event(name, "end", 3.0))
    assert left.ahead == ("evaluate",)
    # the plan missed its target after the repair
    left(Event("plan", "begin"))
    assert left.ahead == ("repair", "evaluate")
    assert left.of_run() == pytest.approx(9.0, rel=0.01)


def test_shares_of_several_parts_are_not_those_of_the_stage() -> None:
    clock = Clock()
    left = TimeLeft(clock)
    left(Event("", "expect", expected={"candidate 1": Expected(40.0)}))
    left(Event("candidate 1", "begin"))
    for clock.now, share in ((5.0, 0.9), (10.0, 0.05), (11.0, 0.1)):
        left(Event("candidate 1", "progress", share=share))
    assert left.of_run() == pytest.approx(29.0)


def test_late_stage_never_has_nothing_left() -> None:
    clock = Clock()
    left = TimeLeft(clock)
    left(Event("", "expect", expected={"repair": Expected(1.0)}))
    left(Event("repair", "begin"))
    left(Event("repair", "progress", share=0.95))
    values = []
    for clock.now in range(10, 90, 10):
        values.append(left.of_run())
    assert all(value is not None and value >= 1.0 for value in values)


def test_unknown_work_is_said_to_be_unknown() -> None:
    left = TimeLeft(Clock())
    left(Event("", "expect", expected={"plan": Expected(None), "repair": Expected(3.0)}))
    left(Event("plan", "begin"))
    assert left.of_run() is None
    line = running_line(Event("plan", "progress", detail="round 3"), 12.0, left)
    assert line == "plan          12 s, time left unknown  round 3"


def test_estimate_counts_down_between_events() -> None:
    clock = Clock()
    left = TimeLeft(clock)
    left(Event("", "expect", expected={"score": Expected(100.0), "plan": Expected(50.0)}))
    left(Event("score", "begin"))
    values = []
    for second in range(60):
        clock.now = float(second)
        # measured work that is up to 5 percent off
        left(Event("score", "progress", share=second * (1.05 if second % 2 else 0.95) / 100))
        values.append(left.of_run() or 0.0)
    assert all(a - b == pytest.approx(1.0) for a, b in itertools.pairwise(values[5:]))
