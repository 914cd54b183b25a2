"""Canonical form and inferred shapes, compared with runs of the original by onnxruntime."""

from __future__ import annotations

from typing import Any

import networks
import numpy as np
import onnx
import pytest
from bodies import BODIES
from dynamic import DYNAMIC
from graph_text import net
from graphs import CASES
from indexed import INDEXED
from onnx import helper, parser
from patterns import PATTERNS

import onnxprune.analysis.walk
import onnxprune.ir.passes.canonicalize
from onnxprune.analysis.rule_shapes import shapes_by_rule
from onnxprune.analysis.walk import analyze
from onnxprune.errors import ModelError
from onnxprune.ir.inference import infer
from onnxprune.ir.io import load, to_bytes
from onnxprune.ir.passes.canonicalize import canonicalize, canonicalize_with_shapes
from onnxprune.ir.passes.expand_fused import has_fused
from onnxprune.ir.runtime import Session, example_feeds
from onnxprune.ir.shapes import Shapes

ALL = CASES | INDEXED | PATTERNS | DYNAMIC | BODIES
SOME = [
    *dict.fromkeys(
        [
            *sorted(CASES | INDEXED | PATTERNS)[::5],
            *(n for n in INDEXED if n.startswith("ScatterND_to_")),
        ]
    ),
    *(DYNAMIC | BODIES),
]


@pytest.mark.parametrize("name", SOME)
def test_outputs_are_the_same(name: str) -> None:
    model = load(net(ALL[name].text, opset=ALL[name].opset))
    feeds = example_feeds(model)
    if name == "expand_to_an_input":
        feeds["s"] = np.array([2, 5])
    expected = Session(model, optimize=False).run(feeds)
    actual = Session(canonicalize(model), optimize=False).run(feeds)
    for key, value in expected.items():
        if has_fused(model):  # sums and factors in another order
            np.testing.assert_allclose(actual[key], value, rtol=1e-6, atol=1e-7)
        else:
            np.testing.assert_array_equal(actual[key], value)


@pytest.mark.parametrize("name", SOME)
def test_shapes_equal_those_of_a_run(name: str) -> None:
    """Every known dimension is that of onnxruntime; a symbol stands for one number."""
    model = canonicalize(load(net(ALL[name].text, opset=ALL[name].opset)))
    shapes = infer(model, shapes_by_rule(model))
    tensors = [o for n in model.proto.graph.node for o in n.output if o]
    feeds = example_feeds(model)
    if name == "expand_to_an_input":
        feeds["s"] = np.array([2, 5])
    for tensor, value in Session(model, tensors, optimize=False).run(feeds).items():
        inferred = shapes.shape(tensor)
        assert inferred is not None, tensor
        assert [
            d if isinstance(d, int) else n for d, n in zip(inferred, value.shape, strict=False)
        ] == list(value.shape), tensor


@pytest.mark.parametrize("name", DYNAMIC)
def test_nothing_dynamic_becomes_static(name: str) -> None:
    """The canonical model runs on other sizes of its dynamic axes too."""
    model = load(net(DYNAMIC[name].text, opset=DYNAMIC[name].opset))
    if name == "expand_to_an_input":
        pytest.skip("no dynamic axis")
    dims = {
        i.name: [d.dim_value or 5 for d in i.type.tensor_type.shape.dim]
        for i in model.proto.graph.input
    }
    feeds = example_feeds(model, shapes=dims)
    np.testing.assert_array_equal(
        Session(canonicalize(model), optimize=False).run(feeds)["y"],
        Session(model, optimize=False).run(feeds)["y"],
    )


def test_canonical_form_is_a_fixed_point() -> None:
    for name in SOME:
        once = canonicalize(load(net(ALL[name].text, opset=ALL[name].opset)))
        assert to_bytes(canonicalize(once)) == to_bytes(once), name


def test_functions_are_inlined() -> None:
    text = """<ir_version: 9, opset_import: ["": 17, "local": 1]>
    g (float[2,4] x) => (float[2,5] y) <float[4,8] w1, float[8,5] w2> {
        a = local.layer(x, w1)
        y = MatMul(a, w2)
    }
    <domain: "local", opset_import: ["": 17]>
    layer (x, w) => (y) { m = MatMul(x, w)\n y = Relu(m) }"""
    proto = parser.parse_model(text)
    rng = np.random.default_rng(0)
    for info in proto.graph.value_info:
        shape = [d.dim_value for d in info.type.tensor_type.shape.dim]
        proto.graph.initializer.append(
            onnx.numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), info.name)
        )
    del proto.graph.value_info[:]
    model = load(proto)
    canonical = canonicalize(model)
    assert [n.op_type for n in canonical.proto.graph.node] == ["MatMul", "Relu", "MatMul"]
    feeds = example_feeds(model)
    np.testing.assert_allclose(
        Session(canonical).run(feeds)["y"], Session(model).run(feeds)["y"], rtol=1e-6
    )


def test_constants_are_lifted_and_identities_removed() -> None:
    model = load(
        net(
            "float[2,4] x | float[4,8] w | i = Identity(w); "
            "c = Constant<value=float[8] {1,2,3,4,5,6,7,8}>(); a = MatMul(x, i); "
            "j = Identity(a); y = Add(j, c)"
        )
    )
    canonical = canonicalize(model)
    assert [n.op_type for n in canonical.proto.graph.node] == ["MatMul", "Add"]
    assert set(canonical.weights) == {"w", "c"}


def test_dead_nodes_and_weights_are_removed() -> None:
    canonical = canonicalize(
        load(
            net(
                "float[2,4] x | float[4,8] w, float[4,9] unused, float[4,7] dead | "
                "d = MatMul(x, dead); y = MatMul(x, w)"
            )
        )
    )
    assert set(canonical.weights) == {"w"}
    assert len(canonical.proto.graph.node) == 1


def test_shape_arithmetic_is_folded() -> None:
    text = (
        "float[2,4,6] x | int64 one = {1}, int64 two = {2}, int64[1] zero = {0}, "
        "int64[1] m = {-1} | s = Shape(x); a = Gather(s, one); b = Gather(s, two); "
        "c = Mul(a, b); d = Div(c, two); e = Sub(d, one); f = Add(e, one); g = Mul(f, two); "
        "h = Unsqueeze(g, zero); i = Concat<axis=0>(m, h); y = Reshape(x, i)"
    )
    canonical = canonicalize(load(net(text)))
    assert [n.op_type for n in canonical.proto.graph.node] == ["Reshape"]
    assert canonical.weights[canonical.proto.graph.node[0].input[1]].array().tolist() == [-1, 24]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda g: g.node[0].input.__setitem__(0, "nowhere"), "no earlier node"),
        (lambda g: g.node.append(helper.make_node("Relu", ["x"], ["a"])), "defined twice"),
        (
            lambda g: g.node.insert(0, helper.make_node("Relu", ["a"], ["z"])),
            "no earlier node",
        ),
        (
            lambda g: g.output.append(helper.make_empty_tensor_value_info("elsewhere")),
            "defined by no node",
        ),
    ],
)
def test_invalid_graphs_are_rejected(change, match: str) -> None:
    proto = net(
        "float[2,4] x | float[4,8] w1, float[8,5] w2 | a = MatMul(x, w1); y = MatMul(a, w2)"
    )
    change(proto.graph)
    with pytest.raises(ModelError, match=match):
        canonicalize(load(proto))


def test_old_opset() -> None:
    with pytest.raises(ModelError, match="opset 6"):
        canonicalize(load(net("float[2,4] x | | y = Relu(x)", opset=6)))


@pytest.mark.parametrize("outputs", [["p", "m", ""], ["p", "", ""], ["p", "", "v"], ["p"]])
@pytest.mark.parametrize("source", ["x", "w"])
def test_unnamed_batch_statistics_do_not_crash(outputs: list[str], source: str) -> None:
    """If such an output has no name, onnxruntime ends the process."""
    weights = "float[6,4] w, float[4] a, float[4] b, float[4] c, float[4] d"
    proto = net(f"float[6,4] x | {weights} | p = Relu({source}); y = Add(p, x)")
    normalize = helper.make_node("BatchNormalization", [source, *"abcd"], outputs, training_mode=1)
    proto.graph.node[0].CopyFrom(normalize)
    model = canonicalize(load(proto))
    feeds = example_feeds(model)
    data = feeds["x"] if source == "x" else load(proto).weights["w"].array()
    scale, shift = (load(proto).weights[n].array() for n in "ab")
    normal = (data - data.mean(0)) / np.sqrt(data.var(0) + 1e-5) * scale + shift
    expected = normal + feeds["x"]
    np.testing.assert_allclose(Session(model).run(feeds)["y"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [-1, -9, -(2**31)])
def test_negative_batch_dims_are_rejected(count: int) -> None:
    """If they are negative, shape inference of onnx ends the process."""
    proto = net("float[2,6,8] x | int64[2,3,1] i | y = GatherND(x, i)")
    proto.graph.node[0].attribute.append(helper.make_attribute("batch_dims", count))
    with pytest.raises(ModelError, match="batch_dims"):
        canonicalize(load(proto))


@pytest.mark.parametrize("op", ["ReduceSum", "ReduceProd", "ReduceMax", "ReduceMin"])
@pytest.mark.parametrize("noop", [0, 1])
@pytest.mark.parametrize("empty", [False, True])
def test_folded_reduction_without_axes(op: str, noop: int, empty: bool) -> None:
    """An empty list of axes stands for all of them, or for none with noop_with_empty_axes."""
    axes = ", a" if empty else ""
    text = (
        "float[2,3] x | float[2,3] c = {1, -2, 3, 4, -5, 6}, int64[0] a = {} | "
        f"k = {op}<noop_with_empty_axes={noop}>(c{axes}); y = Mul(x, k)"
    )
    model = load(net(text, opset=18))
    canonical = canonicalize(model)
    assert [n.op_type for n in canonical.proto.graph.node] == ["Mul"]
    feeds = example_feeds(model)
    expected = Session(model, optimize=False).run(feeds)["y"]
    np.testing.assert_array_equal(Session(canonical, optimize=False).run(feeds)["y"], expected)


@pytest.mark.parametrize(
    ("op", "given", "result"),
    [("Scaler", "int64", 1), ("Normalizer", "double", 1), ("Imputer", "float", 1)],
)
def test_preprocessing_of_scikit_learn_keeps_the_shape(op: str, given: str, result: int) -> None:
    text = (
        f"{given}[n,4] x | float[4,8] w, float[8,3] v | s = ai.onnx.ml.{op}(x); "
        "a = MatMul(s, w); r = Relu(a); y = MatMul(r, v)"
    )
    model = load(net(text))
    shapes = infer(canonicalize(model))
    assert (shapes.shape("s"), shapes.dtype("s")) == (("n", 4), result)
    assert [g.size for g in analyze(model).groups] == [8]


@pytest.mark.parametrize("count", ["k = Size(a)", "s = Shape(a); k = ReduceProd<keepdims=0>(s)"])
def test_number_of_elements_is_followed(count: str) -> None:
    text = (
        "float[n,3,t] x | int64[1] z = {0}, int64[1] six = {6} | a = Relu(x); "
        f"{count}; k1 = Unsqueeze(k, z); q = Div(k1, six); half = Concat<axis=0>(six, q); "
        "y = Reshape(a, half) | float[6,m] y"
    )
    shapes = infer(canonicalize(load(net(text))))
    assert shapes.values["k"].item() == "3\u00b7n\u00b7t"
    assert shapes.shape("y") == (6, "?(3*n*t/6)")


@pytest.mark.parametrize("fmod", [0, 1])
def test_folded_remainder(fmod: int) -> None:
    """The sign is that of the divisor, with fmod that of the dividend."""
    text = (
        "int64[4] x | int64[4] a = {7, -7, 7, -7}, int64[4] b = {3, 3, -3, -3} | "
        f"k = Mod<fmod={fmod}>(a, b); y = Mul(x, k) | int64[4] y"
    )
    model = load(net(text))
    feeds = {"x": np.arange(1, 5)}
    expected = Session(model, optimize=False).run(feeds)["y"]
    canonical = Session(canonicalize(model), optimize=False)
    np.testing.assert_array_equal(canonical.run(feeds)["y"], expected)


def test_shapes_of_the_last_pass_are_those_of_the_canonical_graph() -> None:
    handed_over = 0
    for name, case in ALL.items():
        canonical, shapes = canonicalize_with_shapes(load(net(case.text, opset=case.opset)))
        if shapes is None:
            continue
        handed_over += 1
        fresh = infer(canonical, shapes_by_rule(canonical))
        # weights that a pass made unused may remain in `shapes`
        assert {n: shapes.types[n] for n in fresh.types} == dict(fresh.types), name
        assert {n for n in shapes.types if n not in fresh.types}.isdisjoint(
            tensor for node in canonical.proto.graph.node for tensor in (*node.input, *node.output)
        )
        for tensor, value in fresh.values.items():
            np.testing.assert_array_equal(shapes.values[tensor], value)
            assert shapes.values[tensor].dtype == value.dtype
        assert (shapes.assumed, shapes.equal) == (fresh.assumed, fresh.equal), name
    assert handed_over > len(ALL) / 2


def test_analysis_infers_a_graph_once_that_no_pass_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inferred = []

    def count(*arguments: Any) -> Shapes:
        inferred.append(arguments)
        return infer(*arguments)

    monkeypatch.setattr(onnxprune.analysis.walk, "infer", count)
    monkeypatch.setattr(onnxprune.ir.passes.canonicalize, "infer", count)
    analyze(load(networks.resnet18()))
    assert len(inferred) == 1
