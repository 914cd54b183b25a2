"""Weights that several nodes use are cut alike, stored once, and untied on request."""

from __future__ import annotations

import numpy as np
import pytest
from graph_laws import assert_exact, random_plan
from graph_text import net

from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.walk import analyze
from onnxprune.ir.io import load
from onnxprune.surgery.cut import cut

SIAMESE = """float[2,4,6,6] x, float[2,4,6,6] z
| float[8,4,3,3] w1, float[8,4,3,3] w2, float[6,8,3,3] w3, float[5,6,1,1] w4
| a = Conv<pads=[1,1,1,1]>(x, w1); b = Conv<pads=[1,1,1,1]>(z, w2);
c = Conv<pads=[1,1,1,1]>(a, w3); d = Conv<pads=[1,1,1,1]>(b, w3);
e = Conv(c, w4); f = Conv(d, w4); y = Sub(e, f)"""
PYRAMID = """float[2,4,8,8] x
| float[8,4,3,3] w1, float[8,8,3,3] w2, float[6,8,3,3] h1, float[6] b1, float[5,6,1,1] h2
| p = Conv<pads=[1,1,1,1]>(x, w1); q = Conv<pads=[1,1,1,1],strides=[2,2]>(p, w2);
a = Conv<pads=[1,1,1,1]>(p, h1, b1); c = Relu(a); f = Conv(c, h2);
d = Conv<pads=[1,1,1,1]>(q, h1, b1); e = Relu(d); g = Conv(e, h2);
m = GlobalAveragePool(f); n = GlobalAveragePool(g); y = Concat<axis=1>(m, n)"""
TIED = """int64[2,6] i
| float[9,8] t, float[8,12] w1, float[12,8] w2
| x = Gather<axis=0>(t, i); a = MatMul(x, w1); r = Relu(a); b = MatMul(r, w2); c = Add(x, b);
u = Transpose<perm=[1,0]>(t); y = MatMul(c, u)"""
SEQUENCE = """float[2,4] x
| float[4,8] w1, float[8,8] w2, float[8,5] w3
| a = MatMul(x, w1); b = MatMul(a, w2); r = Relu(b); c = MatMul(r, w2); y = MatMul(c, w3)"""
CONSTANTS = """float[2,6,4] x
| float[4,8] w1, float[8,8] w2, float[6,8] p, float[8,5] w3
| a = MatMul(x, w1); b = Add(a, p); r = Relu(b); c = MatMul(r, w2); d = Add(c, p);
y = MatMul(d, w3)"""
SHARED = {"siamese": SIAMESE, "pyramid": PYRAMID, "tied": TIED, "sequence": SEQUENCE}
GROUPS = {"siamese": [8, 6], "pyramid": [8, 6], "tied": [8, 12], "sequence": [8]}


def _stored(analysis: Analysis, seed: int) -> tuple[int, int]:
    """Return the number of weights of rank 2 and more before and after a random cut."""
    plan = random_plan(analysis, np.random.default_rng(seed))
    pruned, _ = assert_exact(analysis, plan)
    counts = [
        sum(len(w.shape) > 1 for w in model.weights.values()) for model in (analysis.model, pruned)
    ]
    return counts[0], counts[1]


@pytest.mark.parametrize("name", SHARED)
def test_uses_are_cut_alike_and_stored_once(name: str) -> None:
    analysis = analyze(load(net(SHARED[name])))
    assert sorted(g.size for g in analysis.groups) == sorted(GROUPS[name])
    for seed in range(3):
        before, after = _stored(analysis, seed)
        assert before == after


@pytest.mark.parametrize("name", ["siamese", "pyramid"])
def test_untied_uses_are_cut_apart(name: str) -> None:
    analysis = analyze(load(net(SHARED[name])), untie=True)
    assert len(analysis.groups) > len(GROUPS[name])
    before, after = _stored(analysis, 0)
    assert after > before
    assert analysis.options["untie"] is True


def test_constants_of_formulas_are_not_tied() -> None:
    analysis = analyze(load(net(CONSTANTS)))
    assert sorted(g.size for g in analysis.groups) == [8, 8]


def test_reported_params_are_those_of_the_file() -> None:
    analysis = analyze(load(net(PYRAMID)))
    plan = random_plan(analysis, np.random.default_rng(1))
    pruned = cut(analysis, plan)
    stored = sum(int(np.prod(w.shape)) for w in pruned.weights.values())
    assert analysis.cost(plan.kept).params == stored
