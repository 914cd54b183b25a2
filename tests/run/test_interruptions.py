"""Runs that are killed, interrupted, or cannot write."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from file_tree import tree

from onnxprune import demo

MODEL = demo.files().model
FLAGS = ["--criterion=l2", "--repair=none", "--engine=none", "--round-to=1"]
KILLED_RUNS, MOST_RUNS = 10, 100


@pytest.mark.skipif(os.name == "nt", reason="limits of POSIX")
@pytest.mark.parametrize("limit", [0, 1, 10, 50])
def test_full_disk_is_one_error_and_keeps_the_old_output(tmp_path: Path, limit: int) -> None:
    """A limit on the size of a file (in kB) fails a write as a full disk does, in the middle."""
    resource = pytest.importorskip("resource")
    out = tmp_path / "out.onnx"
    out.write_bytes(b"precious")

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit * 1000, limit * 1000))

    command = [
        sys.executable,
        "-m",
        "onnxprune",
        "optimize",
        str(MODEL),
        "-o",
        str(out),
        "--overwrite",
        *FLAGS,
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, preexec_fn=limited, timeout=120, check=False
    )
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("error["), done.stderr
    assert (
        "File too large" in done.stderr
        and "internal" not in done.stderr
        and "Traceback" not in done.stderr
    )
    assert tree(tmp_path) == {"out.onnx": b"precious"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "runs", [KILLED_RUNS, pytest.param(4 * KILLED_RUNS, marks=pytest.mark.exhaustive)]
)
def test_run_killed_at_any_moment_resumes_to_equal_bytes(tmp_path: Path, runs: int) -> None:
    """More runs if the machine has become so fast that few of them were killed."""
    command = [sys.executable, "-m", "onnxprune", "optimize", str(MODEL), "--repair=bias"]
    command += ["--engine=none", "--data", str(demo.files().calibration), "--samples=32"]
    start = time.monotonic()
    subprocess.run(
        [*command, "-o", str(tmp_path / "undisturbed.onnx")], check=True, capture_output=True
    )
    duration = time.monotonic() - start
    rng = random.Random(0)
    killed = 0
    for number in range(MOST_RUNS):
        if number >= runs and killed > runs // 4:
            break
        out = tmp_path / f"{number}.onnx"
        start = time.monotonic()
        process = subprocess.Popen(
            [*command, "-o", str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            process.wait(timeout=duration * rng.uniform(0.2, 1.0))
            duration = min(duration, time.monotonic() - start)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            killed += 1
            again = subprocess.run(
                [*command, "-o", str(out)], capture_output=True, text=True, check=False
            )
            assert again.returncode == 0, again.stderr
        assert out.read_bytes() == (tmp_path / "undisturbed.onnx").read_bytes()
        plans = [
            (tmp_path / f"{run_dir}.run" / "plan.json").read_bytes()
            for run_dir in (number, "undisturbed")
        ]
        assert plans[0] == plans[1]
    assert killed > runs // 4


def accept_interrupts() -> None:
    """Reset SIGINT, which processes in the background ignore."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_is_one_error_that_says_how_to_resume(tmp_path: Path, sent: signal.Signals) -> None:
    command = [
        sys.executable,
        "-m",
        "onnxprune",
        "optimize",
        str(MODEL),
        "-o",
        str(tmp_path / "out.onnx"),
        "--seconds=60",
    ]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=accept_interrupts,
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "out.run" / "verify.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.1)  # starting the processes that measure takes longer
    os.killpg(process.pid, sent)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert (
        err.splitlines()[-1].startswith("error[interrupted]: stopped in stage")
        and f"resume from {tmp_path / 'out.run'}" in err
        and "Traceback" not in err
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.run"]
