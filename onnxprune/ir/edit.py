"""Edits of a copy of a model: adding weights, replacing nodes."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto

from onnxprune.ir.io import Model
from onnxprune.ir.nodes import nested
from onnxprune.ir.weights import Weight, from_array


def add_initializer(model: Model, name: str, values: np.ndarray) -> str:
    """Add an initializer to a copy made by edit() and return its name.

    A number is appended to `name` if it is taken.
    """
    taken = _tensor_names(model)
    if name in model.weights or name in taken:
        name = free_name(name, model.weights.keys() | taken)
    add_weight(model.proto.graph, model.weights, name, from_array(values))  # type: ignore[arg-type]  # the copy's own dict
    return name


def add_weight(graph: GraphProto, weights: dict[str, Weight], name: str, value: Weight) -> None:
    """Add a weight to a graph and its value to `weights`."""
    weights[name] = value
    graph.initializer.append(TensorProto(name=name, data_type=value.dtype, dims=value.shape))


def replace_nodes(graph: GraphProto, nodes: Iterable[NodeProto]) -> None:
    """Replace all nodes of a graph; its own may be among the new ones."""
    kept = list(nodes)
    del graph.node[:]
    graph.node.extend(kept)


def copy_node(node: NodeProto) -> NodeProto:
    """Return a copy of a node."""
    out = NodeProto()
    out.CopyFrom(node)
    return out


def free_name(name: str, taken: Collection[str]) -> str:
    """Return the name with the lowest number appended that makes it unique."""
    count = 1
    while f"{name}_{count}" in taken:
        count += 1
    return f"{name}_{count}"


def _tensor_names(model: Model) -> frozenset[str]:
    """Return the names of graph inputs and node outputs as of the first call on this copy.

    Collecting them in each call would take time quadratic in the size of the graph.
    """
    known: frozenset[str] | None = getattr(model, "_tensor_names", None)
    if known is None:
        names: set[str] = set()
        for graph in nested(model.proto.graph):
            names.update(i.name for i in graph.input)
            for node in graph.node:
                names.update(node.output)
        known = frozenset(names)
        object.__setattr__(model, "_tensor_names", known)
    return known
