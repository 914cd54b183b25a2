"""Roles of layers, recognized by the graph."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest
from onnx import numpy_helper

from onnxprune.analysis.walk import analyze
from onnxprune.ir.io import Model, load
from onnxprune.report.collect import graph_rows
from onnxprune.report.roles import find_roles

FUSED = """
t = MatMul (x, wide)
a, b, c = Split <axis = -1> (t, parts)
"""
SEPARATE = """
a = MatMul (x, wq)
b = MatMul (x, wk)
c = MatMul (x, wv)
"""
REST = """
d = Transpose <perm = [0, 2, 1]> (b)
s = MatMul (a, d)
s2 = Div (s, two)
p = Softmax <axis = -1> (s2)
o = MatMul (p, c)
y = MatMul (o, wo)
r = Add (x, y)
n = LayerNormalization (r, one)
h = MatMul (n, up)
g = MatMul (n, gate)
gs = Sigmoid (g)
hg = Mul (h, gs)
f = MatMul (hg, down)
z = Add (r, f)
e = MatMul (z, head)
"""
SIZES = {
    "wide": (8, 24),
    "wq": (8, 8),
    "wk": (8, 8),
    "wv": (8, 8),
    "wo": (8, 8),
    "up": (8, 16),
    "gate": (8, 16),
    "down": (16, 8),
    "head": (8, 5),
    "one": (8,),
}


def transformer(attention: str) -> Model:
    """Return a transformer layer with a gated MLP, whose layers are named by their outputs."""
    text = '<ir_version: 8, opset_import: ["": 17]> m (float[n, 4, 8] x) => (float[n, 4, 5] e) {'
    proto = onnx.parser.parse_model(text + attention + REST + "}")
    used = {name for node in proto.graph.node for name in node.input}
    rng = np.random.default_rng(0)
    weights = {n: rng.normal(size=s).astype(np.float32) for n, s in SIZES.items() if n in used}
    weights["two"] = np.float32([2.0])
    if "parts" in used:
        weights["parts"] = np.int64([8, 8, 8])
    for name, value in weights.items():
        proto.graph.initializer.append(numpy_helper.from_array(value, name))
    return load(proto.SerializeToString())


MLP = {"y": "projection", "h": "MLP in", "g": "MLP in", "f": "MLP out", "e": "head"}


@pytest.mark.parametrize(
    ("attention", "roles"),
    [(FUSED, {"t": "q, k, v"}), (SEPARATE, {"a": "q", "b": "k", "c": "v"})],
    ids=["fused", "separate"],
)
def test_roles_of_a_transformer(attention: str, roles: dict[str, str]) -> None:
    analysis = analyze(transformer(attention))
    assert find_roles(analysis) == {**roles, **MLP}
    assert {box.node: box.role for box in graph_rows(analysis) if box.role} == {**roles, **MLP}


def test_layers_in_a_row_without_attention_are_no_mlp() -> None:
    text = '<ir_version: 8, opset_import: ["": 17]> m (float[n, 8] x) => (float[n, 8] c) {'
    proto = onnx.parser.parse_model(text + "a = MatMul (x, w) b = Relu (a) c = MatMul (b, w2) }")
    for name in ("w", "w2"):
        value = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(value, name))
    assert find_roles(analyze(load(proto.SerializeToString()))) == {"c": "head"}
