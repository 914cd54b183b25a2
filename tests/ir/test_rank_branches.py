"""Branches of an If that yield several ranks, of which later operators take one."""

from __future__ import annotations

import numpy as np
import pytest
from graph_laws import plan_of
from graph_text import net

from onnxprune.analysis.walk import analyze
from onnxprune.errors import ModelError
from onnxprune.ir.io import load
from onnxprune.ir.nodes import nested
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


def _inside(nodes: str, other: str) -> str:
    """Return the graph of SQUEEZE and further nodes in a branch of an outer If."""
    head, weights, body = (SQUEEZE + nodes).split("|")
    body = body.replace("y = ", "y3 = ")
    return (
        f"{head}, bool outer | {weights}| y = If(outer) <then_branch = t () => (float[] y3) "
        f"{{ {body} }}, else_branch = o () => (float[] y4) {{ {other} }}>"
    )


def test_rank_that_fails_within_a_body_is_removed_there() -> None:
    """The rest of a body runs whenever the If in it does; the other body is no reason."""
    other = "a4 = Conv(x, w); b4 = ReduceSum<keepdims=0>(a4); y4 = Expand(b4, axis)"
    model = load(net(_inside(RECURRENT, other)))
    canonical = canonicalize(model)
    assert [n.op_type for g in nested(canonical.proto.graph) for n in g.node].count("If") == 1
    rng = np.random.default_rng(0)
    analysis = analyze(model)
    for outer in (True, False):
        feeds = {"x": rng.standard_normal((2, 4, 3)).astype(np.float32), "outer": np.array(outer)}
        result = Session(canonical).run(feeds)["y"]
        np.testing.assert_array_equal(result, Session(model).run(feeds)["y"])
        for group in analysis.groups:
            plan = plan_of(analysis, {group.name: tuple(range(1, group.size))})
            assert verify(analysis, plan, cut(analysis, plan), feeds).ok
    # a squeeze of a longer axis is counted, although a run at this length fails
    longer = analyze(model, shapes={"x": (2, 4, 5), "outer": ()})
    assert longer.node_costs()[1].macs == 2 * 9 * (8 + 3)


def test_body_stays_open_if_only_the_graph_around_it_fails() -> None:
    nodes = "y = Identity(f)"
    text = _inside(nodes, "a4 = Conv(x, w); y4 = Relu(a4)") + "; u = Conv(y, w0)"
    text = text.replace("float[3,5] o", "float[3,5] o, float[7,8,1] w0").replace("y = If", "z = If")
    text = text.replace("Conv(y, w0)", "Conv(z, w0)").replace("u = Conv", "y = Conv")
    canonical = canonicalize(load(net(text)))
    assert [n.op_type for g in nested(canonical.proto.graph) for n in g.node].count("If") == 2


@pytest.mark.parametrize(
    "nodes", ["y = ReduceSum<keepdims=0>(f)", "g = Relu(f); y = Flatten(g)"], ids=["sum", "flat"]
)
def test_branches_stay_if_both_ranks_run(nodes: str) -> None:
    assert "If" in _ops(SQUEEZE + nodes)
