"""Literals that spell sizes, written anew from the lengths of the axes after a cut. Nothing is patched by subtraction."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from onnx import GraphProto, NodeProto, helper

from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.state import Average, Restore, Select, SizeLiteral
from onnxprune.ir.edit import add_initializer
from onnxprune.ir.model import EditableModel
from onnxprune.ir.nodes import attribute, nested, set_attribute

_SHARE = "_share_of_mean"  # ends the name of the node that _average adds


@dataclass
class Editor:
    """A model under the knife. nodes: of the copy, in the analysis's numbering; owners: the graph each lies in."""

    analysis: Analysis
    model: EditableModel
    removed: np.ndarray
    nodes: list[NodeProto] = field(default_factory=list)
    owners: list[GraphProto] = field(default_factory=list)

    def __post_init__(self) -> None:
        for graph in nested(self.model.proto.graph):
            self.nodes += list(graph.node)
            self.owners += [graph] * len(graph.node)

    def length(self, ids: np.ndarray) -> int:
        """Positions of an axis that stay."""
        return int(self.analysis.keep(ids, self.removed).sum())

    def insert(self, index: int, node: NodeProto, *, after: bool = False) -> None:
        """Put a node before or behind that of a number."""
        graph = self.owners[index]
        at = next(
            i for i, n in enumerate(graph.node) if list(n.output) == list(self.nodes[index].output)
        )
        graph.node.insert(at + after, node)


def refit(editor: Editor) -> None:
    """Rewrite every literal that the cut made wrong."""
    record = editor.analysis.record
    for item in record.literals:
        _refit(editor, item)
    for select in record.selects:
        _select(editor, select)
    for restore in record.restores:
        _restore(editor, restore)
    for average in record.averages:
        _average(editor, average)


def _refit(editor: Editor, item: SizeLiteral) -> None:
    new = {i: editor.length(a) for i, a in enumerate(item.entries) if a is not None}
    if all(editor.length(a) == len(a) for a in (*item.entries, *item.watch) if a is not None):
        return
    node = editor.nodes[item.node]
    kind, place = item.where
    if kind == "attribute":
        if item.scalar:
            set_attribute(node, str(place), new[0])
        else:
            old = attribute(node, str(place)) or [0] * len(item.entries)
            set_attribute(node, str(place), [new.get(i, v) for i, v in enumerate(old)])
        return
    slot = int(place)
    while len(node.input) <= slot:
        node.input.append("")
    old = editor.analysis.record.shapes.values.get(node.input[slot]) if node.input[slot] else None
    if old is None:  # Split without sizes: all entries are given
        values = np.array([new.get(i, 0) for i in range(len(item.entries))], np.int64)
        _drop(node, "num_outputs")
    else:
        values = np.array(
            [new.get(i, 0 if v is None or isinstance(v, str) else v) for i, v in enumerate(old)],
            np.int64 if old.dtype == object else old.dtype,
        )
    name = add_initializer(editor.model, f"{node.output[0]}_sizes", values)
    if old is not None and old.dtype == object:
        mask = add_initializer(
            editor.model, f"{node.output[0]}_known", np.array([i in new for i in range(len(old))])
        )
        merged = f"{name}_merged"
        editor.insert(
            item.node,
            helper.make_node("Where", [mask, name, node.input[slot]], [merged], name=merged),
        )
        name = merged
    node.input[slot] = name


def _drop(node: NodeProto, name: str) -> None:
    for i, a in enumerate(node.attribute):
        if a.name == name:
            del node.attribute[i]
            return


def _select(editor: Editor, item: Select) -> None:
    """The kept picks, counted among the kept positions."""
    kept = editor.analysis.keep(item.source, editor.removed)
    if kept.all():
        return
    rank = np.cumsum(kept) - 1
    index = rank[item.index[kept[item.index]]]
    node = editor.nodes[item.node]
    values = add_initializer(editor.model, f"{node.output[0]}_index", index.astype(np.int64))
    if node.op_type == "Gather":
        node.input[1] = values
        return
    gather = helper.make_node(
        "Gather",
        [node.input[0], values],
        list(node.output),
        name=node.name,
        axis=item.axis,
        doc_string=node.doc_string,
    )
    node.CopyFrom(gather)


def _restore(editor: Editor, item: Restore) -> None:
    """A Shape node goes on telling the old sizes: what is computed from them was meant for the whole model."""
    cut = np.array([a is not None and editor.length(a) != len(a) for a in item.axes])
    if not cut.any():
        return
    node = editor.nodes[item.node]
    told, inner = node.output[0], f"{node.output[0]}_cut"
    old = add_initializer(
        editor.model,
        f"{told}_whole",
        np.array([len(a) if a is not None else 0 for a in item.axes], np.int64),
    )
    mask = add_initializer(editor.model, f"{told}_changed", cut)
    editor.insert(
        item.node,
        helper.make_node("Where", [mask, old, inner], [told], name=f"{told}_whole"),
        after=True,
    )
    node.output[0] = inner


def _average(editor: Editor, item: Average) -> None:
    """A mean goes on dividing by the lengths from before the cut."""
    share = math.prod(editor.length(a) / len(a) for a in item.axes)
    if share == 1:
        return
    node = editor.nodes[item.node]
    told = node.output[0]
    dtype = helper.tensor_dtype_to_np_dtype(editor.analysis.shapes.dtype(told))
    earlier = next(
        (
            n
            for n in editor.owners[item.node].node
            if n.op_type == "Mul" and n.input[0] == told and n.name.endswith(_SHARE)
        ),
        None,
    )
    if earlier is not None:  # the model was cut before
        share *= float(editor.model.weights[earlier.input[1]].array())
        earlier.input[1] = add_initializer(editor.model, earlier.input[1], np.array(share, dtype))
        return
    inner = f"{told}_kept"
    factor = add_initializer(editor.model, f"{told}{_SHARE}", np.array(share, dtype))
    editor.insert(
        item.node,
        helper.make_node("Mul", [inner, factor], [told], name=f"{told}{_SHARE}"),
        after=True,
    )
    node.output[0] = inner
