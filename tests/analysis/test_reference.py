"""Operators that onnxruntime does not run on CPU, compared by onnx's reference evaluator."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graph_laws import random_plan
from graph_text import net
from onnx.reference import ReferenceEvaluator

from onnxprune.analysis.walk import analyze
from onnxprune.ir.io import Model, load, to_bytes
from onnxprune.ir.runtime import example_feeds
from onnxprune.surgery.cut import cut
from onnxprune.surgery.masking import masked
from onnxprune.surgery.verify import check


def batch_first(op: str, gates: int, more: str = "", inputs: str = "") -> str:
    """Return a recurrent layer of 6 hidden units with the batch as its first axis."""
    weights = (
        f"float[1,{gates * 6},4] w1, float[1,{gates * 6},6] w2, float[1,{gates * 12}] w3, "
        f"{more}int64[3] s = {{2, 5, 6}}, float[6,7] w9"
    )
    return (
        f"float[2,5,4] x | {weights} | o, h = {op}<hidden_size=6, layout=1>(x, w1, w2, "
        f"w3{inputs}); r = Reshape(o, s); y = MatMul(r, w9)"
    )


CASES = {
    "LSTM": (batch_first("LSTM", 4), (6,)),
    "GRU": (batch_first("GRU", 3), (6,)),
    "RNN": (batch_first("RNN", 1), (6,)),
    "RNN_initial_state": (batch_first("RNN", 1, "float[2,1,6] w5, ", ", , w5"), (6,)),
    "ConvInteger_zero_point_a_filter": (
        "float[2,4,6,6] x | float[8,4,3,3] w1, uint8[6,8,3,3] k, uint8 xz = {3}, "
        "uint8[6] kz = {1,2,3,4,5,6}, float s = {0.1}, float[5,6,1,1] w2 |"
        "a = Conv(x, w1); q = QuantizeLinear(a, s, xz); i = ConvInteger(q, k, xz, kz); "
        "f = Cast<to=1>(i); b = Mul(f, s); y = Conv(b, w2)",
        (6, 8),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_cut_equals_masked(name: str) -> None:
    text, groups = CASES[name]
    analysis = analyze(load(net(text)))
    assert tuple(sorted(g.size for g in analysis.groups)) == groups
    feeds = example_feeds(analysis.model)

    def run(model: Model) -> np.ndarray:
        return ReferenceEvaluator(onnx.load_from_string(to_bytes(model))).run(None, feeds)[0]

    original = run(analysis.model)
    for seed in range(3):
        plan = random_plan(analysis, np.random.default_rng(seed))
        pruned, expected = cut(analysis, plan), run(masked(analysis, plan))
        check(pruned)
        np.testing.assert_allclose(
            run(pruned), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max()
        )
        assert np.abs(expected - original).max() > 1e-2 * np.abs(original).max()
