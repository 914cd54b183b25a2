"""QONNX: float graphs with Quant nodes, for flows that build integer hardware from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from onnx import NodeProto, helper

from onnxprune.deploy.bundle import PreparedModel, Samples
from onnxprune.ir.edit import add_initializer, replace_nodes
from onnxprune.ir.io import Model
from onnxprune.ir.linear import LINEAR_OPS
from onnxprune.ir.model import EditableModel
from onnxprune.ir.node_inference import QONNX_DOMAINS, QONNX_OPS
from onnxprune.ir.runtime import Session

INPUT_BITS = 8
RANGE_BATCHES = 16  # batches that ranges are measured on
_NON_NEGATIVE = ("Relu", "Clip")


class _Range(NamedTuple):
    """Largest absolute value and least value of a tensor."""

    largest: float = 0.0
    least: float = 0.0


def is_qonnx(model: Model) -> bool:
    """Return True if the graph has Quant nodes."""
    return any(n.domain in QONNX_DOMAINS and n.op_type in QONNX_OPS for n in model.proto.graph.node)


def add_quantizers(
    prepared: PreparedModel, samples: Samples | None, weight_bits: int, activation_bits: int
) -> Model:
    """Return a copy with Quant nodes: inputs, weights of layers, outputs of Relu and Clip.

    Each tensor has one scale, that of its largest value: of the weights, or of what the samples
    (None = seeded uniform numbers) give. Nothing is trained, so that the copy is good for cycles
    and resources, which follow from widths and bits, while its outputs are inaccurate.

    Parameters
    ----------
    weight_bits, activation_bits
        Bits of weights and of outputs of Relu and Clip; inputs have 8.
    """
    copy = prepared.model.edit()
    activations = [n.output[0] for n in copy.proto.graph.node if n.op_type in _NON_NEGATIVE]
    ranges = _measure_ranges(prepared, samples, activations)
    nodes: list[NodeProto] = []
    renamed: dict[str, str] = {}
    for name in prepared.inputs():
        renamed[name] = f"{name}.rounded"
        top, signed = ranges[name].largest, ranges[name].least < 0
        nodes.append(_make_quantizer(copy, name, renamed[name], INPUT_BITS, top, signed))
    for node in copy.proto.graph.node:
        for index, name in enumerate(node.input):
            # consumers read the quantized tensor
            node.input[index] = renamed.get(name, name)
        # a weight that an earlier node shares was renamed above and is no weight any more
        if node.op_type in LINEAR_OPS and node.input[1] in copy.weights:
            weight = node.input[1]
            renamed[weight] = node.input[1] = f"{weight}.rounded"
            # of the values: weights need no samples
            top = float(np.abs(copy.weights[weight].array()).max())
            nodes.append(_make_quantizer(copy, weight, renamed[weight], weight_bits, top, True))
        nodes.append(node)
        if node.output[0] in activations:
            output = node.output[0]
            # the quantized tensor gets the old name, so that consumers and graph
            # outputs need no change
            node.output[0] = f"{output}.exact"
            top = ranges[output].largest
            nodes.append(_make_quantizer(copy, node.output[0], output, activation_bits, top, False))
    replace_nodes(copy.proto.graph, nodes)
    # tensors were renamed, and their declared types with them
    del copy.proto.graph.value_info[:]
    copy.proto.opset_import.append(helper.make_opsetid(QONNX_DOMAINS[0], 1))
    return copy.freeze()


def _make_quantizer(
    model: EditableModel, source: str, target: str, bits: int, top: float, signed: bool
) -> NodeProto:
    """Return a Quant node for values up to `top`; its scalars are added to the model in place."""
    # symmetric for signed values, without the lowest one
    levels = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    # a tensor of zeros still needs a scale above 0
    values = {"scale": max(top, 1e-6) / levels, "zero": 0.0, "bits": float(bits)}
    scalars = [
        add_initializer(model, f"{target}.{suffix}", np.array(value, np.float32))
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


def _measure_ranges(
    prepared: PreparedModel, samples: Samples | None, tensors: Sequence[str]
) -> dict[str, _Range]:
    """Return the ranges of the inputs and of `tensors`."""
    samples = prepared.random_samples(RANGE_BATCHES) if samples is None else samples
    # inputs alone need no inference
    session = Session(prepared.model, tensors) if tensors else None
    ranges: dict[str, _Range] = {}
    for row in prepared.feeds(samples)[:RANGE_BATCHES]:
        arrays = {n: values.astype(np.float32) for n, values in row.items()}
        if session is not None:
            arrays |= session.run(arrays)
        for name, values in arrays.items():
            largest, least = ranges.get(name, _Range())
            largest = max(largest, float(np.abs(values).max()))
            ranges[name] = _Range(largest, min(least, float(values.min())))
    return ranges
