"""Where a loss reads the graph: logits before a final Softmax, and inner tensors that two models share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnx import NodeProto

from onnxprune.ir.io import Model
from onnxprune.tune.bridge import OnnxModule
from onnxprune.tune.call import torch
from onnxprune.tune.losses import Head

_PASSING = ("Identity", "Cast")
_JOINS = ("Add", "Concat", "GlobalAveragePool", "ReduceMean", "MaxPool")
MOST_FEATURES = 4


def heads(
    model: Model, class_axis: int | None = None, ranks: Mapping[str, int] | None = None
) -> list[Head]:
    """The graph's outputs as losses see them.

    An output of a Softmax has its classes on that axis and is read before it. One of rank 2 has them on the last axis. Another has none,
    unless `class_axis` says where.
    """
    producers = {o: n for n in model.proto.graph.node for o in n.output}
    return [
        _head(
            o.name,
            producers,
            model.opset,
            class_axis,
            (ranks or {}).get(o.name, len(o.type.tensor_type.shape.dim)),
        )
        for o in model.proto.graph.output
    ]


def _head(
    output: str, producers: Mapping[str, NodeProto], opset: int, class_axis: int | None, rank: int
) -> Head:
    name = output
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
    student: OnnxModule, teacher: OnnxModule, feeds: Mapping[str, torch.Tensor], least_rank: int = 2
) -> list[str]:
    """Names of up to four inner tensors that join branches or pool and have one shape in both models, evenly spread over the depth."""
    names = [s.outputs[0] for s in student.steps if s.call.op in _JOINS]
    theirs = {o for s in teacher.steps for o in s.outputs}
    names = [n for n in names if n in theirs]
    if not names:
        return []
    with torch.no_grad():
        a, b = student(feeds, names), teacher(feeds, names)
    same = [
        n
        for n in names
        if a[n].shape == b[n].shape and a[n].is_floating_point() and a[n].ndim >= least_rank
    ]
    return _spread(same, MOST_FEATURES)


def _spread(names: Sequence[str], count: int) -> list[str]:
    """At most `count` of the names at even distances, the last one always."""
    if len(names) <= count:
        return list(names)
    return [names[round((i + 1) * len(names) / count) - 1] for i in range(count)]
