"""Disk full, and kill, at each write of a run.

From operation N of a run on, every operation that needs space fails as on a full disk, or the
process is killed before operation N. Operations are creations of files and folders, writes, syncs,
links, changes of modes and renames, by onnxprune/files.py and onnxprune/run/rundir.py, and those
in temporary folders.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from onnxprune import demo
from onnxprune.run.job import REPORT_FILES
from tests.robustness import markdown
from tests.robustness.fuzz import prepare

NEEDS_NO_SPACE = ("replace", "rename")


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
    """Return arguments of a run on the demo model with calibration data, repair and report."""
    model, calibration, _ = demo.files()
    arguments = ["optimize", str(model), "-o", str(out), f"--data={calibration}", "--samples=32"]
    return [*arguments, "--criterion=l2", "--repair=bias", "--engine=none", *more]


def run(folder: Path, kind: str, first: int, *more: str) -> tuple[int, str, int]:
    """Run in a forked process with faults; return exit code, stderr and number of operations."""
    record = folder.parent / "record"
    record.mkdir(exist_ok=True)
    (record / "count").unlink(missing_ok=True)
    child = os.fork()
    if not child:
        _run_child(record, kind, first, command(folder / "out.onnx", *more))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    count = record / "count"
    number = int(count.read_text()) if count.exists() else 0
    return status, (record / "stderr").read_text(errors="replace"), number


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
    """An earlier run and the results of a later one, with other options, in place of it."""

    def __init__(self, folder: Path) -> None:
        prepare()
        self.base = folder / "base"
        self.work = folder / "work"
        self.base.mkdir(parents=True)
        code, stderr, _ = run(self.base, "none", 0, "--target=macs=80%")
        if code:
            raise RuntimeError(stderr)
        self.options = ["--target=macs=60%", "--overwrite"]
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
        run(self.work, "kill", first, *self.options)
        model = (self.work / "out.onnx").read_bytes()
        if model not in (before["out.onnx"], self.results["out.onnx"]):
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
    """Return rows for a full disk and a kill at each operation, and kills at random ones."""
    trial = Trial(folder)
    rows = []
    numbers = range(1, trial.operations + 1, every)
    drawn = random.Random(0).sample(range(1, trial.operations + 1), min(kills, trial.operations))
    last = range(max(1, trial.operations - 9), trial.operations + 1)
    chosen = sorted({*drawn[: max(0, kills - len(last))], *last})
    for what, attempt, places in (
        ("a full disk from each operation on", trial.fill, numbers),
        ("kill -9 before operations at random and before the last ten", trial.kill, chosen),
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
