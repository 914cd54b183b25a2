"""Removal of identities, dead nodes and unused initializers."""

from __future__ import annotations

from onnx import NodeProto

from onnxprune.ir.edit import remove_initializers, replace_nodes
from onnxprune.ir.model import EditableModel
from onnxprune.ir.nodes import STANDARD_DOMAINS, captured, nested, subgraphs
from onnxprune.ir.passes.names import rename


def remove_identities(model: EditableModel) -> None:
    """Remove Identity nodes that produce no graph output, and let consumers read their input."""
    for graph in nested(model.proto.graph):
        outputs = {o.name for o in graph.output}
        sources: dict[str, str] = {}  # output of a removed Identity -> its input
        kept = []
        for node in graph.node:
            # first, so that a chain of identities leads to its origin
            inputs = [sources.get(n, n) for n in node.input]
            if inputs != list(node.input):
                node.input[:] = inputs
            removable = _is_identity(node) and node.output[0] not in outputs
            if removable and not any(o for o in node.output[1:]):
                sources[node.output[0]] = node.input[0]
                continue
            kept.append(node)
            # bodies read outer tensors by name
            if sources:
                for body in subgraphs(node):
                    rename(body, sources)
        if sources:
            replace_nodes(graph, kept)


def _is_identity(node: NodeProto) -> bool:
    return node.domain in STANDARD_DOMAINS and node.op_type == "Identity"


def remove_dead(model: EditableModel) -> bool:
    """Remove nodes and initializers that contribute to no output.

    Returns
    -------
    bool
        Whether a node was removed.
    """
    changed = False
    for graph in nested(model.proto.graph):
        live = {o.name for o in graph.output}
        kept = []
        for node in reversed(graph.node):
            # a node without outputs is kept for its side effect
            if live.isdisjoint(node.output) and any(node.output):
                continue
            kept.append(node)
            live |= set(node.input) | captured(node)
        if len(kept) != len(graph.node):
            replace_nodes(graph, kept[::-1])
            changed = True
    used: set[str] = set()
    for graph in nested(model.proto.graph):
        used.update(o.name for o in graph.output)
        for node in graph.node:
            used.update(node.input)
    remove_initializers(model, {i.name for i in model.proto.graph.initializer} - used)
    return changed
