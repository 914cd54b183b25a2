"""Weights of Constant nodes, local functions and fused operators, where they can be changed."""

from __future__ import annotations

from math import prod

from onnx import NodeProto, TensorProto

from onnxprune.ir.model import Model
from onnxprune.ir.nodes import attribute
from onnxprune.ir.passes.canonicalize import canonicalize
from onnxprune.ir.passes.expand_fused import has_fused

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


def lift_weights(model: Model) -> Model:
    """Return the model if every weight is an initializer of a known node, else canonicalized."""
    hidden = any(_holds_weights(n) for n in model.proto.graph.node)
    hidden = hidden or bool(model.proto.functions) or has_fused(model)
    # only then, since the canonical form also changes what has nothing to do with weights
    return canonicalize(model) if hidden else model


def _holds_weights(node: NodeProto) -> bool:
    """Return whether a node is a constant of several floats; single ones belong to formulas."""
    value = attribute(node, "value") if node.op_type == "Constant" else None
    return value is not None and value.data_type in _FLOATS and prod(value.dims) > 1
