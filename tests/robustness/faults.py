"""Faults that a run survives: kills, interruptions, two runs at once, inputs that vanish. A fault is (folder, times) -> (held, what was seen)."""

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


def _command(out: Path, *more: str) -> list[str]:
    model, calibration, _ = demo.files()
    return [
        sys.executable,
        "-m",
        "onnxprune",
        "optimize",
        str(model),
        "-o",
        str(out),
        *OPTIONS,
        "--data",
        str(calibration),
        *more,
    ]


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)


def _start(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=_heard,
    )


def _heard() -> None:
    """What is started in the background ignores SIGINT otherwise."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _whole(folder: Path) -> float:
    """Seconds of an undisturbed run, which leaves whole.onnx."""
    start = time.monotonic()
    done = _run(_command(folder / "whole.onnx"))
    if done.returncode:
        raise RuntimeError(done.stderr)
    return time.monotonic() - start


def _same(folder: Path, name: str) -> bool:
    """Whether output and plan are those of the undisturbed run."""
    places = (Path("{}.onnx"), Path("{}.run") / "plan.json")
    return all(
        (folder / str(p).format(name)).read_bytes()
        == (folder / str(p).format("whole")).read_bytes()
        for p in places
    )


def killed(folder: Path, times: int) -> tuple[bool, str]:
    """Kill -9 at random moments, then the same command."""
    whole, moments = _whole(folder), random.Random(0)
    hit = same = 0
    for number in range(times):
        process = _start(_command(folder / f"{number}.onnx"))
        try:
            process.wait(timeout=whole * moments.uniform(0.05, 1.0))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            hit += 1
        process.communicate()
        again = _run(_command(folder / f"{number}.onnx"))
        same += again.returncode == 0 and _same(folder, str(number))
    left = [p.name for p in folder.rglob(".*")]
    return (
        same == times and not left,
        f"{hit} of {times} runs were hit; the same command then ended in the same bytes {same} times of {times}, {len(left)} temporary files left",
    )


def interrupted(folder: Path, times: int) -> tuple[bool, str]:
    """Ctrl-C in the middle."""
    _whole(folder)
    process = _start(_command(folder / "other.onnx"))
    _wait_for(folder / "other.run" / "lock")
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)
    err = process.communicate(timeout=LIMIT_S)[1]
    said = err.splitlines()[-1] if err else ""
    clean = (
        process.returncode == 130
        and said.startswith("error[interrupted]")
        and "Traceback" not in err
        and not (folder / "other.onnx").exists()
    )
    again = _run(_command(folder / "other.onnx"))
    return (
        clean and again.returncode == 0 and _same(folder, "other"),
        f"exit code {process.returncode}, `{said.replace(str(folder), 'FOLDER')}`; the same command then ended in the same bytes",
    )


def two_runs(folder: Path, times: int) -> tuple[bool, str]:
    """Two runs in one run directory."""
    _whole(folder)
    first = _start(_command(folder / "one.onnx", "--run-dir", str(folder / "one.run")))
    _wait_for(folder / "one.run" / "lock")
    second = _run(_command(folder / "two.onnx", "--run-dir", str(folder / "one.run")))
    first.communicate(timeout=LIMIT_S)
    said = (
        second.stderr.splitlines()[-1].split(";")[0].replace(str(folder), "FOLDER")
        if second.stderr
        else "nothing"
    )
    held = (
        first.returncode == 0
        and _same(folder, "one")
        and (
            second.returncode == 1
            and "run-dir-busy" in second.stderr
            and not (folder / "two.onnx").exists()
        )
    )
    return (
        held,
        f"the first ends as if alone, the second with exit code {second.returncode}: `{said}`",
    )


def vanished(folder: Path, times: int) -> tuple[bool, str]:
    """The calibration data are removed while they are used; the output of an earlier run stays."""
    (folder / "data").mkdir()
    rng = np.random.default_rng(0)
    for i in range(64):
        np.save(folder / "data" / f"{i}.npy", rng.random((1, 8, 8), np.float32))
    command = [
        *_command(folder / "out.onnx", "--overwrite"),
        f"--data={folder / 'data'}",
        "--criterion=activation_mean",
    ]
    (folder / "out.onnx").write_bytes(b"precious")
    process = _start(command)
    _wait_for(folder / "out.run" / "scores.npz")  # the repair reads them again
    shutil.rmtree(folder / "data")
    err = process.communicate(timeout=LIMIT_S)[1]
    said = [line for line in err.splitlines() if line.startswith("error[")]
    held = (
        process.returncode == 1
        and len(said) == 1
        and "internal" not in said[0]
        and (folder / "out.onnx").read_bytes() == b"precious"
    )
    return (
        held,
        f"exit code {process.returncode}, `{(said or ['nothing'])[0].replace(str(folder), 'FOLDER')}`; the old output is untouched",
    )


def model_replaced(folder: Path, times: int) -> tuple[bool, str]:
    """The model is removed from its folder while it is read."""
    _whole(folder)
    model = folder / "model.onnx"
    shutil.copy(demo.files().model, model)
    command = _command(folder / "other.onnx")
    command[command.index(str(demo.files().model))] = str(model)
    process = _start(command)
    _wait_for(folder / "other.run" / "lock")
    model.unlink()
    process.communicate(timeout=LIMIT_S)
    return process.returncode == 0 and _same(
        folder, "other"
    ), f"exit code {process.returncode}; what was opened stays readable: the same bytes"


def torn_journal(folder: Path, times: int) -> tuple[bool, str]:
    """Half a line at the end of the journal, and files of the run directory changed by hand."""
    _whole(folder)
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
    return again.returncode == 0 and _same(
        folder, "other"
    ), f"exit code {again.returncode}; what does not match its hash is done again: the same bytes"


def full_disk(folder: Path, times: int) -> tuple[bool, str]:
    """A file system of 300 kB, with an old output on it."""
    disk = folder / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)],
        capture_output=True,
        check=False,
    ).returncode:
        return (
            True,
            "not tried: mounting is not permitted here; the limit on the size of files stands for it",
        )
    try:
        (disk / "out.onnx").write_bytes(b"precious")
        done = _run([*_command(disk / "out.onnx", "--overwrite"), "--target=macs=95%"])
        said = [line for line in done.stderr.splitlines() if line.startswith("error[")]
        kept = {p.name: p.read_bytes() for p in disk.rglob("*") if p.is_file()} == {
            "out.onnx": b"precious"
        }
        held = done.returncode == 1 and len(said) == 1 and "internal" not in said[0] and kept
        return (
            held,
            f"exit code {done.returncode}, `{(said or ['nothing'])[0].replace(str(disk), 'DISK')}`; the old output is untouched, nothing else is left",
        )
    finally:
        subprocess.run(["umount", str(disk)], check=False)


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)


FAULTS: dict[str, Fault] = {
    "`kill -9` at a random moment, then the same command": killed,
    "Ctrl-C": interrupted,
    "two runs in one run directory": two_runs,
    "calibration data vanish during the run": vanished,
    "a file system of 300 kB": full_disk,
    "the model vanishes during the run": model_replaced,
    "half a journal, changed files in the run directory": torn_journal,
}
