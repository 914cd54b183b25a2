"""Small readings of a node that every layer needs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx
from onnx import GraphProto, NodeProto, helper

STANDARD_DOMAINS = ("", "ai.onnx")
_MAX_DEPTH = 32  # of nested graphs; deeper ones are not met and would exhaust the stack


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """An attribute's value in Python form, strings decoded; `default` where it is absent."""
    for a in node.attribute:
        if a.name == name:
            value = helper.get_attribute_value(a)
            return value.decode(errors="replace") if isinstance(value, bytes) else value
    return default


def set_attribute(node: NodeProto, name: str, value: Any) -> None:
    """Replace or add an attribute."""
    for i, a in enumerate(node.attribute):
        if a.name == name:
            del node.attribute[i]
            break
    node.attribute.append(helper.make_attribute(name, value))


def subgraphs(node: NodeProto) -> list[GraphProto]:
    """Bodies of If, Loop, Scan and the like."""
    found = []
    for a in node.attribute:
        if a.type == onnx.AttributeProto.GRAPH:
            found.append(a.g)
        elif a.type == onnx.AttributeProto.GRAPHS:
            found.extend(a.graphs)
    return found


def nested(graph: GraphProto, depth: int = 0) -> Iterator[GraphProto]:
    """The graph and every graph inside of it, outermost first."""
    if depth > _MAX_DEPTH:
        raise RecursionError(f"graphs are nested more than {_MAX_DEPTH} deep")
    yield graph
    for node in graph.node:
        for body in subgraphs(node):
            yield from nested(body, depth + 1)


def captured(node: NodeProto) -> set[str]:
    """Names that the bodies of a node read from outside."""
    names: set[str] = set()
    for body in subgraphs(node):
        own = {i.name for i in body.input} | {i.name for i in body.initializer}
        for inner in body.node:
            names |= {n for n in inner.input if n and n not in own} | {
                n for n in captured(inner) if n not in own
            }
            own |= set(inner.output)
        names |= {o.name for o in body.output if o.name not in own}
    return names


def label(node: NodeProto) -> str:
    """A name to speak of a node by: its own, or that of its first output."""
    return node.name or next((o for o in node.output if o), node.op_type)
