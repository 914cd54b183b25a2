"""Layers written as two: the same function, whatever the layer, and cut like channels."""

from __future__ import annotations

import numpy as np
import pytest
from graph_text import net
from onnx import ModelProto

from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.walk import analyze
from onnxprune.errors import UsageError
from onnxprune.ir.io import load
from onnxprune.ir.runtime import Session
from onnxprune.surgery.cut import cut
from onnxprune.surgery.factoring import SUFFIX, Basis, break_even, factor, factorable

LAYERS = {
    "Conv": "float[2,4,9,9] x | float[6,4,3,3] w, float[6] b | y = Conv(x, w, b)",
    "Conv without bias": "float[2,4,9,9] x | float[6,4,3,3] w | y = Conv(x, w)",
    "Conv, strides": (
        "float[2,4,9,9] x | float[6,4,3,3] w, float[6] b | "
        "y = Conv<strides=[2,2], pads=[1,1,1,1], dilations=[2,2]>(x, w, b)"
    ),
    "Conv, 1-D": 'float[2,4,9] x | float[6,4,3] w | y = Conv<auto_pad="SAME_UPPER">(x, w)',
    "Gemm": "float[3,7] x | float[7,6] w, float[6] b | y = Gemm(x, w, b)",
    "Gemm, transposed": (
        "float[3,7] x | float[6,7] w, float[6] b | y = Gemm<transB=1, alpha=0.5>(x, w, b)"
    ),
    "Gemm without bias": "float[3,7] x | float[7,6] w | y = Gemm(x, w)",
    "MatMul": "float[2,5,7] x | float[7,6] w | y = MatMul(x, w)",
}
OTHERS = {
    "groups": "float[2,4,9,9] x | float[6,2,3,3] w | y = Conv<group=2>(x, w)",
    "scaled bias": "float[3,7] x | float[7,6] w, float[6] b | y = Gemm<beta=0.5>(x, w, b)",
    "bias of a row": "float[3,7] x | float[7,6] w, float[1,6] b | y = Gemm(x, w, b)",
    "computed bias": "float[3,7] x, float[6] b | float[7,6] w | y = Gemm(x, w, b)",
    "weight used twice": "float[3,6] x | float[6,6] w | h = MatMul(x, w); y = MatMul(h, w)",
    "transposed convolution": "float[2,4,9,9] x | float[4,6,3,3] w | y = ConvTranspose(x, w)",
    "float16": "float16[3,7] x | float16[7,6] w | y = MatMul(x, w)",
}


def random_basis(size: int, seed: int = 0, mean: bool = True) -> Basis:
    r = np.random.default_rng(seed)
    vectors = np.linalg.qr(r.standard_normal((size, size)))[0]
    return Basis(vectors, r.standard_normal(size) * mean, np.ones(size))


def factored(model: ModelProto) -> tuple[Analysis, Analysis]:
    """Return the analyses of a model and of the one with all its layers written as two."""
    analysis = analyze(load(model))
    layers = {
        layer.out: (layer, random_basis(6, mean=layer.op != "MatMul"))
        for layer in factorable(analysis)
    }
    return analysis, analyze(factor(analysis.model, layers))


@pytest.mark.parametrize("text", LAYERS.values(), ids=LAYERS)
def test_both_layers_compute_the_same(text: str) -> None:
    original, two = factored(net(text))
    assert len(two.nodes) == 2 * len(original.nodes)
    assert two.nodes[1].output[0] == original.nodes[0].output[0]
    (entry,) = [i for i in original.model.proto.graph.input if i.name not in original.model.weights]
    shape = [d.dim_value for d in entry.type.tensor_type.shape.dim]
    feeds = {entry.name: np.random.default_rng(1).standard_normal(shape).astype(np.float32)}
    expected, found = (Session(a.model).run(feeds)["y"] for a in (original, two))
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("text", OTHERS.values(), ids=OTHERS)
def test_other_layers_stay(text: str) -> None:
    assert not factorable(analyze(load(net(text))))


def test_ranks_are_channels() -> None:
    """A cut between both layers keeps the named directions: V V' y with those columns."""
    original, two = factored(net(LAYERS["Conv without bias"]))
    (group,) = two.groups
    assert group.size == 6 and SUFFIX in group.name
    kept = (0, 2, 5)
    pruned = cut(two, two.plan({group.name: kept}))
    feeds = {"x": np.random.default_rng(1).standard_normal((2, 4, 9, 9)).astype(np.float32)}
    y = Session(original.model).run(feeds)["y"]
    basis = random_basis(6)
    vectors = basis.vectors[:, kept]
    centered = y - basis.mean[:, None, None]
    expected = np.einsum("oc,kc,nkhw->nohw", vectors, vectors, centered)
    expected += basis.mean[:, None, None]
    np.testing.assert_allclose(Session(pruned).run(feeds)["y"], expected, atol=1e-4)
    with pytest.raises(UsageError, match="factored.onnx"):
        original.check(two.plan({group.name: kept}, low_rank=True))


def test_break_even_is_where_both_cost_as_much() -> None:
    rank = break_even(36, 6)
    assert rank * (36 + 6) == pytest.approx(36 * 6)
