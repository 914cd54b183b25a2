"""Tensors that losses read: logits before a final Softmax, and inner tensors of two models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnx import NodeProto

from onnxprune.ir.io import Model
from onnxprune.tune.bridge import OnnxModule
from onnxprune.tune.call import torch
from onnxprune.tune.losses import Head

_PASSING = ("Identity", "Cast")
_JOINS = ("Add", "Concat", "GlobalAveragePool", "ReduceMean", "MaxPool")
MAX_FEATURES = 4


def heads(
    model: Model, class_axis: int | None = None, ranks: Mapping[str, int] | None = None
) -> list[Head]:
    """Return the graph's outputs as losses read them.

    An output of a Softmax has its classes on the Softmax axis and is read before it. An output of
    rank 2 has its classes on the last axis. Any other has none, unless `class_axis` names it.

    Parameters
    ----------
    class_axis
        Axis of the classes of other outputs.
    ranks
        Ranks by output name; by default those that the graph declares.
    """
    producers = {o: n for n in model.proto.graph.node for o in n.output}
    result = []
    for output in model.proto.graph.output:
        rank = (ranks or {}).get(output.name, len(output.type.tensor_type.shape.dim))
        result.append(_find_head(output.name, producers, model.opset, class_axis, rank))
    return result


def _find_head(
    output: str, producers: Mapping[str, NodeProto], opset: int, class_axis: int | None, rank: int
) -> Head:
    """Return the head of one output."""
    name = output
    # exporters append Identity or Cast to outputs
    while name in producers and producers[name].op_type in _PASSING:
        name = producers[name].input[0]
    node = producers.get(name)
    if node is not None and node.op_type in ("Softmax", "LogSoftmax"):
        axis = next((a.i for a in node.attribute if a.name == "axis"), -1 if opset >= 13 else 1)
        return Head(output, node.input[0], axis)
    if class_axis is not None and rank > class_axis:
        return Head(output, output, class_axis)
    return Head(output, output, -1 if rank == 2 else None)


def common_features(
    student: OnnxModule, teacher: OnnxModule, feeds: Mapping[str, torch.Tensor], min_rank: int = 2
) -> list[str]:
    """Return up to four inner tensors with one shape in both models, evenly spaced over depth.

    Only tensors that join branches or pool are considered.
    """
    teacher_names = {o for s in teacher.steps for o in s.outputs}
    # pruning keeps the names of tensors, so that equal names are the same place
    joins = [s.outputs[0] for s in student.steps if s.call.op in _JOINS]
    names = [n for n in joins if n in teacher_names]
    if not names:
        return []
    with torch.no_grad():
        a, b = student(feeds, names), teacher(feeds, names)
    same = [
        n
        for n in names
        # tensors that were pruned would need a projection to be compared
        if a[n].shape == b[n].shape and a[n].is_floating_point() and a[n].ndim >= min_rank
    ]
    return _space_evenly(same, MAX_FEATURES)


def _space_evenly(names: Sequence[str], count: int) -> list[str]:
    """Return at most `count` of the names at even distances, the last one always."""
    if len(names) <= count:
        return list(names)
    # the last one is nearest to the output
    return [names[round((i + 1) * len(names) / count) - 1] for i in range(count)]
