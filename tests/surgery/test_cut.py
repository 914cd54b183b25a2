"""Cutting: rewritten literals, shared weights, rejected plans, and verification."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from graph_laws import assert_exact, plan_of, random_plan
from graph_text import net
from onnx import TensorProto, helper, numpy_helper

from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.walk import analyze
from onnxprune.errors import UsageError, VerificationError
from onnxprune.ir.io import load, to_bytes
from onnxprune.ir.runtime import Session, example_feeds
from onnxprune.ir.weights import from_array
from onnxprune.surgery.compare import relative_difference
from onnxprune.surgery.cut import cut
from onnxprune.surgery.masking import masked
from onnxprune.surgery.verify import check, verify

CHAIN = (
    "float[2,4,6,6] x | float[8,4,3,3] w1, float[8] b1, float[6,8,1,1] w2, float[5,6,1,1] w3 | "
    "a = Conv(x, w1, b1); b = Relu(a); c = Conv(b, w2); y = Conv(c, w3)"
)


def analyzed(text: str, **options: int) -> Analysis:
    return analyze(load(net(text, **options)))


def test_nothing_is_decided() -> None:
    """The kept channels are the named ones, in order."""
    analysis = analyzed(CHAIN)
    pruned = cut(analysis, plan_of(analysis, {"a": (6, 1)[::-1]}))
    original = analysis.model.weights
    np.testing.assert_array_equal(pruned.weights["w1"].array(), original["w1"].array()[[1, 6]])
    np.testing.assert_array_equal(pruned.weights["b1"].array(), original["b1"].array()[[1, 6]])
    np.testing.assert_array_equal(pruned.weights["w2"].array(), original["w2"].array()[:, [1, 6]])
    np.testing.assert_array_equal(pruned.weights["w3"].array(), original["w3"].array())


def test_the_same_plan_gives_the_same_bytes() -> None:
    analysis = analyzed(CHAIN)
    plan = random_plan(analysis, np.random.default_rng(0))
    assert to_bytes(cut(analysis, plan)) == to_bytes(cut(analyzed(CHAIN), plan))


def test_a_plan_for_another_model_is_refused() -> None:
    analysis = analyzed(CHAIN)
    plan = plan_of(analysis, {"a": (0,)})
    for wrong, match in (
        (replace(plan, source="f" * 64), "another model"),
        (replace(plan, kept={"aa": (0,)}, sizes={"aa": 8}), "did you mean 'a'"),
        (replace(plan, sizes={"a": 9}), "8 channels in this analysis and 9"),
    ):
        with pytest.raises(UsageError, match=match):
            cut(analysis, wrong)


def test_equal_biases_are_not_tied() -> None:
    """Exporters store equal zero biases once; each use is cut on its own."""
    text = (
        "float[2,4,6,6] x | float[8,4,1,1] w1, float[8] b, float[8,8,1,1] w2, "
        "float[8,8,1,1] w3 | a = Conv(x, w1, b); c = Conv(a, w2, b); y = Conv(c, w3, b)"
    )
    analysis = analyzed(text)
    assert [g.size for g in analysis.groups] == [8, 8]
    pruned, _ = assert_exact(analysis, plan_of(analysis, {"a": (0, 3), "c": (1, 2, 5)}))
    assert sorted(len(w.array()) for n, w in pruned.weights.items() if n.startswith("b")) == [
        2,
        3,
        8,
    ]


def test_uses_that_are_cut_alike_stay_one() -> None:
    text = (
        "float[2,4] x | float[4,8] w, float[8] b, float[8,5] w2 | p = MatMul(x, w); "
        "q = Add(p, b); r = MatMul(x, w); s = Add(r, b); t = Add(q, s); y = MatMul(t, w2)"
    )
    analysis = analyzed(text)
    pruned, _ = assert_exact(analysis, plan_of(analysis, {analysis.groups[0].name: (0, 1, 5)}))
    assert set(pruned.weights) == {"w", "b", "w2"}


def test_initializers_that_are_graph_inputs() -> None:
    proto = net(CHAIN)
    for tensor in proto.graph.initializer:
        proto.graph.input.append(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        )
    analysis = analyze(load(proto))
    pruned, _ = assert_exact(analysis, plan_of(analysis, {"a": (0, 1), "c": (2, 4)}))
    shapes = {
        i.name: [d.dim_value for d in i.type.tensor_type.shape.dim]
        for i in pruned.proto.graph.input
    }
    assert shapes["w2"] == [2, 2, 1, 1]
    assert shapes["x"] == [2, 4, 6, 6]


def test_declared_shapes_follow() -> None:
    proto = onnx.shape_inference.infer_shapes(net(CHAIN))
    pruned = cut(analysis := analyze(load(proto)), plan_of(analysis, {"a": (0, 1)}))
    found = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in pruned.proto.graph.value_info
    }
    assert found["a"] == found["b"] == [2, 2, 4, 4]
    assert found["c"] == [2, 6, 4, 4]


def test_symbol_of_axes_that_are_cut_differently() -> None:
    """Merged graphs use the same symbols; onnxruntime shares memory among equal declared shapes."""
    proto = net(
        "float[n,4] x | float[4,8] w1, float[8,6] w2, float[4,8] w3, float[8,6] w4 | "
        "a = MatMul(x, w1); b = Relu(a); c = MatMul(b, w2); d = MatMul(x, w3); e = Relu(d); "
        "f = MatMul(e, w4); y = Add(c, f)"
    )
    for name in "abde":
        proto.graph.value_info.append(helper.make_tensor_value_info(name, 1, ["n", "u"]))
    analysis = analyze(load(proto))
    plan = plan_of(analysis, {"d": (0, 1, 5)})
    pruned = cut(analysis, plan)
    dims = {v.name: v.type.tensor_type.shape.dim for v in pruned.proto.graph.value_info}
    assert [(d.dim_param, d.dim_value) for d in dims["d"]] == [("n", 0), ("", 3)]
    assert [d.dim_param for d in dims["a"]] == ["n", "u"]
    assert verify(analysis, plan, pruned, {"x": np.ones((7, 4), np.float32)}).ok


def test_one_constant_for_two_nodes() -> None:
    """Split sizes shared by nodes that now need different ones are duplicated."""
    text = (
        "float[2,4,6,6] x | float[8,4,1,1] w1, float[8,4,1,1] w2, int64[2] s = {4, 4}, "
        "float[5,4,1,1] w3, float[5,4,1,1] w4, float[5,4,1,1] w5, float[5,4,1,1] w6 |"
        "a = Conv(x, w1); b = Conv(x, w2); p, q = Split<axis=1>(a, s); "
        "r, t = Split<axis=1>(b, s); c = Conv(p, w3); d = Conv(q, w4); e = Conv(r, w5); "
        "f = Conv(t, w6); g = Add(c, d); h = Add(e, f); y = Add(g, h)"
    )
    analysis = analyzed(text)
    assert [g.size for g in analysis.groups] == [4, 4, 4, 4]
    assert_exact(
        analysis,
        plan_of(
            analysis,
            {g.name: tuple(range(n)) for g, n in zip(analysis.groups, (1, 2, 3, 4), strict=False)},
        ),
    )


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.FLOAT])
def test_float_types(dtype: int) -> None:
    proto = net(
        "float[2,4] x | float[4,8] w1, float[8] b1, float[8,5] w2 | a = MatMul(x, w1); "
        "b = Add(a, b1); r = Relu(b); y = MatMul(r, w2)"
    )
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(
            numpy_helper.from_array(
                numpy_helper.to_array(tensor).astype(helper.tensor_dtype_to_np_dtype(dtype)),
                tensor.name,
            )
        )
    for info in (*proto.graph.input, *proto.graph.output):
        info.type.tensor_type.elem_type = dtype
    analysis = analyze(load(proto))
    pruned, found = assert_exact(analysis, random_plan(analysis, np.random.default_rng(1)))
    assert found.masked_difference > 1e-2
    assert {w.dtype for w in pruned.weights.values()} == {dtype}


def test_bfloat16_is_cut() -> None:
    """Values are compared, as onnxruntime runs few bfloat16 operators on CPU."""
    proto = net(
        "float[2,4] x | float[4,8] w1, float[8,5] w2 | a = MatMul(x, w1); y = MatMul(a, w2)"
    )
    for tensor in proto.graph.initializer:
        values = numpy_helper.to_array(tensor)
        tensor.CopyFrom(
            helper.make_tensor(tensor.name, TensorProto.BFLOAT16, tensor.dims, values.ravel())
        )
    for info in (*proto.graph.input, *proto.graph.output):
        info.type.tensor_type.elem_type = TensorProto.BFLOAT16
    analysis = analyze(load(proto))
    pruned = cut(analysis, plan_of(analysis, {"a": (2, 3)}))
    expected = analysis.model.weights["w1"].array()[:, 2:4].astype(np.float32)
    again = onnx.load_from_string(to_bytes(pruned)).graph.initializer[0]
    np.testing.assert_array_equal(numpy_helper.to_array(again).astype(np.float32), expected)


# Verification


def test_masks_are_on_data_not_only_on_weights() -> None:
    """Masks zero what is summed over; zeroed weights would leave the biases in Q K^T."""
    text = (
        "float[2,5,4] x | float[4,8] wq, float[8] bq, float[4,8] wk, float[8] bk, float[5,3] w | "
        "q = MatMul(x, wq); q1 = Add(q, bq); k = MatMul(x, wk); k1 = Add(k, bk); "
        "t = Transpose<perm=[0,2,1]>(k1); s = MatMul(q1, t); y = MatMul(s, w)"
    )
    analysis = analyzed(text)
    plan = plan_of(analysis, {analysis.groups[0].name: (0, 2)})
    feeds = example_feeds(analysis.model)
    found = Session(masked(analysis, plan)).run(feeds)["y"]
    w = {n: v.array().astype(np.float64) for n, v in analysis.model.weights.items()}
    x = feeds["x"].astype(np.float64)
    q, k = (x @ w["wq"] + w["bq"])[..., [0, 2]], (x @ w["wk"] + w["bk"])[..., [0, 2]]
    np.testing.assert_allclose(found, q @ k.swapaxes(1, 2) @ w["w"], rtol=1e-5)


@pytest.mark.parametrize("rough", [True, False])
def test_as_exact_as_the_original_is(rough: bool) -> None:
    """A difference of 4e-5 passes if rounding alone is as large.

    Here the output is 4096 times the difference of two ways to scale.
    """
    lost = (
        "p = Mul(a, g); q = Add(p, o); r = Sub(n, q); s = Mul(r, k); d = Add(n, s)"
        if rough
        else "d = Mul(n, k)"
    )
    analysis = analyzed(
        "float[2,4,6,6] x | float[8,4,3,3] w1, float[8,1,1] g, float[8,1,1] o, float[8] h, "
        "float[8] b, float[8] m, float[8] v, float k = {4096}, float[5,8,1,1] w2 |"
        f"a = Conv(x, w1); n = BatchNormalization(a, h, b, m, v); {lost}; y = Conv(d, w2)"
    )
    weights = analysis.model.weights
    same = (
        {"g": weights["h"], "o": weights["b"], "m": np.zeros(8), "v": np.ones(8)} if rough else {}
    )
    copy = analysis.model.edit()
    for name, weight in same.items():
        values = weight if isinstance(weight, np.ndarray) else weight.array()
        copy.weights[name] = from_array(values.astype(np.float32).reshape(weights[name].shape))
    analysis = analyze(copy)
    plan = plan_of(analysis, {analysis.groups[0].name: (0, 1, 2, 5)})
    pruned = cut(analysis, plan).edit()
    pruned.weights["w2"] = from_array(pruned.weights["w2"].array() * np.float32(1 + 4e-5))
    found = verify(analysis, plan, pruned)
    assert found.difference > 1e-5
    assert found.ok == rough
    assert found.tolerance <= 1e-4
    assert not verify(analysis, plan, pruned, tolerance=1e-5).ok


def test_a_wrong_cut_is_found() -> None:
    """Verification fails if another channel than the planned one is cut."""
    analysis = analyzed(CHAIN)
    plan = plan_of(analysis, {"a": (0, 1, 2)})
    other = cut(analysis, plan_of(analysis, {"a": (0, 1, 3)}))
    found = verify(analysis, plan, other)
    assert not found.ok
    assert found.difference > found.tolerance
    right = verify(analysis, plan, cut(analysis, plan))
    assert right.ok
    assert right.masked_difference > 1e-2
    assert right.as_dict()["ok"] is True


def test_an_opened_mixing_op_is_not_exact() -> None:
    text = (
        "float[2,6,4] x | float[4,8] w1, float[8] s, float[8] b, float[8,5] w2 | "
        "a = MatMul(x, w1); n = LayerNormalization(a, s, b); y = MatMul(n, w2)"
    )
    analysis = analyze(load(net(text)), allow_mixing=("LayerNormalization",))
    assert [(g.size, g.exact) for g in analysis.groups] == [(8, False)]
    plan = plan_of(analysis, {analysis.groups[0].name: (0, 1, 2, 3)})
    found = verify(analysis, plan, cut(analysis, plan))
    assert not found.exact
    assert found.ok
    assert found.difference > 1e-3


def test_an_invalid_model_is_refused() -> None:
    analysis = analyzed(CHAIN)
    plan = plan_of(analysis, {"a": (0, 1)})
    broken = cut(analysis, plan)
    broken.proto.graph.node[0].op_type = "Cosine"
    with pytest.raises(VerificationError, match="onnx rejects the cut model"):
        check(broken)
    with pytest.raises(VerificationError):
        verify(analysis, plan, broken)


@pytest.mark.parametrize(
    ("found", "expected", "difference"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0),
        ([1.0, 2.5], [1.0, 2.0], 0.25),
        ([0.0], [0.0], 0),
        ([1.0], [0.0], np.inf),
        ([np.nan, 1.0], [np.nan, 1.0], 0),
        ([1.0, 1.0], [np.nan, 1.0], np.inf),
        ([np.inf], [np.inf], 0),
        ([-np.inf], [np.inf], np.inf),
        ([[1.0]], [1.0], np.inf),
        ([True], [False], np.inf),
        ([], [], 0),
    ],
)
def test_relative_difference(found: list, expected: list, difference: float) -> None:
    assert relative_difference(np.array(found), np.array(expected)) == difference


@pytest.mark.parametrize("index", [0, 1])
def test_zero_of_a_reshape_that_copies_the_length_of_another_axis(index: int) -> None:
    """A 0 copies the length at the same place of the input, here of an axis of equal length."""
    analysis = analyzed(
        "float[2,4] x | float[4,8,8] w1, float[16,8,5] w2, int64[2] s = {-1, 0} | "
        'p = Einsum<equation="bi,iqc->bqc">(x, w1); r = Reshape(p, s); h = Relu(r); '
        'y = Einsum<equation="nc,nco->o">(h, w2)'
    )
    assert [g.size for g in analysis.groups] == [8, 8]
    assert_exact(analysis, plan_of(analysis, {analysis.groups[index].name: (0, 3, 7)}))
