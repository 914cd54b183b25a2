"""Constants as initializers of the main graph."""

from __future__ import annotations

from math import prod

import numpy as np
from onnx import NodeProto, SparseTensorProto, TensorProto, helper, numpy_helper

from onnxprune.ir.edit import add_weight, replace_nodes
from onnxprune.ir.model import EditableModel
from onnxprune.ir.nodes import STANDARD_DOMAINS, nested
from onnxprune.ir.weights import SparseWeight, Weight, from_array, from_proto

# In sum; sparse initializers beyond it stay sparse, and the channels of their consumers unpruned.
DENSE_BYTES = 1 << 28
_DTYPES = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}


def lift_constants(model: EditableModel) -> None:
    """Turn Constant nodes, body initializers and sparse initializers into plain initializers."""
    dense = _Dense()
    for graph in nested(model.proto.graph):
        kept = []
        for node in graph.node:
            value = _constant_value(node, dense)
            if value is None:
                kept.append(node)
            else:
                add_weight(model, node.output[0], value)
        if len(kept) != len(graph.node):
            replace_nodes(graph, kept)
        if graph is not model.proto.graph:
            for tensor in graph.initializer:
                add_weight(model, tensor.name, from_proto(tensor))
            del graph.initializer[:]
        # in reverse, because entries are deleted by index
        for i, sparse in reversed(list(enumerate(graph.sparse_initializer))):
            value = dense.value(sparse)
            if value is not None:
                add_weight(model, sparse.values.name, value)
                del graph.sparse_initializer[i]


def _constant_value(node: NodeProto, dense: _Dense) -> Weight | None:
    """Return a Constant node's value; None for other nodes, strings, and large sparse values."""
    if node.op_type != "Constant" or node.domain not in STANDARD_DOMAINS:
        return None
    # the value is the only attribute; any other form is left to the checks of onnx
    if len(node.attribute) != 1:
        return None
    name, value = node.attribute[0].name, helper.get_attribute_value(node.attribute[0])
    if name == "sparse_value":
        return dense.value(value)
    if name == "value" and value.data_type != TensorProto.STRING:
        return from_proto(value)
    return from_array(np.array(value, _DTYPES[name])) if name in _DTYPES else None


class _Dense:
    """Budget of the values that sparse tensors are converted to."""

    def __init__(self) -> None:
        self._left = DENSE_BYTES

    def value(self, sparse: SparseTensorProto) -> Weight | None:
        """Return a sparse tensor as a dense one; None if it exceeds what is left of the budget.

        Its indices are positions in the flattened tensor, or one row of coordinates per value.
        """
        values, indices = (
            numpy_helper.to_array(sparse.values),
            numpy_helper.to_array(sparse.indices),
        )
        shape = tuple(sparse.dims)
        size = prod(shape)
        # a few bytes of a file can declare any shape
        if size * values.itemsize > self._left:
            return None
        self._left -= size * values.itemsize
        flat = indices if indices.ndim == 1 else np.ravel_multi_index(tuple(indices.T), shape)
        outside = len(flat) > 0 and not 0 <= flat.min() <= flat.max() < size
        if len(flat) != len(values) or outside:
            raise ValueError(
                f"sparse tensor {sparse.values.name!r} of shape {shape} has {len(values)} values "
                f"at {len(flat)} indices, or an index out of range"
            )
        return SparseWeight(sparse.values.data_type, shape, values, flat)
