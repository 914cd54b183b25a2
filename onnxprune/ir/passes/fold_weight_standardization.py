"""Folding of weight standardization: weights normalized in every run become constants."""

from __future__ import annotations

from onnx import NodeProto

from onnxprune.ir.edit import add_weight
from onnxprune.ir.extract import extract
from onnxprune.ir.model import EditableModel
from onnxprune.ir.nodes import captured, normalizes_by_batch
from onnxprune.ir.runtime import Session
from onnxprune.ir.shapes import Shapes
from onnxprune.ir.weights import from_array


def fold_weight_standardization(model: EditableModel, shapes: Shapes) -> bool:
    """Replace normalizations of constants by their values; return whether there are any.

    The statistics of such a weight run over its input channels: with fewer of them the kept values
    would change, so only the computed values can be cut exactly.
    """
    graph = model.proto.graph
    if not any(map(normalizes_by_batch, graph.node)):
        return False
    # inputs may override initializers of the same name
    constants = set(model.weights) - {i.name for i in graph.input}
    producers: dict[str, NodeProto] = {}
    targets = []
    # nodes all of whose operands are constant are constant themselves
    for node in graph.node:
        if node.input and constants.issuperset(filter(None, node.input)) and not captured(node):
            constants.update(node.output)
            producers.update(dict.fromkeys(node.output, node))
            if normalizes_by_batch(node):
                targets.append(node)
    used = {o.name for o in graph.output}
    for node in graph.node:
        used |= {*node.input, *captured(node)}
    # the running statistics that such a node also returns must have no consumer
    targets = [n for n in targets if used.isdisjoint(n.output[1:])]
    if not targets:
        return False
    names = [n.output[0] for n in targets]
    needed = _find_ancestors(names, producers)
    part = [n for n in graph.node if needed.intersection(n.output)]
    values = Session(extract(model, shapes, part, (), names), optimize=False).run({})
    for node in targets:
        add_weight(model, node.output[0], from_array(values[node.output[0]]))
        graph.node.remove(node)
    return True


def _find_ancestors(names: list[str], producers: dict[str, NodeProto]) -> set[str]:
    """Return the tensors that nodes compute on the way to `names`, those included."""
    needed: set[str] = set()
    stack = list(names)
    while stack:
        name = stack.pop()
        if name in producers and name not in needed:
            needed.add(name)
            stack += producers[name].input
    return needed
