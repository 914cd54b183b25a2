"""Faults that a run survives: kills, interrupts, concurrent runs, inputs that disappear.

A fault is a function (folder, times) -> (passed, result as text).
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from onnxprune import demo

Fault = Callable[[Path, int], tuple[bool, str]]
LIMIT_S = 120
OPTIONS = ["--repair=bias", "--engine=none"]
INTERRUPTED = 130  # exit code after Ctrl-C
OLD_OUTPUT = b"precious"
SAME_BYTES = "rerunning the command gives the same bytes"


def _command(out: Path, *more: str) -> list[str]:
    """Return the command line of a run on the demo model."""
    model, calibration, _ = demo.files()
    command = [sys.executable, "-m", "onnxprune", "optimize", str(model), "-o", str(out)]
    return [*command, *OPTIONS, "--data", str(calibration), *more]


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)


def _start(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=_accept_interrupts,
    )


def _accept_interrupts() -> None:
    """Reset SIGINT, which processes in the background ignore."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _run_undisturbed(folder: Path) -> float:
    """Write reference.onnx; return the seconds that the run takes."""
    start = time.monotonic()
    done = _run(_command(folder / "reference.onnx"))
    if done.returncode:
        raise RuntimeError(done.stderr)
    return time.monotonic() - start


def _is_same(folder: Path, name: str) -> bool:
    """Return whether output and plan equal those of the undisturbed run."""
    for path in ("{}.onnx", "{}.run/plan.json"):
        expected = (folder / path.format("reference")).read_bytes()
        if (folder / path.format(name)).read_bytes() != expected:
            return False
    return True


def _errors(text: str, folder: Path) -> list[str]:
    """Return the error lines of a run, without the name of its folder."""
    lines = [line for line in text.splitlines() if line.startswith("error[")]
    return [line.replace(str(folder), "FOLDER") for line in lines]


def _wait_for(path: Path) -> None:
    """Wait until a file exists, at most LIMIT_S."""
    deadline = time.monotonic() + LIMIT_S
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)


def kill(folder: Path, times: int) -> tuple[bool, str]:
    """Kill runs at random times, then run the same command."""
    duration, rng = _run_undisturbed(folder), random.Random(0)
    killed = same = 0
    for number in range(times):
        process = _start(_command(folder / f"{number}.onnx"))
        try:
            process.wait(timeout=duration * rng.uniform(0.05, 1.0))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
        process.communicate()
        again = _run(_command(folder / f"{number}.onnx"))
        same += again.returncode == 0 and _is_same(folder, str(number))
    leftovers = [p.name for p in folder.rglob(".*")]
    text = f"{killed} of {times} runs were killed; {SAME_BYTES} in {same} of {times}"
    return same == times and not leftovers, f"{text}; {len(leftovers)} temporary files remain"


def interrupt(folder: Path, times: int) -> tuple[bool, str]:
    """Send SIGINT to a run."""
    _run_undisturbed(folder)
    process = _start(_command(folder / "other.onnx"))
    _wait_for(folder / "other.run" / "lock")
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)
    stderr = process.communicate(timeout=LIMIT_S)[1]
    clean = "Traceback" not in stderr and not (folder / "other.onnx").exists()
    error = "; ".join(_errors(stderr, folder))
    last = stderr.splitlines()[-1].startswith("error[interrupted]") if stderr else False
    again = _run(_command(folder / "other.onnx"))
    same = again.returncode == 0 and _is_same(folder, "other")
    passed = process.returncode == INTERRUPTED and clean and last and same
    return passed, f"exit code {process.returncode}, `{error}`; {SAME_BYTES}"


def run_twice(folder: Path, times: int) -> tuple[bool, str]:
    """Start a second run in the run directory of another."""
    _run_undisturbed(folder)
    first = _start(_command(folder / "one.onnx", "--run-dir", str(folder / "one.run")))
    lock = folder / "one.run" / "lock"
    _wait_for(lock)
    while first.poll() is None and not lock.stat().st_size:
        time.sleep(0.01)  # what the lock holds is written after it is acquired
    # paused, so that it cannot end before the second run begins
    os.killpg(first.pid, signal.SIGSTOP)
    second = _run(_command(folder / "two.onnx", "--run-dir", str(folder / "one.run")))
    os.killpg(first.pid, signal.SIGCONT)
    first.communicate(timeout=LIMIT_S)
    error = "; ".join(_errors(second.stderr, folder))
    rejected = second.returncode == 1 and "run-dir-busy" in error
    undisturbed = first.returncode == 0 and _is_same(folder, "one")
    passed = undisturbed and rejected and not (folder / "two.onnx").exists()
    text = f"exit code {second.returncode}, `{error.split(';')[0]}`; the first is undisturbed"
    return passed, text


def remove_data(folder: Path, times: int) -> tuple[bool, str]:
    """Remove the calibration data during a run that would replace an earlier output."""
    (folder / "data").mkdir()
    rng = np.random.default_rng(0)
    for i in range(64):
        np.save(folder / "data" / f"{i}.npy", rng.random((1, 8, 8), np.float32))
    command = [*_command(folder / "out.onnx", "--overwrite"), f"--data={folder / 'data'}"]
    (folder / "out.onnx").write_bytes(OLD_OUTPUT)
    process = _start([*command, "--criterion=activation_mean"])
    _wait_for(folder / "out.run" / "scores.npz")  # the repair reads the data again
    shutil.rmtree(folder / "data")
    errors = _errors(process.communicate(timeout=LIMIT_S)[1], folder)
    kept = (folder / "out.onnx").read_bytes() == OLD_OUTPUT
    rejected = process.returncode == 1 and len(errors) == 1 and "internal" not in errors[0]
    text = f"exit code {process.returncode}, `{(errors or ['nothing'])[0]}`"
    return rejected and kept, f"{text}; the old output is unchanged"


def remove_model(folder: Path, times: int) -> tuple[bool, str]:
    """Remove the model during a run."""
    _run_undisturbed(folder)
    model = folder / "model.onnx"
    shutil.copy(demo.files().model, model)
    command = _command(folder / "other.onnx")
    command[command.index(str(demo.files().model))] = str(model)
    process = _start(command)
    _wait_for(folder / "other.run" / "lock")
    model.unlink()
    process.communicate(timeout=LIMIT_S)
    passed = process.returncode == 0 and _is_same(folder, "other")
    return passed, f"exit code {process.returncode}; an open file stays readable: the same bytes"


def corrupt_run_dir(folder: Path, times: int) -> tuple[bool, str]:
    """Truncate the journal and change files of a run directory."""
    _run_undisturbed(folder)
    _run(_command(folder / "other.onnx"))
    run = folder / "other.run"
    journal = run / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:-2]) + lines[-2][:20])
    (run / "plan.json").write_text("{}")
    for entry in map(json.loads, lines):
        for name in entry["files"]:
            if name.endswith(".npz"):
                (run / name).write_bytes(b"half")
    (folder / "other.onnx").unlink()
    again = _run(_command(folder / "other.onnx"))
    passed = again.returncode == 0 and _is_same(folder, "other")
    return passed, f"exit code {again.returncode}; files with a wrong hash are redone: same bytes"


def fill_disk(folder: Path, times: int) -> tuple[bool, str]:
    """Run on a file system of 300 kB that holds an earlier output."""
    disk = folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        return True, "not tried: this machine permits no mounts; see the limits on file sizes"
    try:
        (disk / "out.onnx").write_bytes(OLD_OUTPUT)
        done = _run([*_command(disk / "out.onnx", "--overwrite"), "--target=macs=95%"])
        errors = _errors(done.stderr, disk)
        files = {p.name: p.read_bytes() for p in disk.rglob("*") if p.is_file()}
        rejected = done.returncode == 1 and len(errors) == 1 and "internal" not in errors[0]
        text = f"exit code {done.returncode}, `{(errors or ['nothing'])[0]}`"
        passed = rejected and files == {"out.onnx": OLD_OUTPUT}
        return passed, f"{text}; the old output is unchanged, no other file remains"
    finally:
        subprocess.run(["umount", str(disk)], check=False)


FAULTS: dict[str, Fault] = {
    "`kill -9` at random times": kill,
    "Ctrl-C": interrupt,
    "two runs in one run directory": run_twice,
    "calibration data removed during the run": remove_data,
    "a file system of 300 kB": fill_disk,
    "the model removed during the run": remove_model,
    "a truncated journal and changed files in the run directory": corrupt_run_dir,
}
