"""The examples run on the demo with the commands of their docstrings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from onnxprune.demo import files
from onnxprune.ir.io import Model, digest, load, save

pytest.importorskip("torch")
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tune_with_labels", "distil_only"])
def test_example(damaged: Model, tmp_path: Path, name: str) -> None:
    save(damaged, tmp_path / "pruned.onnx")
    data = files().evaluation if name == "tune_with_labels" else files().calibration
    arguments = [
        str(tmp_path / "pruned.onnx"),
        str(files().model),
        str(data),
        str(tmp_path / "tuned.onnx"),
        "--epochs",
        "2",
    ]
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments],
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert " -> " in done.stdout
    tuned = load(tmp_path / "tuned.onnx")
    assert tuned.proto == load(tmp_path / "pruned.onnx").proto and digest(tuned) != digest(damaged)
    assert all(
        np.isfinite(w.array()).all() for w in tuned.weights.values() if w.array().dtype.kind == "f"
    )
