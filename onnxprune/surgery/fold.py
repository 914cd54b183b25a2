"""Replaces branches that keep no channel by constants.

An initializer takes over the name of the activation that it replaces.
"""

from __future__ import annotations

import numpy as np

from onnxprune.analysis.blocks import collapse
from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.linear import Linear
from onnxprune.ir.edit import add_weight, replace_nodes
from onnxprune.ir.extract import extract
from onnxprune.ir.io import Model
from onnxprune.ir.linear import WeightLayout
from onnxprune.ir.nodes import attribute
from onnxprune.ir.runtime import Session
from onnxprune.ir.weights import from_array
from onnxprune.surgery.size_literals import Editor


def fold_branches(editor: Editor) -> None:
    """Replace what a branch without channels returns by constants, and drop the nodes of it.

    Raises
    ------
    UsageError
        A group keeps no channel although its branch cannot be removed.
    """
    plan = collapse(editor.analysis, editor.removed)
    graph = editor.model.proto.graph
    values = {layer.out: _compute_bias(editor, layer) for layer in plan.biases.values()}
    following = [editor.nodes[i] for i in plan.folded if i not in plan.biases]
    folded = {editor.nodes[i].output[0] for i in plan.folded}
    # before the segment below is extracted, which reads them as initializers
    for name, value in values.items():
        add_weight(editor.model, name, from_array(value))
    computed = [name for name in plan.constants if name not in values]
    if computed:
        # no inputs: all that the segment reads are biases and other initializers
        segment = extract(editor.model, editor.analysis.shapes, following, (), computed)
        for name, value in Session(segment, optimize=False).run({}).items():
            add_weight(editor.model, name, from_array(value))
    replace_nodes(graph, [n for n in graph.node if not folded.intersection(n.output)])


def constants_of(analysis: Analysis, pruned: Model) -> dict[str, tuple[int, ...]]:
    """Return the constants that replace branches in a cut model: activation -> shape."""
    return {
        name: weight.shape
        for name, weight in pruned.weights.items()
        if name not in analysis.model.weights and analysis.tensor_axes(name) is not None
    }


def _compute_bias(editor: Editor, layer: Linear) -> np.ndarray:
    """Return what a linear layer computes from zeros, in a shape that broadcasts to its output."""
    node, weights = editor.nodes[layer.node], editor.model.weights
    slot = layer.layout.bias_slot
    name = node.input[slot] if slot is not None and slot < len(node.input) else ""
    if name:
        values = weights[name].array()
        # beta C is all that is left of alpha A B + beta C
        if layer.op == "Gemm":
            values = values * np.asarray(attribute(node, "beta", 1.0), values.dtype)
            # a row per sample, or one for all: it broadcasts as it is
            if values.ndim == 2:
                return values
    else:
        # no bias: zeros, in the type of the weight
        weight = weights[node.input[1]]
        outputs = WeightLayout.of(node).outputs(weight.shape)
        values = np.zeros(outputs, weight.array().dtype)
    rank = len(editor.analysis.tensor_axes(layer.out) or ())
    return values.reshape([-1 if axis == layer.out_axis else 1 for axis in range(rank)])
