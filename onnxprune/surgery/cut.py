"""Model and plan in, smaller model out. Nothing is decided here."""

from __future__ import annotations

import numpy as np

from onnxprune.analysis.groups import Analysis
from onnxprune.ir.edit import free_name
from onnxprune.ir.io import Model
from onnxprune.ir.nodes import nested
from onnxprune.ir.passes.remove_unused import remove_dead
from onnxprune.ir.weights import SlicedWeight
from onnxprune.surgery.fold import fold_branches
from onnxprune.surgery.size_literals import Editor, refit
from onnxprune.types import Plan


def cut(analysis: Analysis, plan: Plan) -> Model:
    """The canonical model with only the channels that the plan keeps.

    Weights are sliced when they are read, so a large model is cut without holding it in memory. Where a group keeps nothing, its branch
    goes: a constant, what the layers behind it give for inputs of zero, has its place and the name of its output.

    Raises
    ------
    UsageError
        The plan was made for another model, or a group keeps nothing that cannot go whole.
    """
    analysis.check(plan)
    editor = Editor(analysis, analysis.model.edit(), analysis.removed(plan.kept))
    _slice_weights(editor)
    refit(editor)
    if not all(map(len, plan.kept.values())):
        fold_branches(editor)
    _update_infos(editor)
    remove_dead(editor.model)
    return editor.model.freeze()


def _slice_weights(editor: Editor) -> None:
    """Give each use the part it needs; uses that need the same part share it under the old name."""
    analysis, model = editor.analysis, editor.model
    tensors = {t.name: t for t in model.proto.graph.initializer}
    inputs = {i.name: i for i in model.proto.graph.input}
    needs = [(use, tuple(_positions(editor, a) for a in use.axes)) for use in analysis.record.uses]
    whole = {o.name for g in nested(model.proto.graph) for o in g.output} | {
        use.tensor for use, keeps in needs if all(k is None for k in keeps)
    }
    names: dict[tuple[str, tuple[bytes, ...]], str] = {}
    seen: set[str] = set()
    weights = model.weights
    for use, keeps in needs:
        key = (use.tensor, tuple(b"" if k is None else k.tobytes() for k in keeps))
        if key not in names:
            first = use.tensor not in seen and use.tensor not in whole
            seen.add(use.tensor)
            name = (
                use.tensor if first or not any(key[1]) else free_name(f"{use.tensor}_cut", tensors)
            )
            names[key] = name
            base = analysis.model.weights[use.tensor]
            weights[name] = SlicedWeight(base, keeps) if any(key[1]) else base
            if name not in tensors:
                tensors[name] = model.proto.graph.initializer.add(name=name, data_type=base.dtype)
                tensors[name].doc_string = tensors[use.tensor].doc_string
            tensors[name].dims[:] = weights[name].shape
            if name in inputs:
                inputs[name].type.tensor_type.shape.Clear()
                for size in weights[name].shape:
                    inputs[name].type.tensor_type.shape.dim.add(dim_value=size)
        if names[key] != use.tensor and use.slot >= 0:
            editor.nodes[use.node].input[use.slot] = names[key]


def _positions(editor: Editor, axis: object) -> np.ndarray | None:
    """Kept positions of an axis; None where all stay."""
    if not isinstance(axis, np.ndarray):
        return None
    keep = editor.analysis.keep(axis, editor.removed)
    return None if keep.all() else np.flatnonzero(keep)


def _update_infos(editor: Editor) -> None:
    """Declared shapes follow the cut."""
    tensors = editor.analysis.record.tensors
    for graph in nested(editor.model.proto.graph):
        for info in (*graph.value_info, *graph.input, *graph.output):
            dims = info.type.tensor_type.shape.dim if info.type.HasField("tensor_type") else []
            if info.name in editor.model.weights:  # exporters declare initializers too
                for dim, size in zip(dims, editor.model.weights[info.name].shape, strict=False):
                    dim.dim_value = size
                continue
            state = tensors.get(info.name)
            if state is None or len(dims) != len(state.axes):
                continue
            for dim, axis in zip(dims, state.axes, strict=False):
                if isinstance(axis, np.ndarray) and dim.HasField("dim_value"):
                    dim.dim_value = editor.length(axis)
