"""Activations are recognized in every form and replaced; nothing else changes."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, parser

from onnxprune.errors import UsageError
from onnxprune.ir.io import Model, load
from onnxprune.ir.runtime import Session
from onnxprune.tune.rewrite import SLOPE, find_activations, rewrite_activations

X = np.linspace(-9, 9, 201, dtype=np.float32).reshape(1, 201)
EXPECTED = {
    "relu": np.maximum(X, 0),
    "relu6": np.clip(X, 0, 6),
    "hardswish": X * np.clip(X / 6 + 0.5, 0, 1),
    "leakyrelu": np.where(X < 0, X * np.float32(SLOPE), X),
}
PATTERNS = {
    "silu": ["s = Sigmoid(x) y = Mul(x, s)", "s = Sigmoid(x) y = Mul(s, x)"],
    "hardswish": [
        "y = HardSwish(x)",
        "s = HardSigmoid<alpha = 0.16666667, beta = 0.5>(x) y = Mul(x, s)",
        "a = Add(x, three) c = Clip(a, zero, six) m = Mul(x, c) y = Div(m, six)",
        "a = Add(three, x) c = Clip(a, zero, six) d = Mul(c, sixth) y = Mul(d, x)",
    ],
    "gelu": [
        "d = Div(x, root) e = Erf(d) a = Add(e, one) m = Mul(x, a) y = Mul(m, half)",
        "d = Mul(x, iroot) e = Erf(d) a = Add(one, e) h = Mul(half, x) y = Mul(h, a)",
        "d = Div(x, root) e = Erf(d) a = Add(e, one) m = Mul(a, half) y = Mul(x, m)",
        "s = Mul(x, x) c = Mul(x, s) k = Mul(small, c) i = Add(x, k) o = Mul(i, rootpi) "
        "t = Tanh(o) a = Add(t, one) h = Mul(x, half) y = Mul(h, a)",
        "c = Pow(x, three) k = Mul(c, small) i = Add(k, x) o = Mul(rootpi, i) "
        "t = Tanh(o) a = Add(one, t) h = Mul(x, a) y = Mul(h, half)",
        "k = Mul(x, quick) s = Sigmoid(k) y = Mul(x, s)",
    ],
    "leakyrelu": ["y = LeakyRelu<alpha = 0.1>(x)"],
    "elu": ["y = Elu(x)"],
    "mish": ["s = Softplus(x) t = Tanh(s) y = Mul(x, t)"],
}
CONSTANTS = ", ".join(
    f"float {name} = {{{value}}}"
    for name, value in {
        "zero": "0.0",
        "six": "6.0",
        "three": "3.0",
        "sixth": "0.16666667",
        "one": "1.0",
        "half": "0.5",
        "root": "1.4142135",
        "iroot": "0.70710677",
        "rootpi": "0.7978846",
        "small": "0.044715",
        "quick": "1.702",
    }.items()
)


def graph(body: str, opset: int = 17) -> Model:
    header = f'<ir_version: 8, opset_import: ["" : {opset}]>'
    signature = f"g (float[N, 201] x) => (float[N, 201] y) <{CONSTANTS}>"
    return load(parser.parse_model(f"{header} {signature} {{ {body} }}"))


CASES = [
    (kind, body, target)
    for kind, bodies in PATTERNS.items()
    for body in bodies
    for target in EXPECTED
    if target != kind
]


@pytest.mark.parametrize("kind, body, target", CASES)
def test_patterns_are_replaced_by_the_target(kind: str, body: str, target: str) -> None:
    found = rewrite_activations(graph(body), target, (kind,))
    assert found.replaced == {kind: 1}
    np.testing.assert_allclose(Session(found.model).run({"x": X})["y"], EXPECTED[target], atol=1e-5)
    assert len(found.model.proto.graph.node) == 1


@pytest.mark.parametrize("opset", [9, 13])
@pytest.mark.parametrize("target", ["relu6", "hardswish"])
def test_old_opsets_get_supported_operators(opset: int, target: str) -> None:
    found = rewrite_activations(graph("y = LeakyRelu(x)", opset), target)
    np.testing.assert_allclose(Session(found.model).run({"x": X})["y"], EXPECTED[target], atol=1e-5)


@pytest.mark.parametrize(
    "body",
    [
        "s = Sigmoid(x) m = Mul(x, s) y = Add(m, s)",  # the gate has another consumer
        "h = Mul(x, half) s = Sigmoid(x) y = Mul(h, s)",  # another x
        "a = Add(x, one) c = Clip(a, zero, six) m = Mul(x, c) y = Div(m, six)",
        "d = Div(x, six) e = Erf(d) a = Add(e, one) m = Mul(x, a) y = Mul(m, half)",
        "s = HardSigmoid(x) y = Mul(x, s)",  # slope 0.2 is not a HardSwish
        "k = Mul(x, half) s = Sigmoid(k) y = Mul(x, s)",
        "c = Pow(x, six) k = Mul(c, small) i = Add(k, x) o = Mul(rootpi, i) "
        "t = Tanh(o) a = Add(one, t) h = Mul(x, a) y = Mul(h, half)",
        "s = Softplus(x) t = Tanh(s) y = Mul(half, t)",
    ],
)
def test_similar_graphs_are_kept(body: str) -> None:
    assert not find_activations(graph(body))


def test_counts_and_errors_name_the_kinds() -> None:
    body = "a = LeakyRelu(x) s = Sigmoid(a) b = Mul(a, s) y = Elu(b)"
    found = rewrite_activations(graph(body), "relu")
    assert found.replaced == {"leakyrelu": 1, "silu": 1} and found.left == {"elu": 1}
    with pytest.raises(
        UsageError, match="no mish to replace by relu; the model has 1 leakyrelu, 1 silu, 1 elu"
    ):
        rewrite_activations(graph(body), "relu", ("mish",))
    with pytest.raises(UsageError, match="did you mean 'leakyrelu'"):
        rewrite_activations(graph(body), "leakyrel")


def test_half_precision_gets_half_limits() -> None:
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT16, ["N", 201]) for n in "xy"]
    node = helper.make_node("LeakyRelu", ["x"], ["y"], "act")
    model = load(
        helper.make_model(
            helper.make_graph([node], "h", infos[:1], infos[1:]),
            opset_imports=[helper.make_opsetid("", 17)],
            ir_version=8,
        )
    )
    found = rewrite_activations(model, "relu6")
    assert found.model.proto.graph.node[0].name == "act"
    np.testing.assert_allclose(
        Session(found.model).run({"x": X.astype(np.float16)})["y"],
        EXPECTED["relu6"].astype(np.float16),
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("opset", [11, 17])
def test_exported_activations_are_recognized(opset: int) -> None:
    torch = pytest.importorskip("torch")
    nn = torch.nn
    modules = {
        "leakyrelu": nn.LeakyReLU(0.1),
        "silu": nn.SiLU(),
        "hardswish": nn.Hardswish(),
        "mish": nn.Mish(),
        "gelu": nn.Sequential(nn.GELU(), nn.GELU(approximate="tanh")),
    }
    for kind, module in modules.items():
        file = io.BytesIO()
        torch.onnx.export(
            module.eval(), (torch.zeros(1, 3),), file, opset_version=opset, dynamo=False
        )
        found = find_activations(load(file.getvalue()))
        assert [f.kind for f in found] == [kind] * (2 if kind == "gelu" else 1)


@pytest.mark.zoo
def test_a_detector_is_rewritten_for_relu6(zoo: Path) -> None:
    model = load(zoo / "coco_nanodet_m.onnx")
    found = rewrite_activations(model, "relu6")
    before, after = (Counter(n.op_type for n in m.proto.graph.node) for m in (model, found.model))
    assert (
        found.replaced == {"leakyrelu": before["LeakyRelu"]}
        and after["Clip"] == before["LeakyRelu"]
        and not after["LeakyRelu"]
    )
    feed = {
        "input.1": np.random.default_rng(0).standard_normal((1, 3, 320, 320)).astype(np.float32)
    }
    assert all(np.isfinite(v).all() for v in Session(found.model).run(feed).values())
