"""Sessions of graphs that onnxruntime's optimizer rejects."""

from __future__ import annotations

import gc
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from onnxprune.errors import ModelError
from onnxprune.ir import runtime
from onnxprune.ir.io import load, save
from onnxprune.ir.runtime import Session
from onnxprune.metrics.fidelity import fidelity
from tests.graph_text import net

MODEL = net("float[2,3] x | float[3,4] w | y = MatMul(x, w)")
LARGER = net("float[2,3] x | float[3,4] w | z = MatMul(x, w); y = Relu(z)")


class Refusing(onnxruntime.InferenceSession):
    """A session whose optimizer rejects graphs with a Relu."""

    def __init__(self, model: bytes, options: Any, **rest: Any) -> None:
        level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        if options.graph_optimization_level != level and b"Relu" in model:
            raise RuntimeError("TypeInferenceError")
        super().__init__(model, options, **rest)


class Batches:
    """One batch of ones."""

    def batches(self, size: int) -> list[dict[str, np.ndarray]]:
        return [{"x": np.ones((2, 3), np.float32)}]


def test_a_graph_that_the_optimizer_rejects_runs_without_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(onnxruntime, "InferenceSession", Refusing)
    session = Session(load(LARGER.SerializeToString()))
    assert not session.optimized
    assert session.run({"x": np.ones((2, 3), np.float32)})["y"].shape == (2, 4)
    assert Session(load(MODEL.SerializeToString())).optimized


def test_a_cut_model_that_only_the_optimizer_rejects_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(onnxruntime, "InferenceSession", Refusing)
    original, pruned = (load(m.SerializeToString()) for m in (MODEL, LARGER))
    with pytest.raises(ModelError, match="optimizer rejects the pruned graph"):
        fidelity(original, pruned, Batches())


def test_weights_that_are_lent_or_open_give_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    # onnxruntime drops the unused weight
    text = (
        "float[2,32] x | float[32,64] w, float[64,16] v, float[64,64] unused "
        "| z = MatMul(x, w); y = MatMul(z, v)"
    )
    model, path = load(net(text).SerializeToString()), tmp_path / "m.onnx"
    save(model, path, external_data=True)
    feeds = {"x": rng.standard_normal((2, 32), np.float32)}
    expected = [Session(model, optimize=o).run(feeds)["y"] for o in (True, False)]
    files = set(tmp_path.iterdir())
    monkeypatch.setattr(runtime, "SHARED_BYTES", 0)
    monkeypatch.setattr(runtime, "MANY_NODES", 1)
    # nothing is written: the folder for temporary files does not exist
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    for source in (model, load(path)):
        sessions = [Session(source, optimize=o) for o in (True, False)]
        gc.collect()
        for session, values in zip(sessions, expected, strict=True):
            assert len(session._lent) == 2 and list(session.inputs) == ["x"]
            assert np.array_equal(session.run(feeds)["y"], values)
    assert set(tmp_path.iterdir()) == files
