"""Tensors that a file stores: initializers and constants, of bodies and functions as well.

The costs of an analysis count the canonical form, in which copies are one weight and what no node
uses is absent. The file holds these too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from math import prod
from typing import NamedTuple

from onnx import AttributeProto, NodeProto, TensorProto

from onnxprune.analysis.cost import WEIGHT_TYPES
from onnxprune.ir.model import ModelView
from onnxprune.ir.nodes import nested
from onnxprune.ir.weights import Typed, size_bytes
from onnxprune.types import Cost


class _Declared(NamedTuple):
    """Type and shape of a tensor that is not an initializer of the main graph."""

    dtype: int
    shape: tuple[int, ...]


def stored_tensors(model: ModelView) -> Iterator[tuple[str, Typed]]:
    """Yield name, and type and shape, of each stored tensor; values are not read."""
    yield from model.weights.items()
    main = model.proto.graph
    for graph in nested(main):
        if graph is not main:
            yield from ((tensor.name, _declare(tensor)) for tensor in graph.initializer)
        # of a sparse tensor, the values that it stores
        sparse = graph.sparse_initializer
        yield from ((tensor.values.name, _declare(tensor.values)) for tensor in sparse)
        yield from _find_constants(graph.node)
    for function in model.proto.functions:
        yield from _find_constants(function.node)


def count_params(tensor: Typed) -> int:
    """Return the number of parameters, as costs count them: not of scalars, nor of indices."""
    return prod(tensor.shape) if tensor.dtype in WEIGHT_TYPES and tensor.shape else 0


def count_stored(model: ModelView, cost: Cost) -> Cost:
    """Return costs with the parameters and bytes that the file of a model stores."""
    tensors = [tensor for _, tensor in stored_tensors(model)]
    params, size = sum(map(count_params, tensors)), sum(map(size_bytes, tensors))
    return replace(cost, params=params, size_bytes=size)


def _declare(tensor: TensorProto) -> _Declared:
    """Return type and shape of a message."""
    return _Declared(tensor.data_type, tuple(tensor.dims))


def _find_constants(nodes: Iterable[NodeProto]) -> Iterator[tuple[str, _Declared]]:
    """Yield the values of Constant nodes."""
    for node in nodes:
        if node.op_type != "Constant":
            continue
        for value in node.attribute:
            if value.type == AttributeProto.TENSOR:
                yield node.output[0], _declare(value.t)
            elif value.type == AttributeProto.SPARSE_TENSOR:
                yield node.output[0], _declare(value.sparse_tensor.values)
            elif value.type == AttributeProto.FLOATS:
                yield node.output[0], _Declared(TensorProto.FLOAT, (len(value.floats),))
            elif value.type == AttributeProto.INTS:
                yield node.output[0], _Declared(TensorProto.INT64, (len(value.ints),))
