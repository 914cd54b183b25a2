"""Cuts the channels that a plan removes; decides nothing."""

from __future__ import annotations

import numpy as np
from onnx import TensorShapeProto

from onnxprune.analysis.causes import Axis
from onnxprune.analysis.folded import arrays_of
from onnxprune.analysis.groups import Analysis
from onnxprune.ir.edit import free_name
from onnxprune.ir.io import Model
from onnxprune.ir.nodes import nested
from onnxprune.ir.passes.remove_unused import remove_dead
from onnxprune.ir.weights import SlicedWeight
from onnxprune.surgery.fold import fold_branches
from onnxprune.surgery.root_means import rescale_root_means
from onnxprune.surgery.size_literals import Editor, rewrite_literals
from onnxprune.types import Plan


def cut(analysis: Analysis, plan: Plan) -> Model:
    """Return the canonical model with only the channels that the plan keeps.

    Weights are sliced when they are read, so a large model is cut without holding it in memory.
    If a group keeps no channel, its branch is replaced by a constant: what the layers after it
    return for inputs of zero. The constant has the name of their output.

    Raises
    ------
    UsageError
        The plan was made for another model, or a group keeps no channel although its branch
        cannot be removed.
    """
    plan = analysis.check(plan)
    editor = Editor(analysis, analysis.model.edit(), analysis.removed(plan.kept))
    _slice_weights(editor)
    rewrite_literals(editor)
    rescale_root_means(editor)
    if not all(map(len, plan.kept.values())):
        fold_branches(editor)
    _update_infos(editor)
    # last: slices, rewritten literals and folded branches all leave initializers without a use
    remove_dead(editor.model)
    return editor.model.freeze()


def _slice_weights(editor: Editor) -> None:
    """Give each use the positions it keeps; uses that keep the same ones share a tensor.

    The first of them gets the old name unless another use, or an output of a graph, needs all of
    the tensor.
    """
    analysis, model = editor.analysis, editor.model
    tensors = {t.name: t for t in model.proto.graph.initializer}
    inputs = {i.name: i for i in model.proto.graph.input}
    kept = [
        (use, tuple(_find_kept_positions(editor, a) for a in use.axes)) for use in analysis.uses
    ]
    # an output of a graph reads the complete tensor
    uncut = {o.name for g in nested(model.proto.graph) for o in g.output}
    uncut |= {use.tensor for use, keeps in kept if all(k is None for k in keeps)}
    names: dict[tuple[str, tuple[bytes, ...]], str] = {}
    seen: set[str] = set()
    weights = model.weights
    for use, keeps in kept:
        # bytes, because arrays cannot be keys; empty where nothing is cut
        key = (use.tensor, tuple(b"" if k is None else k.tobytes() for k in keeps))
        if key not in names:
            name = use.tensor
            if any(key[1]) and (name in seen or name in uncut):
                name = free_name(f"{name}_cut", tensors)
            seen.add(use.tensor)
            names[key] = name
            base = analysis.model.weights[use.tensor]
            weights[name] = SlicedWeight(base, keeps) if any(key[1]) else base
            if name not in tensors:
                tensors[name] = model.proto.graph.initializer.add(name=name, data_type=base.dtype)
                tensors[name].doc_string = tensors[use.tensor].doc_string
            tensors[name].dims[:] = weights[name].shape
            # before IR version 4 initializers are inputs too, whose declared shapes must match
            if name in inputs:
                inputs[name].type.tensor_type.shape.Clear()
                for size in weights[name].shape:
                    inputs[name].type.tensor_type.shape.dim.add(dim_value=size)
        if names[key] != use.tensor and use.slot >= 0:
            editor.nodes[use.node].input[use.slot] = names[key]


def _find_kept_positions(editor: Editor, axis: object) -> np.ndarray | None:
    """Return the kept positions of an axis; None if all are kept."""
    if not isinstance(axis, np.ndarray):
        return None
    keep = editor.analysis.keep(axis, editor.removed)
    return None if keep.all() else np.flatnonzero(keep)


def _update_infos(editor: Editor) -> None:
    """Update the declared shapes."""
    weights = editor.model.weights
    for graph in nested(editor.model.proto.graph):
        for info in (*graph.value_info, *graph.input, *graph.output):
            dims = info.type.tensor_type.shape.dim if info.type.HasField("tensor_type") else []
            if info.name in weights:  # exporters declare initializers too
                for dim, size in zip(dims, weights[info.name].shape, strict=False):
                    dim.dim_value = size
                continue
            state = editor.analysis.record.tensors.get(info.name)
            if state is None or len(dims) != len(state.axes):
                continue
            for dim, axis in zip(dims, state.axes, strict=True):
                _update_dimension(editor, dim, axis)


def _update_dimension(editor: Editor, dim: TensorShapeProto.Dimension, axis: Axis | None) -> None:
    """Update the declared length of an axis.

    A symbol of several axes of which one is cut would still declare them equal, and onnxruntime
    reuses memory among tensors that are declared alike.
    """
    if isinstance(axis, np.ndarray) and dim.HasField("dim_value"):
        dim.dim_value = editor.length(axis)
    elif dim.dim_param and any(editor.length(ids) < len(ids) for ids in arrays_of(axis)):
        dim.Clear()
        if isinstance(axis, np.ndarray):
            dim.dim_value = editor.length(axis)
