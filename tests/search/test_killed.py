"""A search that is killed (SIGKILL) and started again writes the bytes of an undisturbed one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from onnxprune import demo

FILES = demo.files()
WAIT_S = 240
ATTEMPTS = 5  # on a machine so busy that a search ends before it can be killed
ROUNDS = [
    part
    for option in ("rates=0.25,0.5", "params_map=4", "flops_map=4", "rounds=6")
    for part in ("--method-option", option)
]
METHODS = {
    "pagcp": ["--target", "macs=80%"],
    "group-fisher": ["--target", "macs=80%", "--method-option", "interval=1"],
    "layer-selection": ["--target", "macs=80%", *ROUNDS],
    "layer-selection, tuned": [
        "--target",
        "macs=80%",
        *ROUNDS,
        "--method-option",
        "tune=kd",
        "--method-option",
        "tune_epochs=1",
    ],
}

# after which shares of the measurements each search is killed; one start with torch takes seconds
SHARES = {method: (1 / 2,) if "tuned" in method else (1 / 3, 2 / 3) for method in METHODS}


def start(method: str, folder: Path) -> subprocess.Popen[bytes]:
    """Start the command in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "onnxprune",
        "optimize",
        str(FILES.model),
        "-o",
        str(folder / "out.onnx"),
        "--data",
        str(FILES.calibration),
    ]
    how = [
        "--samples",
        "32",
        "--round-to",
        "2",
        "--repair",
        "bias",
        "--engine",
        "none",
        "--method",
        method.split(",")[0],
        *METHODS[method],
    ]
    return subprocess.Popen(
        [*command, *how],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def finished(process: subprocess.Popen[bytes]) -> None:
    """Wait for success."""
    said = process.communicate(timeout=WAIT_S)[1]
    assert process.returncode == 0, said.decode()[-2000:]


def lines(journal: Path) -> int:
    """Return the number of measurements in the journal."""
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def kill_after(method: str, folder: Path, measurements: float) -> bool:
    """Kill a search after some measurements; return False if it ended before that."""
    process, deadline = start(method, folder), time.monotonic() + WAIT_S
    journal = folder / "out.run" / "search.jsonl"
    while lines(journal) < measurements and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    if process.returncode == 0:
        return False
    assert process.returncode == -signal.SIGKILL and not (folder / "out.onnx").exists()
    return True


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_killed_search_resumes_with_the_same_bytes(method: str, tmp_path: Path) -> None:
    if "tuned" in method:
        pytest.importorskip("torch")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    finished(start(method, whole))
    measured = lines(whole / "out.run" / "search.jsonl")
    assert measured >= 4
    for _ in range(ATTEMPTS):
        if all(kill_after(method, broken, measured * share) for share in SHARES[method]):
            break
        shutil.rmtree(broken)
        broken.mkdir()
    assert 0 < lines(broken / "out.run" / "search.jsonl") < measured
    finished(start(method, broken))
    assert (broken / "out.onnx").read_bytes() == (whole / "out.onnx").read_bytes()
    assert (
        lines(broken / "out.run" / "search.jsonl") <= measured + 4
    )  # a line that a kill cut short is written once more
