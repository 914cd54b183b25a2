"""`verify` of models whose repair added weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxprune
from onnxprune.cli import run
from tests.graph_text import net

NETS = {
    "no bias": "float[N,3,8,8] x | float[8,3,3,3] w, float[8,8,3,3] u, float[4,8,3,3] q | "
    "a = Conv(x, w); r = Relu(a); b = Conv(r, u); s = Relu(b); y = Conv(s, q)",
    "a shared bias": "float[N,3,8,8] x | float[8,3,3,3] w, float[8,8,3,3] u, float[8] b, "
    "float[4,8,3,3] q | c = Conv(x, w, b); r = Relu(c); d = Conv(r, u, b); s = Relu(d); "
    "y = Conv(s, q)",
}


@pytest.mark.parametrize("name", NETS)
def test_verify_accepts_added_weights_of_a_repair(name: str, tmp_path: Path) -> None:
    path, data, out = tmp_path / "model.onnx", tmp_path / "data.npy", tmp_path / "out.onnx"
    plan = tmp_path / "out.run" / "plan.json"
    onnx.save(net(NETS[name]), path)
    np.save(data, np.random.default_rng(0).standard_normal((40, 3, 8, 8)).astype(np.float32))
    options = {"data": str(data), "engine": "none", "ratio": "0.25", "fast": True}
    onnxprune.optimize(path, out, **options)
    assert run(["verify", str(path), str(out), "--plan", str(plan)]) == 0
    changed = onnx.load(out)
    weight = next(t for t in changed.graph.initializer if len(t.dims) == 4)
    weight.CopyFrom(
        onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * 2, weight.name)
    )
    onnx.save(changed, out)
    assert run(["verify", str(path), str(out), "--plan", str(plan)]) == 4
