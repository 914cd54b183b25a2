"""Rewrites literals that spell sizes, from the lengths of the axes after a cut.

Literals are computed anew from the kept positions; nothing is patched by subtraction.
"""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from dataclasses import dataclass, field

import numpy as np
from onnx import GraphProto, NodeProto, helper

from onnxprune.analysis.averages import Average, Pin
from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.state import Restore, Select, SizeLiteral, Squeezed
from onnxprune.ir.edit import add_initializer, free_name
from onnxprune.ir.model import EditableModel
from onnxprune.ir.nodes import attribute, nested, set_attribute

_SHARE = "_share_of_mean"  # suffix of the name of the node that _correct_average adds
_SQUEEZE_AXES_ARE_INPUT = 13  # first opset in which Squeeze takes its axes as an input


@dataclass
class Editor:
    """A copy of a model during a cut.

    Attributes
    ----------
    analysis
        Analysis of the original.
    model
        The copy.
    removed
        Causes that are removed, see `Analysis.removed`.
    nodes
        Nodes of the copy, in the order of `Analysis.nodes`.
    owners
        Graph that each node is in.
    positions
        Index of each node in its graph before the cut.
    inserted
        Sorted per graph, by id: index before the cut of the node that follows each new node.
    """

    analysis: Analysis
    model: EditableModel
    removed: np.ndarray
    nodes: list[NodeProto] = field(default_factory=list)
    owners: list[GraphProto] = field(default_factory=list)
    _node_names: set[str] = field(default_factory=set)
    _new_tensors: set[str] = field(default_factory=set)
    positions: list[int] = field(default_factory=list)
    inserted: dict[int, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """List the nodes."""
        for graph in nested(self.model.proto.graph):
            self.nodes += list(graph.node)
            self.owners += [graph] * len(graph.node)
            self.positions += range(len(graph.node))
        self._node_names.update(node.name for node in self.nodes)

    def length(self, ids: np.ndarray) -> int:
        """Return the number of kept positions of an axis."""
        return int(self.analysis.keep(ids, self.removed).sum())

    def name_tensor(self, name: str) -> str:
        """Return a name for a new activation: `name`, with a number appended if that is taken."""
        taken = (self.model.activation_names(), self.model.weights, self._new_tensors)
        if any(name in names for names in taken):
            name = free_name(name, set().union(*taken))
        self._new_tensors.add(name)
        return name

    def insert(self, index: int, node: NodeProto, *, after: bool = False) -> None:
        """Insert a node before or after the node of an index."""
        # onnxruntime rejects graphs with two nodes of one name
        if node.name in self._node_names:
            node.name = free_name(node.name, self._node_names)
        self._node_names.add(node.name)
        graph, position = self.owners[index], self.positions[index]
        # computed, because a search per new node takes quadratic time
        inserted = self.inserted.setdefault(id(graph), [])
        at = position + after + bisect_right(inserted, position)
        graph.node.insert(at, node)
        insort(inserted, position + after)


def rewrite_literals(editor: Editor) -> None:
    """Rewrite every literal that the cut invalidates."""
    record = editor.analysis.record
    for literal in record.literals:
        _rewrite(editor, literal)
        _scale_input(editor, literal)
    for select in record.selects:
        _reindex(editor, select)
    for restore in record.restores:
        _restore_sizes(editor, restore)
    for average in record.averages:
        _correct_average(editor, average)
    for squeezed in record.squeezed:
        _list_dropped_axes(editor, squeezed)
    for pin in record.pins:
        _write_default(editor, pin)


def _rewrite(editor: Editor, literal: SizeLiteral) -> None:
    """Write the new lengths into an attribute or an input."""
    axes = [a for a in (*literal.entries, *literal.watch) if a is not None]
    if all(editor.length(a) == len(a) for a in axes):
        return
    new = {i: editor.length(a) for i, a in enumerate(literal.entries) if a is not None}
    node = editor.nodes[literal.node]
    kind, place = literal.where
    if kind == "input":
        _rewrite_input(editor, literal, int(place), new)
    elif literal.scalar:
        set_attribute(node, str(place), new[0])
    else:
        # an attribute that is absent, as that of a Split, stands for sizes that are all given here
        old = attribute(node, str(place)) or [0] * len(literal.entries)
        set_attribute(node, str(place), [new.get(i, v) for i, v in enumerate(old)])


def _rewrite_input(editor: Editor, literal: SizeLiteral, slot: int, new: dict[int, int]) -> None:
    """Replace an input by an initializer; entries that are computed are merged in by a Where."""
    node = editor.nodes[literal.node]
    while len(node.input) <= slot:
        node.input.append("")
    known = editor.analysis.shapes.values
    old = known.get(node.input[slot]) if node.input[slot] else None
    if old is None:  # Split without sizes: all entries are given
        values = np.array([new.get(i, 0) for i in range(len(literal.entries))], np.int64)
        _drop_attribute(node, "num_outputs")
    else:
        # a number or a matrix in place of a list, which onnxruntime refuses in most operators
        old = np.ravel(old)
        # entries that are unknown or symbols get any number: the Where below takes the computed one
        kept = [0 if v is None or isinstance(v, str) else v for v in old]
        dtype = np.int64 if old.dtype == object else old.dtype
        values = np.array([new.get(i, v) for i, v in enumerate(kept)], dtype)
    name = add_initializer(editor.model, f"{node.output[0]}_sizes", values)
    if old is not None and old.dtype == object:  # some entries are unknown
        rewritten = np.array([i in new for i in range(len(old))])
        mask = add_initializer(editor.model, f"{node.output[0]}_known", rewritten)
        merged = editor.name_tensor(f"{name}_merged")
        where = helper.make_node("Where", [mask, name, node.input[slot]], [merged], name=merged)
        editor.insert(literal.node, where)
        name = merged
    node.input[slot] = name


def _scale_input(editor: Editor, literal: SizeLiteral) -> None:
    """Scale the dynamic entries of an input by the kept shares of their factors."""
    kept, full = _shares(editor, literal.scaled)
    if kept == full:
        return
    node, slot = editor.nodes[literal.node], int(literal.where[1])
    # the graph computes the original lengths, which are multiples of the factors
    scaled = editor.name_tensor(f"{node.output[0]}_scaled")
    scale = _make_scaling(editor, node.input[slot], scaled, kept, full)
    for step in scale:
        editor.insert(literal.node, step)
    node.input[slot] = scale[-1].output[0]


def _shares(
    editor: Editor, scaled: tuple[tuple[np.ndarray, ...], ...]
) -> tuple[list[int], list[int]]:
    """Return the kept and the original number of positions of the factors of each entry."""
    kept = [math.prod(editor.length(ids) for ids in factors) for factors in scaled]
    return kept, [math.prod(len(ids) for ids in factors) for factors in scaled]


def _make_scaling(
    editor: Editor, source: str, result: str, times: list[int], over: list[int]
) -> list[NodeProto]:
    """Return nodes that compute source / over * times, entry by entry; divisions are exact."""
    divisor, factor = (
        add_initializer(editor.model, f"{result}_{stem}", np.array(values, np.int64))
        for stem, values in (("over", over), ("times", times))
    )
    inner = editor.name_tensor(f"{result}_share")
    return [
        helper.make_node("Div", [source, divisor], [inner], name=inner),
        helper.make_node("Mul", [inner, factor], [result], name=result),
    ]


def _drop_attribute(node: NodeProto, name: str) -> None:
    """Remove an attribute if it is present."""
    for i, a in enumerate(node.attribute):
        if a.name == name:
            del node.attribute[i]
            return


def _reindex(editor: Editor, select: Select) -> None:
    """Replace the index of a selection by the kept picks, counted among the kept positions."""
    kept = editor.analysis.keep(select.source, editor.removed)
    if kept.all():
        return
    rank = np.cumsum(kept) - 1
    # a scalar index and one of higher rank have frozen positions, all of which are kept
    picks = select.index[kept[select.index]] if select.index.ndim == 1 else select.index
    index = rank[picks]
    node = editor.nodes[select.node]
    values = add_initializer(editor.model, f"{node.output[0]}_index", index.astype(np.int64))
    if node.op_type == "Gather":
        node.input[1] = values
        return
    # the kept positions of a Slice with a step have no step
    gather = helper.make_node(
        "Gather",
        [node.input[0], values],
        list(node.output),
        name=node.name,
        axis=select.axis,
        doc_string=node.doc_string,
    )
    node.CopyFrom(gather)


def _restore_sizes(editor: Editor, restore: Restore) -> None:
    """Make a Shape node return the sizes from before the cut.

    What the graph computes from them was meant for the original model.
    """
    cut = np.array([a is not None and editor.length(a) != len(a) for a in restore.axes])
    kept, full = _shares(editor, restore.scaled)
    if kept != full:
        node = editor.nodes[restore.node]
        output, inner = node.output[0], editor.name_tensor(f"{node.output[0]}_kept")
        for step in _make_scaling(editor, inner, output, full, kept)[::-1]:
            editor.insert(restore.node, step, after=True)
        node.output[0] = inner
    if not cut.any():
        return
    node = editor.nodes[restore.node]
    output, inner = node.output[0], editor.name_tensor(f"{node.output[0]}_cut")
    sizes = np.array([len(a) if a is not None else 0 for a in restore.axes], np.int64)
    old = add_initializer(editor.model, f"{output}_whole", sizes)
    mask = add_initializer(editor.model, f"{output}_changed", cut)
    where = helper.make_node("Where", [mask, old, inner], [output], name=f"{output}_whole")
    editor.insert(restore.node, where, after=True)
    node.output[0] = inner


def _list_dropped_axes(editor: Editor, squeezed: Squeezed) -> None:
    """List the axes that a Squeeze drops if the cut leaves another axis with a single position."""
    if all(editor.length(a) > 1 for a in squeezed.axes):
        return
    node = editor.nodes[squeezed.node]
    if not squeezed.dropped:  # an empty list would mean the same as none
        node.op_type = "Identity"
        return
    if editor.model.opset < _SQUEEZE_AXES_ARE_INPUT:
        set_attribute(node, "axes", list(squeezed.dropped))
        return
    values = np.array(squeezed.dropped, np.int64)
    node.input[:] = [node.input[0], add_initializer(editor.model, f"{node.output[0]}_axes", values)]


def _write_default(editor: Editor, pin: Pin) -> None:
    """Write the default of an attribute from before the cut."""
    if editor.length(pin.axis) != len(pin.axis):
        set_attribute(editor.nodes[pin.node], pin.name, pin.value)


def _correct_average(editor: Editor, average: Average) -> None:
    """Scale a mean so that it divides by the lengths from before the cut.

    Scale a sum that is divided by these lengths so that the result is a mean over the kept ones.
    """
    share = math.prod(editor.length(a) / len(a) for a in average.axes)
    if average.of_kept:
        share = 1 / share
    if share == 1:
        return
    node = editor.nodes[average.node]
    output = node.output[0]
    dtype = helper.tensor_dtype_to_np_dtype(editor.analysis.shapes.dtype(output))
    earlier = next(
        (
            n
            for n in editor.owners[average.node].node
            if n.op_type == "Mul" and n.input[0] == output and n.name.endswith(_SHARE)
        ),
        None,
    )
    if earlier is not None:  # the model was cut before
        share *= float(editor.model.weights[earlier.input[1]].array())
        earlier.input[1] = add_initializer(editor.model, earlier.input[1], np.array(share, dtype))
        return
    inner = editor.name_tensor(f"{output}_kept")
    factor = add_initializer(editor.model, f"{output}{_SHARE}", np.array(share, dtype))
    scale = helper.make_node("Mul", [inner, factor], [output], name=f"{output}{_SHARE}")
    editor.insert(average.node, scale, after=True)
    node.output[0] = inner
