"""Adding weights to a copy of a model, and replacing its nodes."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto

from onnxprune.ir.io import Model
from onnxprune.ir.nodes import nested
from onnxprune.ir.weights import Weight, from_array


def add_initializer(model: Model, name: str, values: np.ndarray) -> str:
    """Add values under a free name that begins with `name`; the name it got. `model` must be a copy made by edit()."""
    made = _made(model)
    if name in model.weights or name in made:
        name = free_name(name, model.weights.keys() | made)
    add_weight(model.proto.graph, model.weights, name, from_array(values))  # type: ignore[arg-type]
    return name


def add_weight(graph: GraphProto, weights: dict[str, Weight], name: str, value: Weight) -> None:
    """Add a weight to a graph and to the values beside it."""
    weights[name] = value
    graph.initializer.append(TensorProto(name=name, data_type=value.dtype, dims=value.shape))


def replace_nodes(graph: GraphProto, nodes: Iterable[NodeProto]) -> None:
    """Make these the nodes of a graph. Its own may be among them."""
    kept = list(nodes)
    del graph.node[:]
    graph.node.extend(kept)


def copied(node: NodeProto) -> NodeProto:
    """A copy of a node."""
    out = NodeProto()
    out.CopyFrom(node)
    return out


def free_name(name: str, taken: Collection[str]) -> str:
    """The name with the first number behind it that is not taken."""
    count = 1
    while f"{name}_{count}" in taken:
        count += 1
    return f"{name}_{count}"


def _made(model: Model) -> frozenset[str]:
    """Names of inputs and of what nodes made when this was first asked of the copy; looking each time would take the square of its size."""
    known: frozenset[str] | None = getattr(model, "_made_names", None)
    if known is None:
        graphs = list(nested(model.proto.graph))
        known = frozenset(i.name for g in graphs for i in g.input) | {
            o for g in graphs for n in g.node for o in n.output
        }
        object.__setattr__(model, "_made_names", known)
    return known
