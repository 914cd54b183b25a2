"""BLAS computes on one thread, whatever the environment says and whenever a library is loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).resolve().parents[1] / "onnxprune" / "demo"
MARK = "threads of BLAS:"
PRINT = f"""
from threadpoolctl import threadpool_info
for library in threadpool_info():
    if library["user_api"] == "blas":
        print("{MARK}", library["num_threads"])
"""


def _count_threads(code: str, folder: Path | None = None) -> list[int]:
    """Return the threads of each BLAS library that a process has loaded when it prints them."""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "2", "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    return [int(line.split()[-1]) for line in lines if line.startswith(MARK)]


@pytest.mark.parametrize("first", ["", "import numpy\n", "import numpy, scipy.linalg\n"])
def test_libraries_loaded_before_or_later_have_one_thread(first: str) -> None:
    # scipy has a BLAS of its own, which is loaded when a stage first needs it
    code = f"""
from onnxprune.parallel import limit_blas
with limit_blas():
    import scipy.linalg
    exec({PRINT!r})
"""
    threads = _count_threads(first + code)
    assert len(threads) >= 2
    assert set(threads) == {1}


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core")
def test_limit_ends_with_the_context() -> None:
    code = """
import os, numpy
from onnxprune.parallel import limit_blas
with limit_blas():
    pass
assert os.environ["OPENBLAS_NUM_THREADS"] == "2"
"""
    assert set(_count_threads(code + PRINT)) == {2}


def test_command_and_call_compute_on_one_thread(tmp_path: Path) -> None:
    model, data = str(DEMO / "digits.onnx"), str(DEMO / "digits_calibration.npz")
    command = f"""
import onnxprune.cli
words = ["--data", {data!r}, "--samples", "32", "--engine", "none", "-o", "out.onnx"]
assert onnxprune.cli.run(["optimize", {model!r}, *words]) == 0
"""
    # what a command loads keeps its limit
    threads = _count_threads(command + PRINT, tmp_path)
    assert len(threads) >= 2
    assert set(threads) == {1}
    call = f"""
import numpy, onnxprune
def listen(event):
    if event.stage == "repair" and event.state == "end":
        exec({PRINT!r})
onnxprune.optimize({model!r}, data={data!r}, samples=32, engine="none", on_event=listen)
"""
    threads = _count_threads(call)
    assert len(threads) >= 2
    assert set(threads) == {1}
