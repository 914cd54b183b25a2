"""Bundles in the open tool flows.

They run if tools/setup_*.sh created the environment, .venv-NAME in the sources or the Python that
ONNXPRUNE_NAME_PYTHON names.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import stubs

from onnxprune.deploy.handoff import Collected, collect, handoff

ROOT = Path(__file__).resolve().parents[2]
AGREES = 0.95  # share of inputs on which fixed-point arithmetic and onnxruntime name the same class

pytestmark = pytest.mark.slow


def run(name: str, folder: Path, **options: str) -> Collected:
    """Run a small network and one of half its width through the flow's own tools."""
    python = Path(
        os.environ.get(
            f"ONNXPRUNE_{name.upper()}_PYTHON", ROOT / f".venv-{name}" / "bin" / "python"
        )
    )
    if not python.is_file():
        pytest.skip(f"no environment for {name}: run tools/setup_{name}.sh")
    images = np.random.default_rng(0).random((24, 1, 8, 8), np.float32)
    handoff(
        stubs.convnet(8),
        stubs.convnet(4),
        name,
        folder,
        options=options,
        samples={"images": images},
    )
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PATH": path}
    done = subprocess.run(
        [python, folder / "run.py"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return collect(folder)


def test_nngen_counts_cycles_and_equals_its_integer_model(tmp_path: Path) -> None:
    if shutil.which("iverilog") is None:
        pytest.skip("no Icarus Verilog")
    collected = run("nngen", tmp_path / "b", bits="16")
    assert all(
        r.figures["outputs_wrong"] == 0 and r.figures["argmax_agreement"] >= AGREES
        for r in collected.results.values()
    )
    assert collected.ratios["cycles"] > 1.5


def test_hls4ml_agrees_with_onnxruntime(tmp_path: Path) -> None:
    collected = run("hls4ml", tmp_path / "b")
    assert all(
        r.figures["max_error"] < 0.1 * r.figures["max_output"] for r in collected.results.values()
    )


def test_vela_reports_fewer_cycles(tmp_path: Path) -> None:
    collected = run("vela", tmp_path / "b")
    assert collected.ratios["cycles"] > 1
    assert collected.results["original"].layers


def test_finn_estimates_follow_the_folding(tmp_path: Path) -> None:
    """With one multiplier per layer, a unit takes as many cycles as the layer has MACs."""
    collected = run("finn", tmp_path / "b", **{"target-fps": "100"})
    layers = collected.results["original"].layers
    assert [layers[f"MVAU_hls_{i}"] for i in range(3)] == [9 * 8 * 64, 9 * 8 * 16 * 16, 16 * 10]
    assert collected.ratios["cycles"] > 2
