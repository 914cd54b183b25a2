"""Small graphs that the engine tests measure."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from onnxprune.ir.io import Model, load


def residual(width: int = 16, size: int = 12, seed: int = 0) -> Model:
    """Return Conv-BN-Relu, a residual block, global average pool, Gemm and Softmax.

    Every node is named after its output.
    """
    generator = np.random.default_rng(seed)
    weights: list[TensorProto] = []

    def weight(name: str, *shape: int, positive: bool = False) -> str:
        values = generator.standard_normal(shape).astype(np.float32) * 0.2
        weights.append(numpy_helper.from_array(np.abs(values) + 0.5 if positive else values, name))
        return name

    def conv(x: str, y: str, inputs: int) -> object:
        return helper.make_node(
            "Conv",
            [x, weight(f"{y}.w", width, inputs, 3, 3), weight(f"{y}.b", width)],
            [y],
            name=f"n_{y}",
            pads=[1, 1, 1, 1],
        )

    norm = [weight(f"bn.{k}", width, positive=k == "var") for k in ("scale", "bias", "mean", "var")]
    nodes = [
        conv("x", "c0", 3),
        helper.make_node("BatchNormalization", ["c0", *norm], ["b0"], name="n_b0"),
        helper.make_node("Relu", ["b0"], ["r0"], name="n_r0"),
        conv("r0", "c1", width),
        helper.make_node("Relu", ["c1"], ["r1"], name="n_r1"),
        conv("r1", "c2", width),
        helper.make_node("Add", ["c2", "r0"], ["a2"], name="n_a2"),
        helper.make_node("Relu", ["a2"], ["r2"], name="n_r2"),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"], name="n_p"),
        helper.make_node("Flatten", ["p"], ["f"], name="n_f"),
        helper.make_node(
            "Gemm",
            ["f", weight("fc.w", 10, width), weight("fc.b", 10)],
            ["g"],
            name="n_g",
            transB=1,
        ),
        helper.make_node("Softmax", ["g"], ["y"], name="n_y", axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "residual",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, size, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 10])],
        weights,
    )
    return load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8))
