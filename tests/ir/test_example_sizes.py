"""Example lengths of dynamic axes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxprune
from onnxprune.analysis.walk import analyze
from onnxprune.cli import run
from onnxprune.ir.example_sizes import LENGTH, SIDE, example_input_shapes
from onnxprune.ir.io import load
from tests.graph_text import net


@pytest.mark.parametrize("heads", [1, 2, 3, 4])
def test_caches_of_keys_and_values_are_no_images(heads: int) -> None:
    cache = ("batch", heads, "past", 8)
    shapes = example_input_shapes({"ids": ("batch", "s"), "key": cache, "value": cache})
    assert shapes["key"] == shapes["value"] == (1, heads, LENGTH, 8)


def test_images_of_fixed_width_or_of_equal_shapes_stay_images() -> None:
    assert example_input_shapes({"x": ("n", 1, "time", 80)})["x"] == (1, 1, SIDE, 80)
    pair = example_input_shapes({"a": ("n", 3, "h", "w"), "b": ("n", 3, "h", "w")})
    assert pair["a"] == pair["b"] == (1, 3, SIDE, SIDE)


def test_verify_names_the_data_that_a_model_needs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # the length is dynamic by name only
    text = (
        "float[N,4,S] x | float[6,4,1] w, float[3,6,1] q, int64[3] fixed = {-1, 6, 5} | "
        "a = Conv(x, w); r = Relu(a); s = Reshape(r, fixed); b = Add(r, s); y = Conv(b, q)"
    )
    path, data, out = tmp_path / "model.onnx", tmp_path / "data.npy", tmp_path / "out.onnx"
    onnx.save(net(text), path)
    np.save(data, np.random.default_rng(0).standard_normal((40, 4, 5)).astype(np.float32))
    options = {"data": str(data), "engine": "none", "ratio": ".5", "fast": True}
    onnxprune.optimize(path, out, **options)
    verify = ["verify", str(path), str(out), "--plan", str(tmp_path / "out.run" / "plan.json")]
    assert run([*verify, "--data", str(data)]) == 0
    capsys.readouterr()
    assert run(verify) == 1
    assert "--data with real ones, or --shape" in capsys.readouterr().err


def test_leading_axis_of_time_is_long_enough_for_its_windows() -> None:
    """One position, as of a batch, would give the convolution a negative length."""
    text = """float[T,8] x | float[6,8,5] w1, float[4,6,5] w2, int64[1] z = {0}
    | t = Transpose<perm=[1,0]>(x); u = Unsqueeze(t, z); a = Conv(u, w1); y = Conv(a, w2)"""
    analysis = analyze(load(net(text)))
    assert analysis.counted_at.describe().startswith("x 32x8")
    assert analysis.cost().macs == 28 * 6 * 8 * 5 + 24 * 4 * 6 * 5
