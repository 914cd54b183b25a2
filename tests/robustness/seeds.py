"""Valid models to mutate: test graphs, and a few models with bodies and local functions."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, numpy_helper, parser

from onnxprune import demo

TESTS = Path(__file__).resolve().parents[1]

_FUNCTIONS = """
<ir_version: 10, opset_import: ["": 17, "local": 1]>
g (float[2,4,6,6] x) => (float[2,5,6,6] y) <float[8,4,3,3] w1, float[5,8,1,1] w2> {
    a = local.block(x, w1)
    b = local.gate(a)
    y = Conv(b, w2)
}
<domain: "local", opset_import: ["": 17, "local": 1]> gate (p) => (q) {
    s = Sigmoid(p)
    q = Mul(p, s)
}
<domain: "local", opset_import: ["": 17, "local": 1]> block (i, w) => (o) {
    c = Conv <pads = [1, 1, 1, 1]> (i, w)
    o = local.gate(c)
}
"""

_LOOP = """
<ir_version: 10, opset_import: ["": 17]>
g (float[2,4] x) => (float[2,5] y)
<float[4,8] w1, float[8,8] w2, float[8,5] w3, int64 m = {3}, bool go = {1}> {
    a = MatMul(x, w1)
    b = Loop (m, go, a) <body = body (int64 i, bool c, float[2,8] s) => (bool d, float[2,8] t) {
        d = Identity(c)
        u = MatMul(s, w2)
        t = Relu(u)
    }>
    y = MatMul(b, w3)
}
"""

_IF = """
<ir_version: 10, opset_import: ["": 17]>
g (float[2,4] x) => (float[2,5] y) <float[4,8] w1, float[8,5] w2, float[1,8] e> {
    a = MatMul(x, w1)
    s = ReduceSum <keepdims = 0> (a)
    c = Greater(s, s)
    b = If (c) <
        then_branch = t () => (float[2,8] p) { p = Relu(a) },
        else_branch = f () => (float[2,8] q) { q = Add(a, e) }
    >
    y = MatMul(b, w2)
}
"""

_SCAN = """
<ir_version: 10, opset_import: ["": 17]>
g (float[3,2,4] x) => (float[3,2,8] y) <float[2,8] h, float[4,8] w1> {
    last, y = Scan <
        num_scan_inputs = 1,
        body = body (float[2,8] s, float[2,4] t) => (float[2,8] n, float[2,8] o) {
            m = MatMul(t, w1)
            n = Add(s, m)
            o = Relu(n)
        }
    > (h, x)
}
"""

# name -> name of a test graph, or the text of a model
SPECIAL = {
    "demo": "",
    "functions": _FUNCTIONS,
    "loop": _LOOP,
    "scan": _SCAN,
    "external data": "Gemm",
    "if": _IF,
    "transformer": "attention",
    "fused attention": "attention_fused",
    "dynamic heads": "heads_of_a_dynamic_sequence",
    "windows": "window_partition",
    "shuffle": "channel_shuffle",
    "q/dq": "DequantizeLinear_weights",
    "integer convolution": "QLinearConv",
    "lstm": "LSTM_bidirectional",
    "quantized lstm": "LSTM_quantized",
    "detector": "detector_head",
    "u-net": "unet",
    "computed shape": "zeros_like_a_computed_shape",
    "embedding": "tied_embedding",
    "view": "view_with_height_and_width",
}


@cache
def graphs() -> dict[str, Any]:
    """Return the test graphs of single operators and of patterns, by name."""
    for folder in (TESTS / "analysis", TESTS):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    from dynamic import DYNAMIC
    from graphs import CASES
    from patterns import PATTERNS

    return {**CASES, **PATTERNS, **DYNAMIC}


@cache
def seed_bytes(name: str) -> bytes:
    """Return a valid model, serialized."""
    if name == "demo":
        return demo.files().model.read_bytes()
    text = SPECIAL.get(name, name)
    known = graphs()
    from graph_text import net, random_weight

    if text in known:
        case = known[text]
        model = net(case.text, opset=case.opset, ir_version=case.ir_version)
        return bytes(model.SerializeToString())
    model = parser.parse_model(text)
    rng = np.random.default_rng(0)
    model.graph.initializer.extend(random_weight(rng, info) for info in model.graph.value_info)
    del model.graph.value_info[:]
    return bytes(model.SerializeToString())


def seed_model(name: str) -> tuple[ModelProto, dict[str, bytes]]:
    """Return a valid model and the content of its external files."""
    model = ModelProto.FromString(seed_bytes(name))
    external: dict[str, bytes] = {}
    if name == "external data":
        for tensor in model.graph.initializer:
            _move_out(tensor, external, "w")
    return model, external


def _move_out(tensor: TensorProto, external: dict[str, bytes], place: str) -> None:
    """Move the values of a tensor to an external file."""
    values = numpy_helper.to_array(tensor).tobytes()
    entries = {"location": place, "offset": len(external.get(place, b"")), "length": len(values)}
    external[place] = external.get(place, b"") + values
    moved = TensorProto(
        name=tensor.name,
        dims=tensor.dims,
        data_type=tensor.data_type,
        data_location=TensorProto.EXTERNAL,
    )
    for key, value in entries.items():
        moved.external_data.add(key=key, value=str(value))
    tensor.CopyFrom(moved)
