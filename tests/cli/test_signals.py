"""SIGINT and SIGTERM at any moment end in one sentence."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from onnxprune.cli.signals import INTERRUPTED, SIGNALS

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")

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


def execute(code: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own, which a signal may end.

    It heeds SIGINT: processes in the background ignore it, and so do those that they start.
    """
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    return subprocess.run(
        [sys.executable, "-c", heed + code], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("place", ["click", "onnxprune.cli.app", "onnxprune.engines"])
def test_signal_during_imports_is_one_sentence(number: int, place: str) -> None:
    code = DURING_IMPORT.format(place=place, number=int(number))
    done = execute(code)
    # -2: Python ends by SIGINT itself where one passed through code that was compiled from text
    assert done.returncode in (INTERRUPTED, -signal.SIGINT), done.stderr
    assert done.stderr.strip().startswith("error[interrupted]") and "Trace" not in done.stderr


# runs a command, in the place of which a signal arrives; a library turns that into its own error
SWALLOWED = """
import signal, sys
from onnxprune.cli import run
from onnxprune.cli.app import app
signals = (signal.SIGINT, signal.SIGTERM)
for number in signals:
    signal.signal(number, signal.default_int_handler)
def swallow(**_):
    try:
        # to this thread: the system may deliver a signal of the process to another, later
        signal.raise_signal({number})
    except KeyboardInterrupt:
        raise {failure} from None
app.main = swallow
code = run(["doctor"])
kept = all(signal.getsignal(number) is signal.default_int_handler for number in signals)
sys.exit(code if kept else 99)
"""


@pytest.mark.parametrize("failure", ["ImportError('initialization failed')", "SystemExit(1)"])
@pytest.mark.parametrize("number", SIGNALS)
def test_failure_after_a_signal_is_an_interrupt(number: int, failure: str) -> None:
    done = execute(SWALLOWED.format(number=int(number), failure=failure))
    # -2: Python ends by SIGINT itself where one passed through code that was compiled from text
    assert done.returncode in (INTERRUPTED, -signal.SIGINT), done.stderr
    assert done.stderr.startswith("error[interrupted]: stopped")


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
    done = execute(code)
    assert done.returncode == INTERRUPTED
    assert done.stderr.startswith("error[interrupted]: ended at once")
    assert "Traceback" not in done.stderr


def test_ignored_signals_stay_ignored() -> None:
    code = (
        "import signal, sys\nfrom onnxprune.cli import run\nfrom onnxprune.cli.app import app\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "app.main = lambda **_: signal.raise_signal(signal.SIGINT)\n"
        "sys.exit(run(['doctor']))\n"
    )
    done = execute(code)
    assert done.returncode == 0, done.stderr


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
