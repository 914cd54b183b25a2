"""A masked network with refitted weights is closer to the original than without a refit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from graph_text import net
from onnx import helper

from onnxprune import demo
from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.walk import analyze
from onnxprune.criteria.base import Context
from onnxprune.data.dataset import Data, synthetic
from onnxprune.ir.io import Model, load
from onnxprune.ir.runtime import Session
from onnxprune.run.adapter import input_types
from onnxprune.search.compose import reduce_model
from onnxprune.search.refitted import Refitted, without
from onnxprune.surgery.cut import cut

NETS = {
    "chain": "float[n,4,9,8] x | "
    "float[8,4,3,3] w1, float[8] b1, float[10,8,3,3] w2, float[5,10,1,1] w3, float[5] b3 | "
    "a = Conv(x, w1, b1); r = Relu(a); c = Conv(r, w2); s = Relu(c); y = Conv(s, w3, b3)",
    "grouped": "float[n,4,9,8] x | float[8,4,3,3] w1, float[12,4,3,3] w2, float[5,12,1,1] w3 | "
    "a = Conv(x, w1); r = Relu(a); c = Conv<group=2>(r, w2); s = Relu(c); y = Conv(s, w3)",
    "transposed": "float[n,4,9,8] x | float[8,4,3,3] w1, float[8,6,2,2] w2, float[5,6,1,1] w3 | "
    "a = Conv(x, w1); r = Relu(a); c = ConvTranspose<strides=[2,2]>(r, w2); s = Relu(c); "
    "y = Conv(s, w3)",
    "products": "float[n,5,6] x | float[6,12] w1, float[12,9] w2, float[9,7] w3 | "
    "a = MatMul(x, w1); r = Relu(a); o = MatMul(r, w2); s = Relu(o); y = MatMul(s, w3)",
    "gemm, one bias for all": "float[n,6] x | "
    "float[12,6] w1, float b, float[12,12] w2, float[12,12] w3 | "
    "a = Gemm<transB=1>(x, w1, b); r = Relu(a); o = Gemm<transB=1>(r, w2, b); s = Relu(o); "
    "y = Gemm<transB=1>(s, w3, b)",
    "gemm, shared weight": "float[n,6] x | "
    "float[12,6] w1, float[12] b1, float[12,12] w2, float[12,7] w3 | "
    "a = Gemm<transB=1>(x, w1, b1); r = Relu(a); o = Gemm(r, w2); s = Relu(o); p = Gemm(s, w2); "
    "t = Relu(p); y = Gemm<alpha=0.5>(t, w3)",
}


@dataclass(frozen=True)
class Halved:
    """A network of which about half of the channels are kept."""

    analysis: Analysis
    data: Data
    kept: dict[str, tuple[int, ...]]

    def refitted(self) -> Refitted:
        return Refitted.of(Context(self.analysis, self.data, batch_size=16))

    def outputs(self, model: Model) -> np.ndarray:
        session = Session(model)
        return np.concatenate(
            [
                np.concatenate([v.ravel() for v in session.run(b).values()])
                for b in self.data.batches(16)
            ]
        )


@pytest.fixture(params=[*NETS, "demo"])
def halved(request: pytest.FixtureRequest) -> Halved:
    name = request.param
    analysis = analyze(load(demo.files().model if name == "demo" else net(NETS[name])))
    rng = np.random.default_rng(0)
    kept = {
        g.name: tuple(sorted(rng.choice(g.size, max(2, g.size // 2), replace=False).tolist()))
        for g in analysis.groups
    }
    assert kept
    return Halved(analysis, synthetic(input_types(analysis.model), samples=64, seed=1), kept)


def test_a_refit_reduces_the_error(halved: Halved) -> None:
    analysis, kept = halved.analysis, halved.kept
    whole, masked, plain = (
        halved.outputs(m)
        for m in (analysis.model, halved.refitted()(kept), without(analysis, kept))
    )
    assert np.square(masked - whole).sum() < 0.9 * np.square(plain - whole).sum()


def test_the_cut_network_equals_the_masked_one(halved: Halved) -> None:
    refitted, kept = halved.refitted(), halved.kept
    small, masked = refitted.cut(kept), refitted(kept)
    assert small.size_bytes() < masked.size_bytes()
    expected = halved.outputs(masked)
    np.testing.assert_allclose(halved.outputs(small), expected, atol=1e-4 * np.abs(expected).max())


def test_weights_used_by_a_nested_graph_are_unchanged() -> None:
    """Both branches of an If use an activation and the weights of the nodes after it."""
    proto = net(f"bool c, {NETS['products']}")
    body = [
        helper.make_node("MatMul", ["r", "w2"], ["m"]),
        helper.make_node("MatMul", ["m", "w3"], ["b"]),
    ]
    branch = helper.make_graph(body, "branch", [], [helper.make_tensor_value_info("b", 1, None)])
    proto.graph.node.append(
        helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch)
    )
    proto.graph.output.append(helper.make_tensor_value_info("z", 1, ["n", 5, 7]))
    analysis = analyze(load(proto), untie=True)
    data, kept = synthetic(input_types(analysis.model), samples=32, seed=1), {"a": tuple(range(6))}
    (feeds,) = data.batches(32)
    refitted = Refitted.of(Context(analysis, data, batch_size=32))
    plain, small, masked = (
        Session(m).run(feeds)
        for m in (cut(analysis, analysis.plan(kept)), refitted.cut(kept), refitted(kept))
    )
    assert np.abs(small["y"] - plain["y"]).max() > 0.01
    np.testing.assert_allclose(small["y"], masked["y"], atol=1e-5)
    for found in (small, masked):
        np.testing.assert_allclose(found["z"], plain["z"], atol=1e-5)


def test_channels_are_matched_after_new_biases(halved: Halved) -> None:
    """A refit gives nodes biases that had none, and moves the output of a MatMul."""
    plain, refitted = (
        reduce_model(halved.analysis, halved.kept, model)
        for model in (None, halved.refitted().cut(halved.kept))
    )
    assert set(plain.origin.values()) == set(refitted.origin.values()) and plain.origin
