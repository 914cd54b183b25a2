"""Edits of an editable model: adding and removing weights, replacing nodes."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, TypeVar

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto

from onnxprune.ir.model import EditableModel
from onnxprune.ir.weights import Weight, from_array

M = TypeVar("M", bound=Any)  # a protobuf message


def add_initializer(model: EditableModel, name: str, values: np.ndarray) -> str:
    """Add an initializer and return its name: `name`, with a number appended if that is taken."""
    # both kinds of tensors share one namespace
    taken = model.activation_names()
    if name in model.weights or name in taken:
        name = free_name(name, model.weights.keys() | taken)
    add_weight(model, name, from_array(values))
    return name


def add_weight(model: EditableModel, name: str, value: Weight) -> None:
    """Add an initializer under a name that is not taken."""
    model.weights[name] = value
    model.proto.graph.initializer.append(
        TensorProto(name=name, data_type=value.dtype, dims=value.shape)
    )


def remove_initializers(model: EditableModel, names: Collection[str]) -> None:
    """Remove initializers, also where they are listed as graph inputs."""
    if not names:
        return
    graph = model.proto.graph
    # before IR version 4 every initializer is listed as an input as well
    for items in (graph.initializer, graph.input):
        kept = [i for i in items if i.name not in names]
        del items[:]
        items.extend(kept)
    for name in names:
        model.weights.pop(name, None)


def replace_nodes(graph: GraphProto, nodes: Iterable[NodeProto]) -> None:
    """Replace all nodes of a graph; its own may be among the new ones."""
    # a copy, because deleting the old nodes would empty a generator over them
    kept = list(nodes)
    del graph.node[:]
    graph.node.extend(kept)


def copy_message(message: M) -> M:
    """Return a copy of a node or another message, which no list holds."""
    out = type(message)()
    out.CopyFrom(message)
    return out


def free_name(name: str, taken: Collection[str]) -> str:
    """Return the name with the lowest number appended that makes it unique."""
    count = 1
    while f"{name}_{count}" in taken:
        count += 1
    return f"{name}_{count}"
