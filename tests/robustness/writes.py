"""Disk full, and kill, at each write of a run.

From operation N of a run on, every operation that needs space fails as on a full disk, or the
process is killed before operation N. Operations are creations of files and folders, writes, syncs,
links, changes of modes and renames, by onnxprune/files.py and onnxprune/run/rundir.py, and those
in temporary folders. Processes of engines are not counted; they must end with the run.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxprune import demo
from onnxprune.run.job import REPORT_FILES
from tests.robustness import markdown
from tests.robustness.fuzz import prepare

NEEDS_NO_SPACE = ("replace", "rename")
END_S = 20.0  # after a run, for the processes of engines
RUNS = {
    "the default run with external data, on 32 samples": ["--external-data", "--samples=32"],
    "a run without measurements": (
        "--criterion=l2 --repair=bias --engine=none --samples=32".split()
    ),
}


class Faults:
    """Counts operations, and makes them fail."""

    def __init__(self, kind: str, first: int) -> None:
        self.kind, self.first, self.count = kind, first, 0

    def operate(self, name: str) -> None:
        """Count an operation that is about to be done."""
        self.count += 1
        if self.count < self.first:
            return
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        # a rename on a full disk may fail, but usually succeeds: it fails only at the first
        if self.kind == "full" and (self.count == self.first or name not in NEEDS_NO_SPACE):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that is an operation."""

        def call(*arguments: Any, **keywords: Any) -> Any:
            self.operate(name)
            return function(*arguments, **keywords)

        return call


def install(faults: Faults) -> None:
    """Replace the functions of Python that write."""
    open_file, fdopen, os_open = builtins.open, os.fdopen, os.open

    class File(io.FileIO):
        def write(self, data: Any) -> int:
            faults.operate("write")
            return super().write(data)

        def truncate(self, size: int | None = None) -> int:
            return super().truncate(size)

    def wrapped_fdopen(
        fd: int, mode: str = "r", buffering: int = -1, *rest: Any, **more: Any
    ) -> Any:
        if "b" in mode and ("w" in mode or "+" in mode):
            raw = File(fd, mode.replace("b", ""))
            return (
                raw
                if buffering == 0
                else io.BufferedRandom(raw)
                if "+" in mode
                else io.BufferedWriter(raw)
            )
        return fdopen(fd, mode, buffering, *rest, **more)

    def wrapped_open(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if flags & os.O_CREAT and not os.path.exists(path):
            faults.operate("create")
        return os_open(path, flags, *rest, **more)

    def wrapped_open_file(path: Any, mode: str = "r", *rest: Any, **more: Any) -> Any:
        if set(mode) & set("wax"):
            faults.operate("create")
        return open_file(path, mode, *rest, **more)

    os.fdopen, os.open = wrapped_fdopen, wrapped_open  # type: ignore[assignment]
    builtins.open = wrapped_open_file
    for name in ("replace", "rename", "link", "fsync", "mkdir", "chmod"):
        setattr(os, name, faults.wrap(name, getattr(os, name)))


def command(out: Path, *more: str) -> list[str]:
    """Return arguments of a run on the demo model with calibration data."""
    model, calibration, _ = demo.files()
    return ["optimize", str(model), "-o", str(out), f"--data={calibration}", *more]


def run(folder: Path, kind: str, first: int, *more: str) -> tuple[int, str, int]:
    """Run in a forked process with faults; return exit code, stderr and number of operations."""
    record = folder.parent / "record"
    record.mkdir(exist_ok=True)
    (record / "count").unlink(missing_ok=True)
    child = os.fork()
    if not child:
        os.setsid()
        _run_child(record, kind, first, command(folder / "out.onnx", *more))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    count = record / "count"
    number = int(count.read_text()) if count.exists() else 0
    stderr = (record / "stderr").read_text(errors="replace")
    if not _wait_for_end(child):
        return status, f"{stderr}error[internal]: a process of the run is still there", number
    return status, stderr, number


def _wait_for_end(session: int) -> bool:
    """Return whether all processes of a session end within END_S."""
    deadline = time.monotonic() + END_S
    while session in _list_sessions():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _list_sessions() -> set[int]:
    """Return the sessions of all processes that have not ended."""
    sessions = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # the name of the program, in parentheses, may hold anything
            state, _, _, session = path.read_text().rpartition(")")[2].split()[:4]
            if state != "Z":
                sessions.add(int(session))
    return sessions


def _run_child(record: Path, kind: str, first: int, arguments: list[str]) -> None:
    """Run the command line; never return."""
    from onnxprune.cli import run as run_command

    os.dup2(os.open(record / "stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    plain_open, faults = open, Faults(kind, first)
    install(faults)
    code = run_command(arguments)
    faults.kind = "none"
    with plain_open(record / "count", "w") as file:
        file.write(str(faults.count))
    os._exit(code)


def tree(folder: Path) -> dict[str, bytes]:
    """Return all files of a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


class Trial:
    """An earlier run and the results of a later one, with another target, in place of it."""

    def __init__(self, folder: Path, options: Sequence[str]) -> None:
        prepare()
        self.base = folder / "base"
        self.work = folder / "work"
        self.base.mkdir(parents=True)
        code, stderr, _ = run(self.base, "none", 0, "--target=macs=80%", *options)
        if code:
            raise RuntimeError(stderr)
        self.options = ["--target=macs=60%", "--overwrite", *options]
        self.restore()
        code, stderr, self.operations = run(self.work, "none", 0, *self.options)
        if code:
            raise RuntimeError(stderr)
        self.results = self.outputs()

    def restore(self) -> None:
        """Put the earlier run back."""
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(self.base, self.work)

    def outputs(self) -> dict[str, bytes]:
        """Return the model, its data and the plan."""
        files = tree(self.work)
        return {n: b for n, b in files.items() if "/" not in n or n.endswith("plan.json")}

    def is_complete(self, outputs: Mapping[str, bytes]) -> bool:
        """Return whether the model in place is the one of these outputs, with all of its data."""
        now = self.outputs()
        return all(now.get(n) == b for n, b in outputs.items() if "/" not in n)

    def fill(self, first: int) -> str:
        """Return what a full disk from an operation on breaks; "" if nothing."""
        self.restore()
        before = tree(self.work)
        code, stderr, _ = run(self.work, "full", first, *self.options)
        after = tree(self.work)
        errors = [line for line in stderr.splitlines() if line.startswith("error[")]
        if code == 0:
            # the failed operation was no part of a result
            return "" if self.outputs() == self.results else "other results without an error"
        if code != 1 or len(errors) != 1 or "internal" in errors[0] or "Traceback" in stderr:
            return f"exit code {code}: {(errors or stderr.splitlines()[-1:] or ['nothing'])[0]}"
        # stages that are done stay for the next run, which the journal lists
        lost = [n for n in before if not _is_stage(n) and after.get(n) != before[n]]
        new = [n for n in after if n not in before and not n.startswith("out.run/")]
        partial = [n for n in after if n.endswith(".partial")]
        return f"changes {', '.join(lost + new + partial)}" if lost + new + partial else ""

    def kill(self, first: int) -> str:
        """Return what a kill before an operation breaks; "" if the next run completes."""
        self.restore()
        before = self.outputs()
        _, stderr, _ = run(self.work, "kill", first, *self.options)
        if "internal" in stderr:
            return stderr[-200:]
        if not any(self.is_complete(outputs) for outputs in (before, self.results)):
            return "half an output"
        code, stderr, _ = run(self.work, "none", 0, *self.options)
        if code:
            return f"the next run ends with {code}: {stderr[-200:]}"
        if self.outputs() != self.results:
            return "other bytes after the next run"
        partial = [str(p) for p in self.work.rglob("*.partial")]
        return f"leaves {partial[0]}" if partial else ""


def _is_stage(name: str) -> bool:
    """Return whether a file is one of a stage of a run, which may be newer than the output."""
    return name.startswith("out.run/") and Path(name).name not in REPORT_FILES


def try_all(folder: Path, kills: int, every: int = 1) -> list[dict[str, Any]]:
    """Return rows for a full disk at each operation, and kills at random ones, of each run."""
    return [
        row
        for number, (name, options) in enumerate(RUNS.items())
        for row in try_run(name, Trial(folder / str(number), options), kills, every)
    ]


def try_run(name: str, trial: Trial, kills: int, every: int) -> list[dict[str, Any]]:
    """Return the rows of one run."""
    rows = []
    numbers = range(1, trial.operations + 1, every)
    last = range(max(1, trial.operations - 9), trial.operations + 1)
    earlier = range(1, last[0])
    drawn = random.Random(0).sample(earlier, min(max(0, kills - len(last)), len(earlier)))
    chosen = sorted({*drawn, *last})
    for what, attempt, places in (
        (f"{name}: a full disk from each operation on", trial.fill, numbers),
        (f"{name}: kill -9 before operations at random and the last ten", trial.kill, chosen),
    ):
        problems = {n: text for n in places if (text := attempt(n))}
        rows.append(
            {
                "what": what,
                "operations": trial.operations,
                "tried": len(places),
                "problems": {str(n): text for n, text in problems.items()},
            }
        )
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the section of the page."""
    columns = "operations of the run", "tried", "something lost, half, or other bytes"
    lines = ["## Disk full and kills at each write", "", *markdown.head("fault", *columns)]
    for row in rows:
        broken = [f"at {n}: {text}" for n, text in row["problems"].items()]
        result = markdown.cell("; ".join(broken)) or "0"
        lines.append(markdown.line(row["what"], row["operations"], row["tried"], result))
    return lines
