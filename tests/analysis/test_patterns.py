"""Small nets with the patterns of public architectures, and the groups expected in each."""

from __future__ import annotations

import numpy as np
import pytest
from graph_laws import SEEN, assert_exact, random_plan
from graph_text import net
from graphs import Case

from onnxprune.analysis.walk import analyze
from onnxprune.ir.io import load
from onnxprune.ir.passes.canonicalize import canonicalize
from onnxprune.ir.runtime import Session, example_feeds

_HEAD = (
    "float[2,5,4] x | float[4,24] w1, float[24] b1, int64[5] s = {2, 5, 3, 2, 4}, "
    "float scale = {0.5}, int64[3] back = {2, 5, 8}, float[8,5] wo, "
)
_TAIL = (
    "kt = Transpose<perm=[0,1,3,2]>(k); m = MatMul(q, kt); t = Mul(m, scale); "
    "p = Softmax<axis=-1>(t); o = MatMul(p, v); o1 = Transpose<perm=[0,2,1,3]>(o); "
    "o2 = Reshape(o1, back); y = MatMul(o2, wo)"
)
_FRONT = "a = MatMul(x, w1); c = Add(a, b1); r = Reshape(c, s); "
_MOVED = _FRONT + "u = Transpose<perm=[2,0,3,1,4]>(r); "
_EACH = "int64 i0 = {0}, int64 i1 = {1}, int64 i2 = {2}"
_ENDS = "int64[1] n0 = {0}, int64[1] n1 = {1}, int64[1] n2 = {2}, int64[1] n3 = {3}"

# heads, dimensions of queries and keys, dimensions of values
FUSED = {
    "gathered": _HEAD
    + _EACH
    + " | "
    + _MOVED
    + "q = Gather(u, i0); k = Gather(u, i1); v = Gather(u, i2); "
    + _TAIL,
    "gathered_before_moving": _HEAD
    + _EACH
    + " | "
    + _FRONT
    + "q0 = Gather<axis=2>(r, i0); k0 = Gather<axis=2>(r, i1); v0 = Gather<axis=-3>(r, i2); "
    "q = Transpose<perm=[0,2,1,3]>(q0); k = Transpose<perm=[0,2,1,3]>(k0); "
    "v = Transpose<perm=[0,2,1,3]>(v0); " + _TAIL,
    "split": _HEAD
    + _ENDS
    + ", int64[3] ones = {1, 1, 1} | "
    + _MOVED
    + (
        "q0, k0, v0 = Split<axis=0>(u, ones); q = Squeeze(q0, n0); k = Squeeze(k0, n0); "
        "v = Squeeze(v0, n0); "
    )
    + _TAIL,
    "sliced": _HEAD
    + _ENDS
    + " | "
    + _MOVED
    + "q0 = Slice(u, n0, n1, n0); k0 = Slice(u, n1, n2, n0); v0 = Slice(u, n2, n3, n0, n1); "
    "q = Squeeze(q0, n0); k = Squeeze(k0, n0); v = Squeeze(v0, n0); " + _TAIL,
    "dynamic_batch": _HEAD.replace("float[2,5,4]", "float[n,5,4]")
    .replace("int64[5] s = {2, 5, 3, 2, 4}", "int64[4] s1 = {5, 3, 2, 4}")
    .replace("{2, 5, 8}", "{0, 5, 8}")
    + _EACH
    + ", int64[1] one = {1} | "
    + "a = MatMul(x, w1); c = Add(a, b1); h = Shape<start=0, end=1>(c); "
    "s = Concat<axis=0>(h, s1); r = Reshape(c, s); "
    "u = Transpose<perm=[2,0,3,1,4]>(r); q = Gather(u, i0); k = Gather(u, i1); v = Gather(u, i2); "
    + _TAIL,
}

RMS = (
    "p = Pow(a, two); m = ReduceMean<axes=[1]>(p); e = Add(m, eps); s = Sqrt(e); n = Div(a, s); "
    "b = Mul(n, g); y = Conv(b, w2)"
)
CASES = {f"fused_{name}": Case(text, groups=(2, 4, 4)) for name, text in FUSED.items()} | {
    "rms_norm_written_out": Case(
        (
            "float[2,4,6,6] x | float[8,4,3,3] w1, float two = {2}, float eps = {1e-6}, "
            "float[8,1,1] g, float[5,8,1,1] w2 | a = Conv(x, w1); "
        )
        + RMS,
        groups=(8,),
    ),
    "channel_mean_gate": Case(
        "float[2,4,6,6] x | float[8,4,3,3] w1, float[5,8,1,1] w2 | a = Conv(x, w1); "
        "m = ReduceMean<axes=[1]>(a); s = Sigmoid(m); b = Mul(a, s); y = Conv(b, w2)",
        groups=(8,),
    ),
    # sums over constants must be masked as well
    "bias_from_constants": Case(
        "float[2,5,4] x | float[4,8] w1, float[5,5,2] table, float[2,6] c1, "
        "float[6,8] c2, int64[1] axis = {1}, float[8,5] w2 | a = MatMul(x, w1); "
        "h = MatMul(table, c1); "
        "r = Relu(h); z = MatMul(r, c2); m = ReduceSum<keepdims=0>(z, axis); "
        "b = Add(a, m); y = MatMul(b, w2)",
        groups=(2, 5, 6, 8),
    ),
    # the norm of a constant does not change if another use of the constant is cut
    "weight_norm_written_out": Case(
        (
            "float[2,4,9] x | float[8,4,3] w1, float[6,8,3] v, float[1,1,3] vg, "
            "int64[2] axes = {0, 1}, float[5,6,1] w2 | a = Conv(x, w1); "
            "n = ReduceL2(v, axes); d = Div(vg, n); w = Mul(d, v); b = Conv(a, w); "
            "y = Conv(b, w2)"
        ),
        opset=18,
        groups=(6, 8),
    ),
    "weight_standardized": Case(
        "float[2,4,9] x | float[8,4,3] w1, float[6,8,3] w2, int64[2] axes = {1, 2}, "
        "float eps = {1e-5}, float[5,6,1] w3 | a = Conv(x, w1); "
        "m = ReduceMean(w2, axes); c = Sub(w2, m); q = Mul(c, c); "
        "u = ReduceMean(q, axes);"
        "e = Add(u, eps); s = Sqrt(e); w = Div(c, s); b = Conv(a, w); y = Conv(b, w3)",
        opset=18,
        groups=(6, 8),
    ),
    "parts_taken_together": Case(
        "float[2,5,4] x | float[4,12] w1, int64[4] s = {2, 5, 2, 6}, "
        "int64[1] axis = {2}, float[6,5] w2 | "
        "a = MatMul(x, w1); r = Reshape(a, s); m = ReduceSum<keepdims=0>(r, axis); "
        "y = MatMul(m, w2)",
        groups=(2, 6),
    ),
    # (n, 8) becomes (4 n, 2): positions of the shorter axis can be cut, the heads cannot
    "heads_beside_a_dynamic_batch": Case(
        "float[5,n,4] x | float[4,8] wq, float[4,8] wv, int64[1] heads = {2}, "
        "int64[1] five = {5}, int64[1] four = {4}, int64[1] rest = {-1}, float[8,6] wo | "
        "b = Shape<start=1, end=2>(x); bh = Mul(b, heads); "
        "s = Concat<axis=0>(five, bh, four); q = MatMul(x, wq); q1 = Reshape(q, s); "
        "qt = Transpose<perm=[1,0,2]>(q1); "
        "kt = Transpose<perm=[1,2,0]>(q1); m = MatMul(qt, kt); p = Softmax<axis=-1>(m); "
        "v = MatMul(x, wv); v1 = Reshape(v, s); vt = Transpose<perm=[1,0,2]>(v1); "
        "o = MatMul(p, vt); "
        "o1 = Transpose<perm=[1,0,2]>(o); back = Concat<axis=0>(five, b, rest); "
        "o2 = Reshape(o1, back); y = MatMul(o2, wo) | float[5,n,6] y",
        groups=(2, 4, 4),
    ),
    "windows_of_a_dynamic_batch": Case(
        "float[n,4,4,3] x | float[3,8] w1, int64[5] s = {-1, 2, 2, 4, 8}, "
        "int64[3] t = {-1, 4, 8}, float[8,6] w2, float[6,5] w3, int64[1] zero = {0}, "
        "int64[1] rest = {-1}, int64[1] six = {6} | "
        "a = MatMul(x, w1); b = Reshape(a, s); c = Transpose<perm=[0,2,1,3,4]>(b); "
        "d = Reshape(c, t); e = MatMul(d, w2); f = Shape<start=0, end=2>(e); "
        "g = Concat<axis=0>(f, rest); "
        "h = Reshape(e, g); y = MatMul(h, w3) | float[k,4,5] y",
        groups=(6, 8),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_exact(name: str) -> None:
    analysis = analyze(load(net(CASES[name].text, opset=CASES[name].opset)))
    assert tuple(sorted(g.size for g in analysis.groups)) == CASES[name].groups, analysis.frozen
    seen = 0.0
    for seed in range(3):
        seen = max(
            seen,
            assert_exact(analysis, random_plan(analysis, np.random.default_rng(seed)))[
                1
            ].masked_difference,
        )
    assert seen > SEEN


@pytest.mark.parametrize("name", FUSED)
def test_taking_a_projection_apart_changes_no_value(name: str) -> None:
    model = load(net(FUSED[name]))
    feeds = example_feeds(model)
    found, expected = (
        Session(canonicalize(model), optimize=False).run(feeds)["y"],
        Session(model, optimize=False).run(feeds)["y"],
    )
    np.testing.assert_array_equal(found, expected)


def test_a_mean_cut_twice_has_one_factor() -> None:
    analysis = analyze(load(net(CASES["channel_mean_gate"].text)))
    once, _ = assert_exact(analysis, random_plan(analysis, np.random.default_rng(0)))
    again = analyze(once)
    twice, _ = assert_exact(again, random_plan(again, np.random.default_rng(1)))
    assert sum(n.op_type == "Mul" for n in twice.proto.graph.node) == 2
