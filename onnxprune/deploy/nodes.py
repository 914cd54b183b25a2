"""Read-only view of a graph node for the checks of hand-off targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import NodeProto

from onnxprune.ir.io import Model
from onnxprune.ir.linear import LINEAR_OPS, WeightLayout
from onnxprune.ir.nodes import STANDARD_DOMAINS, attribute, label

_RUNTIME_DOMAINS = ("com.microsoft", "ai.onnx.ml")


@dataclass(frozen=True)
class GraphNode:
    """A node with the shapes and weights around it.

    Attributes
    ----------
    proto
        The node.
    shapes
        Shapes of all tensors of the graph with static axes.
    model
        The model that the node belongs to.
    constants
        Names of the initializers and of tensors that are a quantized initializer.
    """

    proto: NodeProto
    shapes: Mapping[str, tuple[int, ...]] = field(repr=False)
    model: Model = field(repr=False)
    constants: frozenset[str] = field(repr=False)

    @property
    def op(self) -> str:
        """Operator, with its domain if that is not ONNX's."""
        # tables of targets list QONNX's operators with their domain
        if self.proto.domain in STANDARD_DOMAINS:
            return self.proto.op_type
        return f"{self.proto.domain}.{self.proto.op_type}"

    @property
    def name(self) -> str:
        """The node's name, else its first output."""
        return label(self.proto)

    def get(self, name: str, default: Any = None) -> Any:
        """Return an attribute, `default` if it is absent."""
        return attribute(self.proto, name, default)

    def shape(self, index: int) -> tuple[int, ...] | None:
        """Return the shape of an input; None if absent or unknown."""
        return self.shapes.get(self.proto.input[index]) if index < len(self.proto.input) else None

    @property
    def out_shape(self) -> tuple[int, ...] | None:
        """Shape of the first output; None if unknown."""
        return self.shapes.get(self.proto.output[0])

    def constant(self, index: int) -> bool:
        """Return True if an input is an initializer, a quantized initializer, or absent."""
        # an absent operand, such as a bias, needs no support for computed ones
        if index >= len(self.proto.input) or not self.proto.input[index]:
            return True
        return self.proto.input[index] in self.constants

    def value(self, index: int) -> np.ndarray | None:
        """Return the values of an input that is an initializer, None for any other."""
        # an operand may be left out at the end or by an empty name
        name = self.proto.input[index] if index < len(self.proto.input) else ""
        return self.model.weights[name].array() if name in self.model.weights else None

    @property
    def kernel(self) -> tuple[int, ...]:
        """Kernel size of a convolution or pooling; () for other operators."""
        given = self.get("kernel_shape")
        if given:
            return tuple(given)
        # an exporter may leave kernel_shape out for convolutions
        weight = self.shape(1) if self.op in ("Conv", "ConvTranspose") else None
        return tuple(weight[2:]) if weight else ()

    @property
    def channels(self) -> tuple[int, int] | None:
        """(in, out) of a convolution or fully connected layer with constant weights, else None."""
        weight = self.shape(1)
        if weight is None or not self.constant(1) or len(weight) < 2 or self.op not in LINEAR_OPS:
            return None
        # the axes of a weight depend on operator, groups and transB
        layout = WeightLayout.of(self.proto)
        return layout.inputs(weight), layout.outputs(weight)

    @property
    def depthwise(self) -> bool:
        """True for a convolution with as many groups as input channels."""
        group = self.get("group", 1)
        if self.op != "Conv" or group == 1 or self.channels is None:
            return False
        return self.channels[0] == group


def find_foreign_ops(model: Model) -> tuple[str, ...]:
    """Return the operators that onnxruntime has no kernels for, such as QONNX's Quant."""
    known = (*STANDARD_DOMAINS, *_RUNTIME_DOMAINS)
    foreign = (n.op_type for n in model.proto.graph.node if n.domain not in known)
    return tuple(dict.fromkeys(foreign))
