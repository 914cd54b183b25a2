"""Refits of layers whose rows carry channels that are cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxprune
from onnxprune.analysis.folded import KeptPositions
from tests.graph_text import net

# weights of a convolution with 8 channels, which the reshapes merge into the rows of a product
ROWS = "float[8,4,1] w, int64[2] rows = {-1, 5}, float[5,5] m, float[5] b, int64[3] back"
NETS = {
    "channels after the batch": f"float[N,4,5] x | {ROWS} = {{-1, 8, 5}}, float[3,8,1] q | "
    "a = Conv(x, w); r = Reshape(a, rows); p = Gemm(r, m, b); z = Reshape(p, back); "
    "t = Relu(z); y = Conv(t, q)",
    "channels before the batch": f"float[N,4,5] x | {ROWS} = {{8, -1, 5}}, float[3,8,1] q | "
    "a = Conv(x, w); c = Transpose<perm=[1,0,2]>(a); r = Reshape(c, rows); p = Gemm(r, m, b); "
    "z = Reshape(p, back); d = Transpose<perm=[1,0,2]>(z); t = Relu(d); y = Conv(t, q)",
}


@pytest.mark.parametrize("name", NETS)
def test_rows_of_channels_in_a_dynamic_axis_are_refitted(name: str, tmp_path: Path) -> None:
    path, data = tmp_path / "model.onnx", tmp_path / "data.npy"
    onnx.save(net(NETS[name]), path)
    np.save(data, np.random.default_rng(0).standard_normal((40, 4, 5)).astype(np.float32))
    options = {"data": str(data), "engine": "none", "ratio": "0.25", "fast": True}
    result = onnxprune.optimize(path, tmp_path / "out.onnx", **options)
    assert result.report["after"]["macs"] < result.report["before"]["macs"]


def test_positions_of_a_dynamic_factor_follow_from_the_length() -> None:
    kept = KeptPositions((None, np.array([True, False, True])))
    assert kept.solvable
    assert kept.positions(6).tolist() == [0, 2, 3, 5]
    swapped = KeptPositions((np.array([True, False, True]), None))
    assert swapped.positions(6).tolist() == [0, 1, 4, 5]
    assert not KeptPositions((None, np.array([True]), None)).solvable
