"""Exact sums of dequantized values, so that quantized graphs can be compared bit by bit.

A quantized Conv sums products of small integers times two scales. In float32 the rounding of that
sum depends on its order; if it is on the border between two steps of the next QuantizeLinear, the
cut and the masked graph differ by a step. With the scales applied after the sum, the terms are
integers; below 2^24, float32 holds every partial sum, and any order gives the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper

from onnxprune.ir.edit import add_initializer, copy_message, replace_nodes
from onnxprune.ir.io import Model
from onnxprune.ir.linear import LINEAR_OPS, WeightLayout
from onnxprune.ir.model import EditableModel
from onnxprune.ir.nodes import STANDARD_DOMAINS, attribute, nested
from onnxprune.ir.weights import Weight

_QUANTIZED_DOMAINS = (*STANDARD_DOMAINS, "com.microsoft")
_SMALL = (TensorProto.INT8, TensorProto.UINT8)  # products of wider types exceed 2^24
_COMMUTES = """
    Reshape Transpose Squeeze Unsqueeze Flatten Slice Gather Expand Identity Relu MaxPool
"""
_COMMUTING = frozenset(_COMMUTES.split())  # with one positive scale


@dataclass(frozen=True)
class _Integers:
    """A tensor without its scale.

    Attributes
    ----------
    name
        Tensor that holds the integers, as floats.
    scale
        Tensor that holds the scale.
    shape
        Shape of a constant; None for an activation.
    axis
        Axis that has one scale per position; None for a single scale.
    """

    name: str
    scale: str
    shape: tuple[int, ...] | None = None
    axis: int | None = None


def is_quantized(model: Model) -> bool:
    """Return whether the model has a DequantizeLinear."""
    return any(n.op_type == "DequantizeLinear" for g in nested(model.proto.graph) for n in g.node)


def integer_sums(model: Model) -> Model:
    """Return a copy whose linear layers on dequantized operands sum integers.

    The copy equals the model up to float rounding; layers in other forms are kept.
    """
    copy = model.edit()
    for graph in nested(copy.proto.graph):
        _Rewrite(copy, graph).run()
    return copy.freeze()


@dataclass
class _Rewrite:
    """The rewriting of one graph.

    Attributes
    ----------
    model
        Copy that the graph is part of.
    graph
        Graph to rewrite.
    nodes
        New nodes so far.
    known
        Tensors without scale by tensor; None for one that has none.
    """

    model: EditableModel
    graph: GraphProto
    nodes: list[NodeProto] = field(default_factory=list)
    known: dict[str, _Integers | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Index the producers."""
        self.producers: Mapping[str, NodeProto] = {o: n for n in self.graph.node for o in n.output}

    def run(self) -> None:
        """Rewrite the nodes of the graph."""
        for node in self.graph.node:
            linear = node.op_type in LINEAR_OPS and node.domain in STANDARD_DOMAINS
            if not linear or not self.rewrite(node):
                self.nodes.append(node)
        replace_nodes(self.graph, self.nodes)

    def rewrite(self, node: NodeProto) -> bool:
        """Apply the scales of a linear layer after its sum; return whether it allows it."""
        # other factors would make terms that are no integers
        if attribute(node, "alpha", 1.0) != 1 or attribute(node, "beta", 1.0) != 1:
            return False
        data, weight = self.integers(node.input[0]), self.integers(node.input[1])
        # a scale per input channel cannot leave the sum over these channels
        if data is None or weight is None or data.axis is not None:
            return False
        layout, out = WeightLayout.of(node), node.output[0]
        # the shape of the weight gives the number of spatial axes that scales broadcast along
        if layout.convolution and weight.shape is None:
            return False
        if weight.axis is not None and not _is_along_output(layout, weight):
            return False
        # shape of a vector along the channels of the output
        spatial = len(weight.shape) - 2 if layout.convolution and weight.shape else 0
        channels = [-1] + [1] * spatial
        inner = copy_message(node)
        inner.input[:], inner.output[:] = [data.name, weight.name], [f"{out}_integers"]
        self.nodes.append(inner)
        scale = weight.scale
        if weight.axis is not None:
            scale = self.reshaped(scale, channels, out)
        product = self.add("Mul", [data.scale, scale], f"{out}_scales")
        bias = node.input[2] if len(node.input) > 2 else ""
        scaled = self.add("Mul", [inner.output[0], product], f"{out}_scaled" if bias else out)
        if bias:
            if layout.convolution:
                bias = self.reshaped(bias, channels, f"{out}_bias")
            self.add("Add", [scaled, bias], out)
        return True

    def integers(self, name: str) -> _Integers | None:
        """Return a tensor without its scale; None if it has none."""
        if name not in self.known:
            node = self.producers.get(name)
            self.known[name] = None if node is None else self.unscaled(node)
        return self.known[name]

    def unscaled(self, node: NodeProto) -> _Integers | None:
        """Repeat a node without scale: a DequantizeLinear, or one that moves or masks values."""
        if node.op_type == "DequantizeLinear" and node.domain in _QUANTIZED_DOMAINS:
            return self.dequantized(node)
        if len(node.output) > 1 or node.domain not in STANDARD_DOMAINS:
            return None
        if node.op_type not in _COMMUTING and not self.masks(node):
            return None
        source = self.integers(node.input[0])
        # an operator in between may have moved the axis that the scales belong to
        if source is None or source.axis is not None:
            return None
        return _Integers(self.repeat(node, 0, source.name), source.scale)

    def dequantized(self, node: NodeProto) -> _Integers | None:
        """Repeat a DequantizeLinear with a scale of 1; None for types or scales that do not fit."""
        scale = self.model.weights.get(node.input[1])
        values = self.constant(node.input[0])
        zero = self.model.weights.get(node.input[2]) if len(node.input) > 2 else None
        # both have the type of the integers; computed integers have no other sign of it here
        typed = zero if zero is not None else values
        if scale is None or typed is None or typed.dtype not in _SMALL:
            return None
        # Relu and MaxPool commute with positive scales alone
        if scale.dtype != TensorProto.FLOAT or len(scale.shape) > 1 or (scale.array() <= 0).any():
            return None
        per_channel = scale.shape not in ((), (1,))
        if per_channel and values is None:
            return None
        shape = None if values is None else values.shape
        one = add_initializer(self.model, f"{node.output[0]}_one", np.ones(scale.shape, np.float32))
        axis = attribute(node, "axis", 1) % len(shape) if per_channel and shape else None
        return _Integers(self.repeat(node, 1, one), node.input[1], shape, axis)

    def constant(self, name: str) -> Weight | None:
        """Return the initializer that is dequantized, or quantized and dequantized."""
        producer = self.producers.get(name)
        if producer is not None and producer.op_type == "QuantizeLinear":
            name = producer.input[0]
        return self.model.weights.get(name)

    def masks(self, node: NodeProto) -> bool:
        """Return whether a node multiplies by zeros and ones."""
        # zeros and ones, as of the masked model, keep integers small
        factor = self.model.weights.get(node.input[1]) if node.op_type == "Mul" else None
        return factor is not None and bool(np.isin(factor.array(), (0, 1)).all())

    def repeat(self, node: NodeProto, slot: int, name: str) -> str:
        """Add a copy of a node with another operand; return its output."""
        copy = copy_message(node)
        copy.input[slot], copy.output[0], copy.name = name, f"{node.output[0]}_integers", ""
        self.nodes.append(copy)
        return copy.output[0]

    def reshaped(self, name: str, shape: list[int], out: str) -> str:
        """Add a Reshape unless the shape is that of a vector; return its output."""
        if len(shape) == 1:
            return name
        sizes = add_initializer(self.model, f"{out}_shape", np.array(shape, np.int64))
        return self.add("Reshape", [name, sizes], f"{out}_shaped")

    def add(self, op: str, inputs: list[str], output: str) -> str:
        """Add a node; return its output."""
        self.nodes.append(helper.make_node(op, inputs, [output]))
        return output


def _is_along_output(layout: WeightLayout, weight: _Integers) -> bool:
    """Return whether the scale of a weight has one value per output channel."""
    # its outputs per group are axis 1, so that with groups each scale serves several channels
    if layout.op == "ConvTranspose":
        return weight.axis == 1 and layout.groups == 1
    return weight.axis == (0 if layout.outputs_first else len(weight.shape or ()) - 1)
