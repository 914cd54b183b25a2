"""Copies of half-precision models that compute in float32.

Sums of float16 values round so coarsely that a wrong weight hides behind the tolerance they need.
With the same values in float32, the tolerance is that of float32.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import AttributeProto, GraphProto, TensorProto, numpy_helper

from onnxprune.ir.model import EditableModel, Model
from onnxprune.ir.nodes import nested
from onnxprune.ir.weights import from_array

HALF = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_TYPE_ATTRIBUTES = """
    to dtype output_dtype precision softmax_precision stash_type output_datatype
""".split()


def has_half(model: Model) -> bool:
    """Return whether a weight, an input or an output of the model is of half precision."""
    graph = model.proto.graph
    # activations too, since a graph may have no weight of half precision
    infos = (*graph.input, *graph.output, *graph.value_info)
    return any(w.dtype in HALF for w in model.weights.values()) or any(
        i.type.tensor_type.elem_type in HALF for i in infos
    )


def widen(model: Model) -> Model:
    """Return a copy of a model whose half-precision tensors are float32."""
    copy = model.edit()
    for name, weight in model.weights.items():
        if weight.dtype in HALF:
            copy.weights[name] = from_array(weight.array().astype(np.float32))
    for graph in nested(copy.proto.graph):
        _widen_graph(copy, graph)
    return copy.freeze()


def widen_feeds(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return feeds with half-precision values as float32."""
    return {n: v.astype(np.float32) if _is_half(v) else v for n, v in feeds.items()}


def _is_half(value: np.ndarray) -> bool:
    """Return whether an array is float16 or bfloat16."""
    # numpy has no bfloat16 of its own; onnx brings one by that name
    return value.dtype == np.float16 or value.dtype.name == "bfloat16"


def _widen_graph(model: EditableModel, graph: GraphProto) -> None:
    """Change the declared types of one graph, and the types that its nodes name."""
    for info in (*graph.input, *graph.output, *graph.value_info):
        if info.type.tensor_type.elem_type in HALF:
            info.type.tensor_type.elem_type = TensorProto.FLOAT
    for tensor in graph.initializer:
        # all initializers of the canonical form are in `weights`, bodies' included
        if tensor.name in model.weights:
            tensor.data_type = model.weights[tensor.name].dtype
    for node in graph.node:
        for attribute in node.attribute:
            # Cast, DequantizeLinear, random and other operators name a type by its number
            if attribute.name in _TYPE_ATTRIBUTES and attribute.i in HALF:
                attribute.i = TensorProto.FLOAT
            if attribute.type == AttributeProto.TENSOR and attribute.t.data_type in HALF:
                value = numpy_helper.to_array(attribute.t).astype(np.float32)
                attribute.t.CopyFrom(numpy_helper.from_array(value, attribute.t.name))
