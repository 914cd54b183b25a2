"""Access to attributes, bodies and names of nodes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx
from onnx import GraphProto, NodeProto, helper

STANDARD_DOMAINS = ("", "ai.onnx")
_GRAPH, _GRAPHS = onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS
_MAX_DEPTH = 32  # of nested graphs; deeper ones do not occur and would exhaust the stack


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """Return an attribute's value as a Python object, strings decoded; `default` if absent."""
    for a in node.attribute:
        if a.name == name:
            value = helper.get_attribute_value(a)
            return value.decode(errors="replace") if isinstance(value, bytes) else value
    return default


def set_attribute(node: NodeProto, name: str, value: Any) -> None:
    """Replace or add an attribute."""
    # removed first: an attribute may change its type with its value
    for i, a in enumerate(node.attribute):
        if a.name == name:
            del node.attribute[i]
            break
    node.attribute.append(helper.make_attribute(name, value))


def subgraphs(node: NodeProto) -> list[GraphProto]:
    """Return the bodies of an If, Loop, Scan or custom control-flow node."""
    graphs: list[GraphProto] = []
    for a in node.attribute:
        kind = a.type
        if kind == _GRAPH:
            graphs.append(a.g)
        elif kind == _GRAPHS:
            graphs.extend(a.graphs)
    return graphs


def nested(graph: GraphProto, depth: int = 0) -> Iterator[GraphProto]:
    """Yield the graph and every graph nested in it, outermost first.

    Raises
    ------
    RecursionError
        Graphs are nested more than 32 deep.
    """
    if depth > _MAX_DEPTH:
        raise RecursionError(f"graphs are nested more than {_MAX_DEPTH} deep")
    yield graph
    for node in graph.node:
        for body in subgraphs(node):
            yield from nested(body, depth + 1)


def captured(node: NodeProto) -> set[str]:
    """Return the names of outer tensors that the bodies of a node read."""
    names: set[str] = set()
    for body in subgraphs(node):
        # what the body defines itself, as far as its nodes were visited
        own = {i.name for i in (*body.input, *body.initializer)}
        for inner in body.node:
            # what inner bodies capture may be defined here, and is no outer tensor then
            names |= {n for n in (*inner.input, *captured(inner)) if n and n not in own}
            own |= set(inner.output)
        names |= {o.name for o in body.output if o.name not in own}
    return names


def label(node: NodeProto) -> str:
    """Return the name of a node for messages: its own, or that of its first output."""
    return node.name or next((o for o in node.output if o), node.op_type)


def normalizes_by_batch(node: NodeProto) -> bool:
    """Return whether a node is a BatchNormalization that uses the statistics of its input."""
    return (
        node.op_type == "BatchNormalization"
        and node.domain in STANDARD_DOMAINS
        and bool(attribute(node, "training_mode", 0))
    )
