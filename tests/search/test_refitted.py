"""A masked network with refitted weights is nearer to the whole one than with the weights as they were."""

from __future__ import annotations

import numpy as np
import pytest
from graph_text import net

from onnxprune import demo
from onnxprune.analysis.walk import analyse
from onnxprune.calibrate.data import synthetic
from onnxprune.checks import input_types
from onnxprune.model.io import Model, load
from onnxprune.model.runtime import Session
from onnxprune.saliency.base import Context
from onnxprune.search.refitted import Refitted, without

NETS = {
    "chain": "float[n,4,9,8] x | float[8,4,3,3] w1, float[8] b1, float[10,8,3,3] w2, float[5,10,1,1] w3, float[5] b3 | "
    "a = Conv(x, w1, b1); r = Relu(a); c = Conv(r, w2); s = Relu(c); y = Conv(s, w3, b3)",
    "grouped": "float[n,4,9,8] x | float[8,4,3,3] w1, float[12,4,3,3] w2, float[5,12,1,1] w3 | a = Conv(x, w1); r = Relu(a); c = Conv<group=2>(r, w2); s = Relu(c); y = Conv(s, w3)",
    "transposed": "float[n,4,9,8] x | float[8,4,3,3] w1, float[8,6,2,2] w2, float[5,6,1,1] w3 | "
    "a = Conv(x, w1); r = Relu(a); c = ConvTranspose<strides=[2,2]>(r, w2); s = Relu(c); y = Conv(s, w3)",
    "products": "float[n,5,6] x | float[6,12] w1, float[12,9] w2, float[9,7] w3 | a = MatMul(x, w1); r = Relu(a); o = MatMul(r, w2); s = Relu(o); y = MatMul(s, w3)",
    "gemm, shared weight": "float[n,6] x | float[12,6] w1, float[12] b1, float[12,12] w2, float[12,7] w3 | "
    "a = Gemm<transB=1>(x, w1, b1); r = Relu(a); o = Gemm(r, w2); s = Relu(o); p = Gemm(s, w2); t = Relu(p); y = Gemm<alpha=0.5>(t, w3)",
}


@pytest.mark.parametrize("name", [*NETS, "demo"])
def test_refitted_weights_are_nearer_to_the_whole_network(name: str) -> None:
    analysis = analyse(load(demo.files().model if name == "demo" else net(NETS[name])))
    data = synthetic(input_types(analysis.model), samples=64, seed=1)
    refitted = Refitted.of(Context(analysis, data, batch_size=16))
    rng = np.random.default_rng(0)
    kept = {g.name: tuple(sorted(rng.choice(g.size, max(2, g.size // 2), replace=False).tolist())) for g in analysis.groups}
    assert kept

    def outputs(model: Model) -> np.ndarray:
        session = Session(model)
        return np.concatenate([np.concatenate([v.ravel() for v in session.run(b).values()]) for b in data.batches(16)])

    whole, masked, plain = (outputs(m) for m in (analysis.model, refitted(kept), without(analysis, kept)))
    assert np.square(masked - whole).sum() < 0.9 * np.square(plain - whole).sum()
