"""Sums of dequantized values whose order does not matter, so that the oracle can compare quantized graphs bit by bit.

A quantized Conv sums products of small integers times two scales. In float32 the rounding of that sum depends on its order, and where
it falls on the border between two steps of the next QuantizeLinear, the cut and the masked graph differ by a whole step. With the
scales behind the sum, the terms are integers; below 2^24 float32 holds every partial sum, and any order gives the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper

from onnxprune.ir.edit import add_initializer, copy_node, replace_nodes
from onnxprune.ir.io import Model
from onnxprune.ir.model import EditableModel
from onnxprune.ir.nodes import STANDARD_DOMAINS, attribute, nested
from onnxprune.ir.weights import Weight

_QUANTIZED_DOMAINS = (*STANDARD_DOMAINS, "com.microsoft")
_SUMS = ("Conv", "ConvTranspose", "MatMul", "Gemm")
_SMALL = (TensorProto.INT8, TensorProto.UINT8)  # products of wider types leave float32's integers
_COMMUTE = frozenset(
    [
        "Reshape",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
        "Flatten",
        "Slice",
        "Gather",
        "Expand",
        "Identity",
        "Relu",
        "MaxPool",
    ]
)  # with one positive scale


@dataclass(frozen=True)
class _Integers:
    """A tensor without its scale. scale: its name; shape: of the constant that it is, None for an activation; axis: along which the scale lies, None for one number."""

    name: str
    scale: str
    shape: tuple[int, ...] | None = None
    axis: int | None = None


def is_quantized(model: Model) -> bool:
    """Whether any node makes floats of integers."""
    return any(n.op_type == "DequantizeLinear" for g in nested(model.proto.graph) for n in g.node)


def integer_sums(model: Model) -> Model:
    """A copy whose linear layers on dequantized operands sum integers. Equal up to float rounding; layers of other forms stay as they are."""
    copy = model.edit()
    for graph in nested(copy.proto.graph):
        _Sums(copy, graph).run()
    return copy.freeze()


@dataclass
class _Sums:
    """The rewriting of one graph."""

    model: EditableModel
    graph: GraphProto
    nodes: list[NodeProto] = field(default_factory=list)
    known: dict[str, _Integers | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.makers: Mapping[str, NodeProto] = {o: n for n in self.graph.node for o in n.output}

    def run(self) -> None:
        for node in self.graph.node:
            if (
                node.op_type not in _SUMS
                or node.domain not in STANDARD_DOMAINS
                or not self.rewrite(node)
            ):
                self.nodes.append(node)
        replace_nodes(self.graph, self.nodes)

    def rewrite(self, node: NodeProto) -> bool:
        """Put the scales behind a linear layer; False where its operands or its form do not allow it."""
        if attribute(node, "alpha", 1.0) != 1 or attribute(node, "beta", 1.0) != 1:
            return False
        data, weight = self.integers(node.input[0]), self.integers(node.input[1])
        if data is None or weight is None or data.axis is not None:
            return False
        conv, out = node.op_type.startswith("Conv"), node.output[0]
        if (
            conv
            and weight.shape is None
            or weight.axis is not None
            and not _along_output(node, weight)
        ):
            return False
        behind = [-1] + [1] * (
            len(weight.shape) - 2 if conv and weight.shape else 0
        )  # a vector along the output's channels
        inner = copy_node(node)
        inner.input[:], inner.output[:] = [data.name, weight.name], [f"{out}_integers"]
        self.nodes.append(inner)
        scale = self.shaped(weight.scale, behind, out) if weight.axis is not None else weight.scale
        product = self.add("Mul", [data.scale, scale], f"{out}_scales")
        bias = node.input[2] if len(node.input) > 2 else ""
        scaled = self.add("Mul", [inner.output[0], product], f"{out}_scaled" if bias else out)
        if bias:
            self.add(
                "Add", [scaled, self.shaped(bias, behind, f"{out}_bias") if conv else bias], out
            )
        return True

    def integers(self, name: str) -> _Integers | None:
        """What a tensor is without its scale; None where it has none."""
        if name not in self.known:
            node = self.makers.get(name)
            self.known[name] = None if node is None else self.unscaled(node)
        return self.known[name]

    def unscaled(self, node: NodeProto) -> _Integers | None:
        """A DequantizeLinear with scale 1, or what moves or masks such a tensor, once more."""
        if node.op_type == "DequantizeLinear" and node.domain in _QUANTIZED_DOMAINS:
            return self.dequantized(node)
        if (
            len(node.output) > 1
            or node.domain not in STANDARD_DOMAINS
            or not (node.op_type in _COMMUTE or self.masks(node))
        ):
            return None
        found = self.integers(node.input[0])
        if found is None or found.axis is not None:
            return None
        return _Integers(self.again(node, 0, found.name), found.scale)

    def dequantized(self, node: NodeProto) -> _Integers | None:
        scale = self.model.weights.get(node.input[1])
        values = self.constant(node.input[0])
        zero = self.model.weights.get(node.input[2]) if len(node.input) > 2 else None
        kind = zero.dtype if zero is not None else values.dtype if values is not None else None
        if (
            scale is None
            or kind not in _SMALL
            or scale.dtype != TensorProto.FLOAT
            or len(scale.shape) > 1
            or (scale.array() <= 0).any()
        ):
            return None
        vector = scale.shape not in ((), (1,))
        if vector and values is None:
            return None
        shape = None if values is None else values.shape
        one = add_initializer(self.model, f"{node.output[0]}_one", np.ones(scale.shape, np.float32))
        axis = attribute(node, "axis", 1) % len(shape) if vector and shape else None
        return _Integers(self.again(node, 1, one), node.input[1], shape, axis)

    def constant(self, name: str) -> Weight | None:
        """The initializer that is dequantized, or that is quantized first."""
        maker = self.makers.get(name)
        return self.model.weights.get(
            maker.input[0] if maker is not None and maker.op_type == "QuantizeLinear" else name
        )

    def masks(self, node: NodeProto) -> bool:
        """Whether a node multiplies by zeros and ones."""
        factor = self.model.weights.get(node.input[1]) if node.op_type == "Mul" else None
        return factor is not None and bool(np.isin(factor.array(), (0, 1)).all())

    def again(self, node: NodeProto, slot: int, name: str) -> str:
        """A node once more with another operand; its output."""
        copy = copy_node(node)
        copy.input[slot], copy.output[0], copy.name = name, f"{node.output[0]}_integers", ""
        self.nodes.append(copy)
        return copy.output[0]

    def shaped(self, name: str, shape: list[int], out: str) -> str:
        return (
            name
            if len(shape) == 1
            else self.add(
                "Reshape",
                [name, add_initializer(self.model, f"{out}_shape", np.array(shape, np.int64))],
                f"{out}_shaped",
            )
        )

    def add(self, op: str, inputs: list[str], output: str) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output]))
        return output


def _along_output(node: NodeProto, weight: _Integers) -> bool:
    """Whether the scale of a weight has one number an output channel."""
    if node.op_type == "ConvTranspose":
        return weight.axis == 1 and attribute(node, "group", 1) == 1
    if node.op_type == "Conv" or node.op_type == "Gemm" and attribute(node, "transB", 0):
        return weight.axis == 0
    return weight.axis == len(weight.shape or ()) - 1
