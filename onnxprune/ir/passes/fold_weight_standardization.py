"""Weights that a graph normalizes each time it runs (weight standardization): their values, computed once."""

from __future__ import annotations

from onnx import NodeProto

from onnxprune.ir.edit import add_weight
from onnxprune.ir.extract import extract
from onnxprune.ir.io import Model
from onnxprune.ir.nodes import STANDARD_DOMAINS, attribute, captured
from onnxprune.ir.runtime import Session
from onnxprune.ir.shapes import Shapes
from onnxprune.ir.weights import from_array


def standardize(model: Model, shapes: Shapes) -> None:
    """Replace normalizations of constants by statistics of their own. `model` is changed.

    Where an input channel of such a weight goes, its statistics would be those of the rest: only the values can be cut exactly.
    """
    graph = model.proto.graph
    if not any(map(trains, graph.node)):
        return
    known = set(model.weights) - {i.name for i in graph.input}
    makers: dict[str, NodeProto] = {}
    targets = []
    for node in graph.node:
        if node.input and known.issuperset(filter(None, node.input)) and not captured(node):
            known.update(node.output)
            makers.update(dict.fromkeys(node.output, node))
            if trains(node):
                targets.append(node)
    read = {name for node in graph.node for name in (*node.input, *captured(node))} | {
        o.name for o in graph.output
    }
    targets = [n for n in targets if read.isdisjoint(n.output[1:])]
    if not targets:
        return
    needed, stack = set(), [n.output[0] for n in targets]
    while stack:
        name = stack.pop()
        if name in makers and name not in needed:
            needed.add(name)
            stack += makers[name].input
    part = [n for n in graph.node if needed.intersection(n.output)]
    values = Session(
        extract(model, shapes, part, (), [n.output[0] for n in targets]), optimize=False
    ).run({})
    weights = dict(model.weights)
    for node in targets:
        add_weight(graph, weights, node.output[0], from_array(values[node.output[0]]))
        graph.node.remove(node)
    object.__setattr__(model, "weights", weights)


def trains(node: NodeProto) -> bool:
    """Whether a node normalizes by the statistics of what it is given."""
    return (
        node.op_type == "BatchNormalization"
        and node.domain in STANDARD_DOMAINS
        and bool(attribute(node, "training_mode", 0))
    )
