"""QONNX: a float graph with Quant nodes, for flows that build integer hardware from them."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, helper

from onnxprune.deploy.bundle import PreparedModel, Samples
from onnxprune.ir.edit import add_initializer, replace_nodes
from onnxprune.ir.io import Model
from onnxprune.ir.node_inference import QONNX_DOMAINS, QONNX_OPS
from onnxprune.ir.runtime import Session

INPUT_BITS = 8
RANGE_SAMPLES = 16
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_POSITIVE = ("Relu", "Clip")


def is_qonnx(model: Model) -> bool:
    """Whether the graph holds Quant nodes."""
    return any(n.domain in QONNX_DOMAINS and n.op_type in QONNX_OPS for n in model.proto.graph.node)


def quantized(
    prepared: PreparedModel, samples: Samples | None, weight_bits: int, activation_bits: int
) -> Model:
    """A copy with Quant nodes on the inputs (8 bits), on the weights of layers, and behind every Relu and Clip; one scale a tensor.

    Scales are those of the largest values: of weights, and of what the samples (seeded uniform numbers without) give. Nothing is trained, so the copy is
    good for cycles and resources, which follow from widths and bits, and its outputs are those of rough rounding.
    """
    copy = prepared.model.edit()
    inputs = prepared.inputs()
    positive = [n.output[0] for n in copy.proto.graph.node if n.op_type in _POSITIVE]
    largest, least = _ranges(prepared, samples, positive)
    nodes: list[NodeProto] = []
    renamed: dict[str, str] = {}

    def quantizer(source: str, target: str, bits: int, top: float, signed: bool) -> NodeProto:
        levels = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
        values = {"scale": max(top, 1e-6) / levels, "zero": 0.0, "bits": float(bits)}
        scalars = [
            add_initializer(copy, f"{target}.{suffix}", np.array(value, np.float32))
            for suffix, value in values.items()
        ]
        return helper.make_node(
            "Quant",
            [source, *scalars],
            [target],
            f"{target}.quantizer",
            domain=QONNX_DOMAINS[0],
            signed=int(signed),
            narrow=int(signed),
            rounding_mode="ROUND",
        )

    for name in inputs:
        renamed[name] = f"{name}.rounded"
        nodes.append(quantizer(name, renamed[name], INPUT_BITS, largest[name], least[name] < 0))
    for node in copy.proto.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
        if node.op_type in _LAYERS and (weight := node.input[1]) in copy.weights:
            renamed[weight] = node.input[1] = f"{weight}.rounded"
            nodes.append(
                quantizer(
                    weight,
                    renamed[weight],
                    weight_bits,
                    float(np.abs(copy.weights[weight].array()).max()),
                    True,
                )
            )
        nodes.append(node)
        if node.output[0] in positive:
            made = node.output[0]
            node.output[0] = f"{made}.exact"
            nodes.append(quantizer(node.output[0], made, activation_bits, largest[made], False))
    replace_nodes(copy.proto.graph, nodes)
    del copy.proto.graph.value_info[:]
    copy.proto.opset_import.append(helper.make_opsetid(QONNX_DOMAINS[0], 1))
    return copy


def _ranges(
    prepared: PreparedModel, samples: Samples | None, tensors: list[str]
) -> tuple[dict[str, float], dict[str, float]]:
    """Largest absolute value and least value of the inputs and of `tensors`."""
    samples = prepared.random_samples(RANGE_SAMPLES) if samples is None else samples
    session = Session(prepared.model, tensors) if tensors else None
    largest: dict[str, float] = {}
    least: dict[str, float] = {}
    for row in prepared.feeds(samples)[:RANGE_SAMPLES]:
        feeds = {n: values.astype(np.float32) for n, values in row.items()}
        for name, values in {
            **feeds,
            **(session.run(feeds) if session is not None else {}),
        }.items():
            largest[name] = max(largest.get(name, 0.0), float(np.abs(values).max()))
            least[name] = min(least.get(name, 0.0), float(values.min()))
    return largest, least
