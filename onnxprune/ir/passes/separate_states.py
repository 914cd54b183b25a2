"""Separation of initial states that recurrent layers share.

Exporters fill one tensor with a constant and use it, or slices of it, as the initial states of all
layers. Its axis of units would couple layers that have nothing else in common, so every further
layer gets nodes of its own that compute its states.
"""

from __future__ import annotations

from collections.abc import Mapping

from onnx import GraphProto, NodeProto

from onnxprune.ir.edit import copy_message, free_name, replace_nodes
from onnxprune.ir.model import EditableModel
from onnxprune.ir.nodes import STANDARD_DOMAINS

_STATES = {"LSTM": (5, 6), "GRU": (5,), "RNN": (5,)}  # slots of initial states
# nodes with one source of data, between the filled tensor and the layer
_PASSING = frozenset(
    "Cast Expand Gather Identity Reshape Slice Squeeze Transpose Unsqueeze".split()
)
_FILLING = "ConstantOfShape"


def separate_states(model: EditableModel) -> bool:
    """Give each recurrent layer of the main graph initial states of its own.

    Returns
    -------
    Whether any layer shared filled states with another one.
    """
    graph = model.proto.graph
    if sum(node.op_type in _STATES for node in graph.node) < 2:
        return False
    producers = {o: node for node in graph.node for o in node.output}
    owner: dict[str, int] = {}  # filled tensor -> the layer that keeps it
    copies: dict[str, list[NodeProto]] = {}  # output of a node -> its copies
    taken = set(model.activation_names()) | set(model.weights)
    for number, layer in enumerate(graph.node):
        if layer.domain not in STANDARD_DOMAINS:
            continue
        for slot in _STATES.get(layer.op_type, ()):
            name = layer.input[slot] if slot < len(layer.input) else ""
            chain = _trace(producers, name)
            if chain and owner.setdefault(chain[-1].output[0], number) != number:
                layer.input[slot] = _copy_chain(chain, copies, taken)
    if copies:
        _insert(graph, copies)
    return bool(copies)


def _trace(producers: Mapping[str, NodeProto], name: str) -> list[NodeProto]:
    """Return the nodes from a state back to the node that fills it; none if it is not filled."""
    chain: list[NodeProto] = []
    while name in producers:
        node = producers[name]
        chain.append(node)
        if node.domain not in STANDARD_DOMAINS:
            return []
        if node.op_type == _FILLING:
            return chain
        if node.op_type not in _PASSING:
            return []
        name = node.input[0]
    return []


def _copy_chain(chain: list[NodeProto], copies: dict[str, list[NodeProto]], taken: set[str]) -> str:
    """Copy nodes, from the last one back to the first; return the new name of the last output."""
    name = ""
    for node in reversed(chain):
        copy = copy_message(node)
        if name:
            copy.input[0] = name
        name = free_name(node.output[0], taken)
        taken.add(name)
        copy.output[0] = copy.name = name
        copies.setdefault(node.output[0], []).append(copy)
    return name


def _insert(graph: GraphProto, copies: Mapping[str, list[NodeProto]]) -> None:
    """Insert the copies of nodes directly after them."""
    nodes: list[NodeProto] = []
    for node in graph.node:
        nodes.append(node)
        nodes += copies.get(node.output[0] if node.output else "", [])
    replace_nodes(graph, nodes)
