"""One thread per call: BLAS has no others, and calls side by side give the same bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from onnxprune.cli import run
from onnxprune.parallel import ordered_map

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
from onnxprune.blas import limit_blas
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
from onnxprune.blas import limit_blas
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


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_come_in_order_and_items_are_drawn_just_ahead(threads: int) -> None:
    drawn: list[int] = []

    def draw() -> Iterator[int]:
        for i in range(20):
            drawn.append(i)
            yield i

    def work(i: int) -> int:
        # earlier calls end later
        time.sleep(0.001 * (i % 3 == 0))
        return i * i

    for number, result in enumerate(ordered_map(work, draw(), threads)):
        assert result == number * number
        assert len(drawn) <= number + 1 + threads
    assert drawn == list(range(20))


@pytest.mark.parametrize("threads", [1, 3])
def test_failure_is_raised_in_its_turn(threads: int) -> None:
    results = ordered_map(lambda i: 1 // (2 - i), range(5), threads)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_calls_keep_the_settings_of_the_caller() -> None:
    with np.errstate(over="ignore"):
        states = list(ordered_map(lambda _: np.geterr()["over"], range(3), 2))
    assert states == ["ignore"] * 3


def test_calls_run_side_by_side() -> None:
    # each waits for the other
    barrier = threading.Barrier(2, timeout=20)
    assert len(list(ordered_map(lambda _: barrier.wait(), range(4), 2))) == 4


@pytest.mark.parametrize(
    "words",
    [
        "",
        "--fast --flip",
        "--criterion fisher --allocate knapsack --repair bias",
        "--criterion activation_variance --allocate knapsack --repair none",
        "--method pagcp --target macs=80%",
        "--method group-fisher --target macs=70%",
        "--method layer-selection --target macs=70% --method-option rounds=3",
    ],
)
def test_bytes_are_equal_for_any_number_of_threads(words: str, tmp_path: Path) -> None:
    model, data = str(DEMO / "digits.onnx"), str(DEMO / "digits_calibration.npz")
    common = ["optimize", model, "--data", data, "--samples", "100", "--batch-size", "16"]
    written = []
    for threads in ("1", "3"):
        out = tmp_path / threads / "out.onnx"
        out.parent.mkdir()
        rest = ["--engine", "none", "--quiet", "--threads", threads, "-o", str(out)]
        assert run([*common, *words.split(), *rest]) == 0
        plan = json.loads((out.with_suffix(".run") / "plan.json").read_text())
        written.append((out.read_bytes(), plan))
    assert written[0] == written[1]
