"""Bodies, sparse initializers, and initializers that are graph inputs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from bodies import BODIES
from graph_laws import assert_exact, assert_finds_the_rest, no_axis_of_one, random_plan
from graph_text import net
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.walk import analyze
from onnxprune.criteria import CRITERIA
from onnxprune.criteria.base import Context
from onnxprune.data.dataset import synthetic
from onnxprune.errors import ModelError
from onnxprune.ir.io import load, to_bytes
from onnxprune.ir.nodes import nested
from onnxprune.ir.passes import lift_constants
from onnxprune.ir.runtime import Session, example_feeds
from onnxprune.surgery.cut import cut

CHAIN = (
    "float[2,4] x | float[4,8] w1, float[8] b1, float[8,5] w2 | a = MatMul(x, w1); "
    "b = Add(a, b1); r = Relu(b); y = MatMul(r, w2)"
)


def of(name: str) -> Analysis:
    return analyze(load(net(BODIES[name].text, opset=BODIES[name].opset)))


# Bodies


@pytest.mark.parametrize("name", BODIES)
def test_what_is_left_is_found_anew(name: str) -> None:
    analysis = of(name)
    plan = no_axis_of_one(analysis, random_plan(analysis, np.random.default_rng(0), floor=2))
    pruned = cut(analysis, plan)
    onnx.checker.check_model(onnx.load_from_string(to_bytes(pruned)), full_check=True)
    assert_finds_the_rest(analysis, plan, pruned)


@pytest.mark.parametrize(
    ("name", "tensor", "reason"),
    [
        ("scan_over_channels", "w1", "the iterations run along this axis"),
        ("loop_state_of_growing_channels", "w0", "its length changes between iterations"),
        ("if_other_lengths", "w1", "returned with several lengths"),
    ],
)
def test_why_a_border_is_not_passed(name: str, tensor: str, reason: str) -> None:
    assert reason in {f.reason for f in of(name).why(tensor)}


def test_ranks_that_differ_freeze() -> None:
    text = (
        "float[2,4] x, bool c | float[4,8] w1, float[8,5] w2, int64[1] one = {1} | "
        "a = MatMul(x, w1); d = Relu(a);"
        "b = If(c) <then_branch = g1 () => (p) { p = Relu(a) }, "
        "else_branch = g2 () => (q) { q = Unsqueeze(a, one) }>; e = Identity(b); "
        "y = MatMul(d, w2) | float[] y, float[] e"
    )
    proto = net(text)
    for output in proto.graph.output[1:]:
        output.type.tensor_type.ClearField("shape")
    analysis = analyze(load(proto))
    assert not analysis.groups
    assert "returned with several ranks" in {f.reason for f in analysis.why("a")}


def test_a_state_whose_rank_grows_freezes() -> None:
    text = (
        "float[2,4] x | float[4,8] w1, int64 n = {3}, int64[1] zero = {0}, float[8,5] w2 | "
        "a = MatMul(x, w1); y = MatMul(a, w2);"
        "h = Loop(n, , a) <body = g (int64 i, bool k, s) => (bool k2, "
        "s2) { s2 = Unsqueeze(s, zero)\n k2 = Identity(k) }>"
    )
    proto = net(text + " | float[] y, float[1,1,1,2,8] h")
    assert not analyze(load(proto)).groups


def test_passes_count() -> None:
    """A body costs as often as it runs, if the trip count or length is known."""
    assert of("loop_layer_inside").cost().macs == 5 * 2 * (8 * 6 + 6 * 8) + 2 * 4 * 8 + 2 * 8 * 3
    assert of("scan_of_layers").cost().macs == 5 * 2 * (4 * 6 + 6 * 8 + 8 * 3)
    assert of("loop_condition_computed").cost().macs == 2 * (4 * 8 + 8 * 8 + 8 * 3)


def test_an_unknown_op_with_a_body_freezes_what_it_captures() -> None:
    text = (
        "float[2,4] x | float[4,8] w1, float[8,8] w2, float[8,6] w4, float[6,8] w5, "
        "float[8,5] w3 | a = MatMul(x, w1); d = custom.Repeat(a) <body = g () => (float[2,8] "
        "o) { p = MatMul(a, w2)\n"
        "q = MatMul(p, w4)\n o = MatMul(q, w5) }>; y = MatMul(a, w3)"
    )
    analysis = analyze(load(net(text + " | float[] y, float[2,8] d")))
    assert sorted(g.size for g in analysis.groups) == [6, 8]
    assert "its bodies are not followed" in {f.reason for f in analysis.why("a")}


def test_declared_shapes_of_bodies_follow() -> None:
    analysis = of("loop_recurrent_state")
    plan = random_plan(analysis, np.random.default_rng(0))
    (kept,) = plan.kept.values()
    _, body = nested(cut(analysis, plan).proto.graph)
    assert [
        [d.dim_value for d in v.type.tensor_type.shape.dim] for v in (body.input[2], body.output[1])
    ] == [[2, len(kept)]] * 2


@pytest.mark.parametrize(
    "criterion", ["l2", "reconstruction", "activation_mean", "activation*weight", "taylor"]
)
def test_scores_of_what_can_be_seen(criterion: str) -> None:
    """Groups with tensors inside bodies get no scores from data; all others do."""
    text = BODIES["loop_captured_layer"].text.replace("float[2,", "float[n,")
    analysis = analyze(load(net(text)))
    data = synthetic({"x": (["n", 4], "tensor(float)")}, samples=8)
    scores = CRITERIA.get(criterion)(Context(analysis, data))
    assert all(len(scores[g]) == analysis.group(g).size for g in scores)
    assert scores or criterion == "taylor"


# Branches that are always taken

SQUEEZE = (
    "float[n,4,1,6] x | float[8,4,1,1] w1, int64 two = {2}, int64 one = {1}, "
    "int64[1] axes = {2}, float[5,8,1] w2 | a = Conv(x, w1); s = Shape(a); "
    "h = Gather(s, two); c = Equal(h, one);"
    "b = If(c) <then_branch = g1 () => (p) { p = Squeeze(a, axes) }, "
    "else_branch = g2 () => (q) { q = Identity(a) }>; r = Relu(b); y = Conv(r, w2) | "
    "float[n,5,6] y"
)


def test_a_branch_that_is_always_taken_is_inlined() -> None:
    """Torch's older exporter writes squeeze(2) with branches of different ranks."""
    model = load(net(SQUEEZE))
    analysis = analyze(model)
    assert "If" not in {n.op_type for n in analysis.record.nodes}
    assert [g.size for g in analysis.groups] == [8]
    feeds = example_feeds(model)
    np.testing.assert_array_equal(
        Session(analysis.model, optimize=False).run(feeds)["y"],
        Session(model, optimize=False).run(feeds)["y"],
    )
    assert_exact(analysis, random_plan(analysis, np.random.default_rng(0)))


def test_a_branch_in_a_branch_is_inlined_too() -> None:
    text = (
        "float[2,4] x, bool c | float[4,8] w1, float[8,8] w3, bool t = {1}, bool f = {0}, "
        "float[8,5] w2 | a = MatMul(x, w1);"
        "b = If(t) <then_branch = g1 () => (float[2,8] p) { p = If(f) <then_branch = g3 () "
        "=> (float[2,8] i) { i = Neg(a) }, else_branch = g4 () => (float[2,8] j) { j = "
        "MatMul(a, w3) }> }, else_branch = g2 () => (float[2,8] q) { q = Relu(a) }>;"
        "d = If(c) <then_branch = g5 () => (float[2,8] k) { k = If(f) <then_branch = g7 () "
        "=> (float[2,8] l) { l = Neg(b) }, else_branch = g8 () => (float[2,8] m) { m = "
        "Identity(b) }> }, else_branch = g6 () => (float[2,8] o) { o = Relu(b) }>; "
        "y = MatMul(d, w2)"
    )
    analysis = analyze(load(net(text)))
    assert [n.op_type for n in analysis.record.nodes].count("If") == 1
    assert [g.size for g in analysis.groups] == [8, 8]
    assert_exact(analysis, random_plan(analysis, np.random.default_rng(0)))


# Initializers


def made_sparse(proto: ModelProto, name: str, *, rows: bool = False) -> ModelProto:
    """Return the model with one initializer sparse, half of its values zero.

    rows: whether indices have one row per value.
    """
    tensor = next(t for t in proto.graph.initializer if t.name == name)
    values = numpy_helper.to_array(tensor).copy()
    values.ravel()[::2] = 0
    proto.graph.initializer.remove(tensor)
    proto.graph.sparse_initializer.append(sparse(values, name, rows))
    return proto


def sparse(values: np.ndarray, name: str, rows: bool) -> onnx.SparseTensorProto:
    places = (
        np.argwhere(values).astype(np.int64) if rows else np.flatnonzero(values).astype(np.int64)
    )
    return helper.make_sparse_tensor(
        numpy_helper.from_array(values[values != 0], name),
        numpy_helper.from_array(places),
        values.shape,
    )


@pytest.mark.parametrize("rows", [False, True])
def test_sparse_initializers_are_cut(rows: bool) -> None:
    proto = made_sparse(net(CHAIN), "w1", rows=rows)
    expected = Session(load(net(CHAIN)))
    assert expected.outputs == ["y"]
    analysis = analyze(load(proto))
    assert [g.size for g in analysis.groups] == [8]
    pruned, found = assert_exact(analysis, random_plan(analysis, np.random.default_rng(0)))
    assert found.masked_difference > 1e-2
    assert not pruned.proto.graph.sparse_initializer
    feeds = example_feeds(analysis.model)
    np.testing.assert_array_equal(
        Session(analysis.model, optimize=False).run(feeds)["y"],
        Session(load(proto), optimize=False).run(feeds)["y"],
    )


def test_sparse_values_in_bodies_and_constants() -> None:
    proto = net(BODIES["if_convolutions"].text)
    bodies = list(nested(proto.graph))[1:]
    for body, name in zip(bodies, ("w3", "w4"), strict=False):
        seed = int(name[1:])  # equal values would be copies of one weight
        values = np.random.default_rng(seed).standard_normal((8, 8, 1, 1)).astype(np.float32)
        values[values < 0] = 0
        body.node[0].input[1] = f"own_{name}"
        if name == "w3":
            body.sparse_initializer.append(sparse(values, "own_w3", False))
        else:
            body.node.insert(
                0,
                helper.make_node(
                    "Constant", [], ["own_w4"], sparse_value=sparse(values, "", False)
                ),
            )
    analysis = analyze(load(proto))
    assert [g.size for g in analysis.groups] == [8] * 4
    assert_exact(analysis, random_plan(analysis, np.random.default_rng(0)))


def test_large_sparse_initializers_freeze(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lift_constants, "DENSE_BYTES", 100)
    analysis = analyze(load(made_sparse(net(CHAIN), "w1")))
    assert not analysis.groups
    assert "sparse initializer" in {f.reason for f in analysis.why("a")} | {
        r.text for r in analysis.record.reasons
    }
    feeds = example_feeds(analysis.model)
    assert Session(cut(analysis, random_plan(analysis, np.random.default_rng(0)))).run(feeds)[
        "y"
    ].shape == (2, 5)


def test_sparse_places_outside_of_the_tensor_are_one_sentence() -> None:
    proto = made_sparse(net(CHAIN), "w1")
    proto.graph.sparse_initializer[0].indices.CopyFrom(numpy_helper.from_array(np.full(16, 99)))
    with pytest.raises(ModelError):
        analyze(load(proto))


@pytest.mark.parametrize("ir_version", [3, 8])
def test_initializers_that_are_inputs(ir_version: int) -> None:
    """IR version 3 lists initializers among the inputs, whose shapes the cut updates."""
    proto = net(
        (
            "float[2,4,6,6] x | float[8,4,3,3] w1, float[8] b1, float[6,8,1,1] w2, "
            "float[5,6,1,1] w3 | a = Conv(x, w1, b1); b = Relu(a); c = Conv(b, w2); "
            "y = Conv(c, w3)"
        ),
        opset=8,
        ir_version=ir_version,
    )
    for tensor in proto.graph.initializer:
        proto.graph.input.append(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        )
    analysis = analyze(load(proto))
    assert [g.size for g in analysis.groups] == [8, 6]
    pruned, found = assert_exact(analysis, random_plan(analysis, np.random.default_rng(0)))
    assert found.masked_difference > 1e-2
    for info in pruned.proto.graph.input[1:]:
        assert (
            tuple(d.dim_value for d in info.type.tensor_type.shape.dim)
            == pruned.weights[info.name].shape
        )
        assert info.type.tensor_type.elem_type == TensorProto.FLOAT


def test_model_of_other_operator_sets_alone() -> None:
    """A cut may insert standard nodes, so the standard set is imported then."""
    text = """float[2,4,6] x | float[6,8] w1, float[8,5] w3
    | a = com.microsoft.FusedMatMul(x, w1); b = com.microsoft.QuickGelu(a);
    y = com.microsoft.FusedMatMul(b, w3)"""
    model = net(text)
    (standard,) = [o for o in model.opset_import if not o.domain]
    model.opset_import.remove(standard)
    analysis = analyze(load(model))
    assert analysis.model.opset == 13
    assert_exact(analysis, analysis.plan({}))


def test_lengths_in_a_branch_that_never_runs() -> None:
    """A Split into four lengths of five elements gives the last part a negative length."""
    text = """float[2,4] x | float[4,8] w1, float[8,3] w2, bool c = {0}
    | a = MatMul(x, w1);
    b = If(c) <then_branch = t () => (float[2,9] p) { p, q = Split<axis=1, split=[9,-1]>(a) },
    else_branch = e () => (float[2,8] r) { r = Relu(a) }>;
    y = MatMul(b, w2)"""
    analysis = analyze(load(net(text, opset=11)))
    assert [g.size for g in analysis.groups] == [8]
    assert_exact(analysis, random_plan(analysis, np.random.default_rng(0)))


def test_range_of_vectors() -> None:
    """Of hidden shapes they run: where a branch of an If gives them."""
    text = """float[2,5] x | float[5,8] w1, float[8,3] w2, bool c = {1}, int64 z = {0},
    int64 o = {1}, float[1] v | a = MatMul(x, w1); s = Shape(x); t = Cast<to=7>(v);
    h = Gather<axis=0>(s, t);
    n = If(c) <then_branch = t1 () => (int64[1] p) { p = Identity(h) },
    else_branch = e1 () => (int64[1] r) { r = Neg(h) }>;
    i = Range(z, n, o); j = Cast<to=1>(i); k = ReduceSum(j); b = Mul(a, k); y = MatMul(b, w2)"""
    analysis = analyze(load(net(text, opset=12)))
    assert [g.size for g in analysis.groups] == [8]
    assert_exact(analysis, random_plan(analysis, np.random.default_rng(0)))
