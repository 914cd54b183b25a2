"""Weights of Constant nodes and local functions as initializers, where they can be changed."""

from __future__ import annotations

from math import prod

from onnx import NodeProto, TensorProto

from onnxprune.ir.model import Model
from onnxprune.ir.nodes import attribute
from onnxprune.ir.passes.canonicalize import canonicalize

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


def lift_weights(model: Model) -> Model:
    """Return the model unchanged if every weight is an initializer, else its canonical form."""
    hidden = any(_holds_weights(n) for n in model.proto.graph.node)
    return canonicalize(model) if model.proto.functions or hidden else model


def _holds_weights(node: NodeProto) -> bool:
    """Return whether a node is a constant of several floats; single ones belong to formulas."""
    value = attribute(node, "value") if node.op_type == "Constant" else None
    return value is not None and value.data_type in _FLOATS and prod(value.dims) > 1
