"""Replacement of sequences whose elements are known by the tensors in them.

SplitToSequence becomes Split, an element that SequenceAt takes becomes the tensor itself, and
ConcatFromSequence becomes Concat, so that channels are followed through them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from onnx import NodeProto, helper

from onnxprune.ir.edit import add_initializer, copy_message, replace_nodes
from onnxprune.ir.model import EditableModel
from onnxprune.ir.nodes import STANDARD_DOMAINS, attribute, nested
from onnxprune.ir.shapes import Shapes

MOST_ELEMENTS = 256  # of a sequence that is taken apart
_AXES_ARE_INPUTS = 13  # opset from which Split sizes and Squeeze axes are inputs
_CREATES = ("SplitToSequence", "SequenceConstruct")
_READS = ("SequenceAt", "ConcatFromSequence")


@dataclass
class _Sequence:
    """A sequence with known elements.

    Attributes
    ----------
    node
        The node that creates it.
    elements
        Names of its tensors.
    sizes
        Lengths of the parts of a SplitToSequence.
    squeeze
        Whether the axis of the split is removed from the parts.
    readers
        The nodes that take elements.
    """

    node: NodeProto
    elements: list[str]
    sizes: list[int] = field(default_factory=list)
    squeeze: bool = False
    readers: list[NodeProto] = field(default_factory=list)


def replace_sequences(model: EditableModel, shapes: Shapes) -> bool:
    """Rewrite the sequences of the main graph; return whether there were any.

    Leaves Identity nodes. A sequence that a body reads, that is an output, or that any other
    operator reads stays.
    """
    graph = model.proto.graph
    sequences = {
        node.output[0]: sequence
        for node in graph.node
        if node.op_type in _CREATES and node.domain in STANDARD_DOMAINS
        for sequence in [_find_elements(node, shapes)]
        if sequence is not None
    }
    if not sequences:
        return False
    _find_readers(model, sequences, shapes)
    if not sequences:
        return False
    by_node = {id(s.node): s for s in sequences.values()}
    nodes: list[NodeProto] = []
    for node in graph.node:
        if id(node) in by_node:
            nodes += _create(model, by_node[id(node)])
        elif node.op_type in _READS and node.input[0] in sequences:
            nodes += _read(model, node, sequences[node.input[0]], shapes)
        else:
            nodes.append(node)
    replace_nodes(graph, [copy_message(n) for n in nodes])
    return True


def _find_readers(model: EditableModel, sequences: dict[str, _Sequence], shapes: Shapes) -> None:
    """List the readers of each sequence; drop sequences that anything else reads."""
    nodes = list(model.proto.graph.node)  # alive, so that their ids stay theirs
    main = {id(n) for n in nodes}
    for graph in nested(model.proto.graph):
        for output in graph.output:
            sequences.pop(output.name, None)
        for node in graph.node:
            for slot, name in enumerate(node.input):
                sequence = sequences.get(name)
                if sequence is None:
                    continue
                # in another slot, it is no sequence whose elements are taken
                if slot or id(node) not in main or not _is_known(node, sequence, shapes):
                    del sequences[name]
                else:
                    sequence.readers.append(node)


def _is_known(node: NodeProto, sequence: _Sequence, shapes: Shapes) -> bool:
    """Return whether a node takes known elements of a sequence."""
    if node.op_type == "ConcatFromSequence":
        return True
    return node.op_type == "SequenceAt" and _find_position(node, sequence, shapes) is not None


def _find_position(node: NodeProto, sequence: _Sequence, shapes: Shapes) -> int | None:
    """Return the element that a SequenceAt takes; None if it is computed or out of range."""
    value, count = shapes.value(node.input[1]), len(sequence.elements)
    if value is None or value.size != 1 or not -count <= value.item() < count:
        return None
    return int(value.item()) % count


def _find_elements(node: NodeProto, shapes: Shapes) -> _Sequence | None:
    """Return the sequence that a node creates; None if the number of its elements is unknown."""
    if node.op_type == "SequenceConstruct":
        return _Sequence(node, list(node.input))
    shape = shapes.shape(node.input[0])
    if shape is None:
        return None
    length = shape[attribute(node, "axis", 0)]
    given = len(node.input) > 1 and node.input[1]
    # without lengths, each part is one position; keepdims has a meaning in this form alone
    value = shapes.value(node.input[1]) if given else np.array(1)
    if value is None or not isinstance(length, int):
        return None
    # a vector lists the lengths, a scalar is the length of all parts, the last may be shorter
    if value.ndim:
        sizes = [int(v) for v in value]
    else:
        step = int(value)
        sizes = [min(step, length - at) for at in range(0, length, step)] if step > 0 else []
    if not 0 < len(sizes) <= MOST_ELEMENTS or sum(sizes) != length:
        return None
    squeeze = not given and not attribute(node, "keepdims", 1)
    names = [f"{node.output[0]}_element_{i}" for i in range(len(sizes))]
    return _Sequence(node, names, sizes, squeeze)


def _create(model: EditableModel, sequence: _Sequence) -> list[NodeProto]:
    """Return the nodes that compute the elements."""
    node = sequence.node
    # nothing to compute: the elements are tensors of the graph
    if node.op_type == "SequenceConstruct":
        return []
    axis, name = attribute(node, "axis", 0), node.name or node.output[0]
    parts = [f"{e}_part" for e in sequence.elements] if sequence.squeeze else sequence.elements
    nodes = [_add_list(model, "Split", node.input[0], parts, "split", sequence.sizes, name)]
    nodes[0].attribute.append(helper.make_attribute("axis", axis))
    if sequence.squeeze:
        for part, element in zip(parts, sequence.elements, strict=True):
            nodes.append(_add_list(model, "Squeeze", part, [element], "axes", [axis], element))
    return nodes


def _read(
    model: EditableModel, node: NodeProto, sequence: _Sequence, shapes: Shapes
) -> list[NodeProto]:
    """Return the nodes that replace a reader."""
    out, name = node.output[0], node.name or node.output[0]
    if node.op_type == "SequenceAt":
        # never None: `_is_known` has found the element of every node that gets here
        element = sequence.elements[_find_position(node, sequence, shapes) or 0]
        return [helper.make_node("Identity", [element], [out], name)]
    axis, elements, nodes = attribute(node, "axis", 0), list(sequence.elements), []
    # the elements are stacked: each gets the new axis before they are joined
    if attribute(node, "new_axis", 0):
        for i, element in enumerate(sequence.elements):
            elements[i] = f"{out}_row_{i}"
            nodes.append(
                _add_list(model, "Unsqueeze", element, [elements[i]], "axes", [axis], elements[i])
            )
    return [*nodes, helper.make_node("Concat", elements, [out], name, axis=axis)]


def _add_list(
    model: EditableModel,
    op: str,
    source: str,
    outputs: Sequence[str],
    key: str,
    values: Sequence[int],
    name: str,
) -> NodeProto:
    """Return a node with a list that is an attribute in older opsets, an input in newer ones."""
    if model.opset < _AXES_ARE_INPUTS:
        node = helper.make_node(op, [source], list(outputs), name)
        node.attribute.append(helper.make_attribute(key, list(values)))
        return node
    sizes = add_initializer(model, f"{outputs[0]}_{key}", np.array(values, np.int64))
    return helper.make_node(op, [source, sizes], list(outputs), name)
