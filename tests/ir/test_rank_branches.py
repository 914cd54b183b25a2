"""Branches of an If that yield several ranks, of which later operators take one."""

from __future__ import annotations

import numpy as np
import pytest
from graph_laws import plan_of
from graph_text import net

from onnxprune.analysis.walk import analyze
from onnxprune.errors import ModelError
from onnxprune.ir.io import load
from onnxprune.ir.passes.canonicalize import canonicalize
from onnxprune.ir.runtime import Session
from onnxprune.surgery.cut import cut
from onnxprune.surgery.verify import verify

# a squeeze of torch.jit: the rank of f is 2 if the convolution leaves one position, else 3
SQUEEZE = (
    "float[n,4,l] x | float[8,4,3] w, int64 last = {2}, int64[1] axis = {2}, int64[1] first = {0},"
    "int64 one = {1}, int64 two = {2}, float[1,9,8] k, float[1,9,3] r, float[3,5] o |"
    "a = Conv(x, w); b = Relu(a); s = Shape(b); d = Gather(s, last); e = Equal(d, one);"
    "f = If(e) <then_branch = g1 () => (float[n,8] p) { p = Squeeze(b, axis) },"
    "else_branch = g2 () => (float[n,8,m] q) { q = Identity(b) }>;"
)
# a layer of one step, which adds a batch axis if there is none
RECURRENT = (
    "t = Shape(f); z = Size(t); c = Equal(z, two); h = Not(c);"
    "u = If(h) <then_branch = g3 () => (float[1,n,8,m] i) { i = Unsqueeze(f, first) },"
    "else_branch = g4 () => (float[n,8] j) { j = Identity(f) }>;"
    "v = Unsqueeze(u, first); y1, y2 = GRU<hidden_size=3>(v, k, r); y = MatMul(y2, o)"
)


def _ops(text: str) -> list[str]:
    return [node.op_type for node in canonicalize(load(net(text))).proto.graph.node]


def test_branch_of_a_rank_that_no_run_survives_is_removed() -> None:
    model = load(net(SQUEEZE + RECURRENT))
    assert "If" not in _ops(SQUEEZE + RECURRENT)
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 4, 3)).astype(np.float32)}
    analysis = analyze(model)
    result = Session(canonicalize(model)).run(feeds)["y"]
    np.testing.assert_array_equal(result, Session(model).run(feeds)["y"])
    (group,) = (g for g in analysis.groups if g.size == 8)
    plan = plan_of(analysis, {group.name: (0, 2, 3, 7)})
    assert verify(analysis, plan, cut(analysis, plan), feeds).ok
    with pytest.raises(ModelError):  # the other branch is no choice: it never runs to the end
        Session(model).run({"x": np.zeros((2, 4, 5), np.float32)})


@pytest.mark.parametrize(
    "nodes", ["y = ReduceSum<keepdims=0>(f)", "g = Relu(f); y = Flatten(g)"], ids=["sum", "flat"]
)
def test_branches_stay_if_both_ranks_run(nodes: str) -> None:
    assert "If" in _ops(SQUEEZE + nodes)
