"""Constants in the place of branches that go whole. An initializer takes over the name of the activation that it stands for."""

from __future__ import annotations

import numpy as np

from onnxprune.analysis.blocks import collapse
from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.linear import Linear, bias_slot
from onnxprune.ir.edit import add_weight, replace_nodes
from onnxprune.ir.extract import extract
from onnxprune.ir.io import Model
from onnxprune.ir.nodes import attribute
from onnxprune.ir.runtime import Session
from onnxprune.ir.weights import from_array
from onnxprune.surgery.size_literals import Editor


def fold_branches(editor: Editor) -> None:
    """Put constants where nodes that stay read what a branch without channels gives, and leave out what made it.

    Raises
    ------
    UsageError
        A group cannot go whole.
    """
    found = collapse(editor.analysis, editor.removed)
    graph = editor.model.proto.graph
    values = {linear.out: _bias(editor, linear) for linear in found.readers.values()}
    behind = [editor.nodes[i] for i in found.folded if i not in found.readers]
    folded = {editor.nodes[i].output[0] for i in found.folded}
    for name, value in values.items():
        add_weight(editor.model, name, from_array(value))
    made = [name for name in found.constants if name not in values]
    if made:
        segment = extract(editor.model, editor.analysis.shapes, behind, (), made)
        for name, value in Session(segment, optimize=False).run({}).items():
            add_weight(editor.model, name, from_array(value))
    replace_nodes(graph, [n for n in graph.node if not folded.intersection(n.output)])


def constants_of(analysis: Analysis, pruned: Model) -> dict[str, tuple[int, ...]]:
    """The constants that stand for branches in a cut model: name of the activation -> shape."""
    known = analysis.record.tensors
    return {
        name: weight.shape
        for name, weight in pruned.weights.items()
        if name in known and name not in analysis.model.weights
    }


def _bias(editor: Editor, linear: Linear) -> np.ndarray:
    """What a linear node gives for inputs of zero, in a shape that broadcasts to its output."""
    node, weights = editor.nodes[linear.node], editor.model.weights
    rank, slot = len(editor.analysis.record.tensors[linear.out].axes), bias_slot(linear)
    name = node.input[slot] if slot is not None and slot < len(node.input) else ""
    if not name:
        weight = weights[node.input[1]]
        per_group = weight.shape[1] * int(attribute(node, "group", 1))
        outputs = {"Conv": weight.shape[0], "ConvTranspose": per_group}.get(
            linear.op, weight.shape[0 if attribute(node, "transB", 0) else 1]
        )
        values = np.zeros(outputs, weight.array().dtype)
    else:
        values = weights[name].array()
        values = (
            values * np.asarray(attribute(node, "beta", 1.0), values.dtype)
            if linear.op == "Gemm"
            else values
        )
    if linear.op == "Gemm" and values.ndim == 2:
        return values
    return values.reshape([-1 if axis == linear.out_axis else 1 for axis in range(rank)])
