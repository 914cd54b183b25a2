"""SIGINT and SIGTERM at any moment end in one sentence."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from onnxprune.cli import INTERRUPTED, run, signals
from onnxprune.cli.app import app
from onnxprune.cli.signals import SIGNALS

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")


@pytest.fixture(autouse=True)
def _heed_interrupts() -> Iterator[None]:
    """Heed both signals: processes in the background ignore SIGINT, and so do those they start.

    A library that has installed a handler of its own in C, as Ray does, would end the process of
    the tests at SIGTERM.
    """
    before = {number: signal.signal(number, signal.default_int_handler) for number in SIGNALS}
    yield
    for number, handler in before.items():
        if handler is not None:  # Python cannot put a handler of C back
            signal.signal(number, handler)


# sends a signal while a module is imported, or a second one in the handler of the first
DURING_IMPORT = """
import builtins, os, sys
sys.argv = ["onnxprune", "doctor"]
place, number = {place!r}, {number}
original = builtins.__import__
def load(name, *rest, **more):
    global place
    if name == place:
        place = None
        os.kill(os.getpid(), number)
    return original(name, *rest, **more)
builtins.__import__ = load
from onnxprune.__main__ import main
main()
"""


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("place", ["click", "onnxprune.cli.app", "onnxprune.engines"])
def test_signal_during_imports_is_one_sentence(number: int, place: str) -> None:
    code = DURING_IMPORT.format(place=place, number=int(number))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    # -2: Python ends by SIGINT itself where one passed through code that was compiled from text
    assert done.returncode in (INTERRUPTED, -signal.SIGINT), done.stderr
    assert done.stderr.strip().startswith("error[interrupted]") and "Trace" not in done.stderr


@pytest.mark.parametrize("failure", [ImportError("initialization failed"), SystemExit(1)])
@pytest.mark.parametrize("number", SIGNALS)
def test_failure_after_a_signal_is_an_interrupt(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    number: int,
    failure: BaseException,
) -> None:
    def swallow(**_: Any) -> NoReturn:
        try:
            # to this thread: the system may deliver a signal of the process to another, later
            signal.raise_signal(number)
        except KeyboardInterrupt:
            raise failure from None
        raise AssertionError("no interrupt")

    def end() -> NoReturn:
        raise AssertionError("ended at once")

    # the real one would end the process of the tests
    monkeypatch.setattr(signals, "end", end)
    monkeypatch.setattr(app, "main", swallow)
    before = [signal.getsignal(s) for s in SIGNALS]
    assert run(["doctor"]) == INTERRUPTED
    assert capfd.readouterr().err.startswith("error[interrupted]: stopped")
    assert [signal.getsignal(s) for s in SIGNALS] == before


@pytest.mark.parametrize("lost", ["destructor", "second"])
def test_lost_and_second_signals_end_the_process(lost: str) -> None:
    body = {
        "destructor": "class A:\n    def __del__(self): os.kill(os.getpid(), 15)\nA()\n",
        "second": "try: os.kill(os.getpid(), 15)\nfinally: os.kill(os.getpid(), 2)\n",
    }[lost]
    code = (
        "import os\nfrom onnxprune.cli.signals import interruptible\n"
        f"with interruptible():\n    exec({body!r})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == INTERRUPTED
    assert done.stderr.startswith("error[interrupted]: ended at once")
    assert "Traceback" not in done.stderr


def test_ignored_signals_stay_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        monkeypatch.setattr(app, "main", lambda **_: signal.raise_signal(signal.SIGINT))
        assert run(["doctor"]) == 0
    finally:
        signal.signal(signal.SIGINT, before)


def test_interrupt_of_executed_text_exits_with_a_code(tmp_path: Path) -> None:
    """CPython would end by the signal, although the interrupt is caught."""
    script = (
        "from onnxprune import cli\n"
        "def stop(argv):\n"
        "    try:\n"
        "        exec('raise KeyboardInterrupt')\n"
        "    except KeyboardInterrupt:\n"
        "        return 130\n"
        "cli.run = stop\n"
        "cli.main([])\n"
    )
    (tmp_path / "interrupted.py").write_text(script, encoding="utf-8")
    # as a module, whose exit code CPython decides last
    command = [sys.executable, "-m", "interrupted"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    result = subprocess.run(command, check=False, cwd=tmp_path, env=environment)
    assert result.returncode == 130
