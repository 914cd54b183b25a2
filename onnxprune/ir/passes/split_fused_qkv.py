"""Fused projections taken apart, so that their parts can have different widths.

A linear layer that makes queries, keys and values at once is written as one axis of k times n channels, reshaped to (k, n), moved
about and indexed. As one tensor it must stay a box: what goes from the queries goes from the values. Split first, reshaped and moved
a part, the parts are free; no value changes and nothing is copied more often.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

import numpy as np
from onnx import NodeProto, helper

from onnxprune.ir.edit import add_initializer, copied, replace_nodes
from onnxprune.ir.io import Model
from onnxprune.ir.nodes import STANDARD_DOMAINS, attribute, nested, set_attribute
from onnxprune.ir.shapes import Dim, Shapes
from onnxprune.ir.values import known

_AXES_ARE_INPUTS = 13  # opset from which Split sizes and Squeeze axes are inputs


@dataclass
class _Fused:
    """A Reshape that takes `axis` of its input apart into `parts` times the rest; chain: what moves the result, before it is indexed."""

    reshape: NodeProto
    axis: int
    place: int  # of the parts in the target
    parts: int
    chain: list[NodeProto] = field(default_factory=list)
    readers: list[tuple[NodeProto, list[int]]] = field(
        default_factory=list
    )  # (node, the part that each of its outputs is)


def unfuse(model: Model, shapes: Shapes) -> bool:
    """Rewrite the main graph of a copy made by edit(); whether anything changed. Leaves Identity nodes."""
    graph = model.proto.graph
    users: dict[str, list[NodeProto]] = {}
    for inner in nested(graph):
        for node in inner.node:
            for name in node.input:
                users.setdefault(name, []).append(node)
    ends = {o.name for g in nested(graph) for o in g.output}
    plain = {id(n) for n in graph.node}
    found = [
        f
        for n in graph.node
        if (f := _match(n, shapes, users, ends)) and all(id(r) in plain for r, _ in f.readers)
    ]
    if not found:
        return False
    replaced: dict[int, list[NodeProto]] = {}
    for fused in found:
        _rewrite(model, fused, shapes, replaced)
    replace_nodes(graph, [m for n in graph.node for m in replaced.get(id(n), [n])])
    return True


def _match(
    node: NodeProto, shapes: Shapes, users: Mapping[str, list[NodeProto]], ends: set[str]
) -> _Fused | None:
    """The fused projection that begins with a Reshape."""
    if (
        node.op_type != "Reshape"
        or node.domain not in STANDARD_DOMAINS
        or len(node.input) < 2
        or node.input[1] not in shapes.values
    ):
        return None
    before, after = shapes.shape(node.input[0]), shapes.shape(node.output[0])
    place = _leading_factor(before, after)
    if place is None:
        return None
    fused = _Fused(node, place, place, int(after[place]))  # type: ignore[index, arg-type]
    name, at = node.output[0], place
    while name not in ends:
        following = users.get(name, [])
        moved = _moved(following[0], at, shapes) if len(following) == 1 else None
        if moved is None:
            return fused if following and _readers(fused, following, name, at, shapes) else None
        fused.chain.append(following[0])
        name, at = following[0].output[0], moved
    return None


def _leading_factor(before: tuple[Dim, ...] | None, after: tuple[Dim, ...] | None) -> int | None:
    """Axis i where (..., k * n, ...) becomes (..., k, n or its factors, ...)."""
    if before is None or after is None or len(after) <= len(before):
        return None
    i = 0
    while i < len(before) and before[i] == after[i] and before[i] is not None:
        i += 1
    tail = len(before) - i - 1
    inside = after[i + 1 : len(after) - tail] if i < len(before) else ()
    sizes = (before[i], after[i], *inside) if inside else ()
    if not sizes or not known(sizes) or before[i + 1 :] != after[len(after) - tail :]:
        return None
    whole, k, rest = sizes[0], sizes[1], prod(sizes[2:])
    return i if k > 1 and rest > 1 and k * rest == whole else None


def _moved(node: NodeProto, at: int, shapes: Shapes) -> int | None:
    """Where an axis is behind a node that moves axes about; None for other nodes, and where the axis itself goes."""
    if node.domain not in STANDARD_DOMAINS:
        return None
    rank = len(shapes.shape(node.output[0]) or ())
    if node.op_type == "Transpose":
        return list(attribute(node, "perm") or range(rank)[::-1]).index(at)
    if node.op_type not in ("Squeeze", "Unsqueeze"):
        return None
    found = shapes.value(node.input[1]) if len(node.input) > 1 else attribute(node, "axes")
    if found is None:
        return None
    if node.op_type == "Squeeze":
        axes = {int(a) % len(shapes.shape(node.input[0]) or ()) for a in found}
        return None if at in axes else at - sum(a < at for a in axes)
    added = {int(a) % rank for a in found}
    return [i for i in range(rank) if i not in added][at]


def _readers(fused: _Fused, following: list[NodeProto], name: str, at: int, shapes: Shapes) -> bool:
    """Note which part each reader takes; False where one takes anything else."""
    for node in following:
        parts = _taken(node, name, at, fused.parts, shapes)
        if parts is None:
            return False
        fused.readers.append((node, parts))
    return True


def _taken(node: NodeProto, name: str, at: int, parts: int, shapes: Shapes) -> list[int] | None:
    """The parts that a Gather, Slice or Split takes one by one."""
    if (
        node.domain not in STANDARD_DOMAINS
        or list(node.input).count(name) != 1
        or node.input[0] != name
    ):
        return None
    rank = len(shapes.shape(name) or ())
    values = [shapes.value(n) if n else None for n in node.input[1:]]
    if (
        node.op_type == "Gather"
        and attribute(node, "axis", 0) % rank == at
        and values[0] is not None
        and values[0].size == 1
        and values[0].ndim < 2
    ):
        return [int(values[0].ravel()[0]) % parts]
    if (
        node.op_type == "Split"
        and attribute(node, "axis", 0) % rank == at
        and len(node.output) == parts
    ):
        return list(range(parts))
    if node.op_type == "Slice":
        bounds = (
            values[:4]
            if values
            else [
                np.array(attribute(node, k))
                for k in ("starts", "ends", "axes")
                if attribute(node, k) is not None
            ]
        )
        single = [b for b in bounds if b is not None and b.size == 1]
        if len(bounds) < 3 or len(single) < len(bounds):
            return None
        start, end, axis, step = [*(int(b[0]) for b in single), 1][:4]
        picked = range(parts)[start:end:step]
        return [picked[0]] if axis % rank == at and len(picked) == 1 else None
    return None


def _rewrite(
    model: Model, fused: _Fused, shapes: Shapes, replaced: dict[int, list[NodeProto]]
) -> None:
    """Split, then the Reshape and its chain once a part; readers become Identity, or Squeeze where they picked by a number."""
    node, parts = fused.reshape, fused.parts
    name = node.name or node.output[0]
    width = int(shapes.shape(node.input[0])[fused.axis]) // parts  # type: ignore[index, arg-type]
    pieces = [f"{node.output[0]}.part{i}" for i in range(parts)]
    split = helper.make_node(
        "Split", [node.input[0]], pieces, name=f"{name}.parts", axis=fused.axis
    )
    _give(model, split, "split", [width] * parts)
    made = [split]
    target = _target(model, fused, shapes, made)
    last = fused.chain[-1].output[0] if fused.chain else node.output[0]
    for i, piece in enumerate(pieces):
        reshape = copied(node)
        reshape.name, reshape.input[:], reshape.output[:] = (
            f"{name}.part{i}",
            [piece, target],
            [f"{node.output[0]}.box{i}"],
        )
        made.append(reshape)
        for step in fused.chain:
            moved = copied(step)
            moved.name, moved.input[0], moved.output[0] = (
                f"{step.name or step.output[0]}.part{i}",
                made[-1].output[0],
                f"{step.output[0]}.box{i}",
            )
            made.append(moved)
    replaced[id(node)] = made
    replaced |= {id(step): [] for step in fused.chain}
    for reader, taken in fused.readers:
        new = []
        for i, out in zip(taken, reader.output, strict=False):
            op = (
                "Squeeze"
                if reader.op_type == "Gather" and np.ndim(shapes.value(reader.input[1])) == 0  # type: ignore[arg-type]
                else "Identity"
            )  # type: ignore[arg-type]
            new.append(
                helper.make_node(
                    op,
                    [f"{last}.box{i}"],
                    [out],
                    name=reader.name
                    if len(reader.output) == 1
                    else f"{reader.name or out}.part{i}",
                )
            )
            if op == "Squeeze":
                _give(
                    model,
                    new[-1],
                    "axes",
                    [attribute(reader, "axis", 0) % len(shapes.shape(last) or ())],
                )
        replaced[id(reader)] = new


def _target(model: Model, fused: _Fused, shapes: Shapes, made: list[NodeProto]) -> str:
    """The Reshape's target with 1 in the place of the parts."""
    known = shapes.value(fused.reshape.input[1])
    name = f"{fused.reshape.output[0]}_part_shape"
    if known is not None:
        values = known.copy()
        values[fused.place] = 1
        return add_initializer(model, name, values)
    length = len(shapes.values[fused.reshape.input[1]])
    here = add_initializer(model, f"{name}_here", np.arange(length) == fused.place)
    one = add_initializer(model, f"{name}_one", np.array([1], np.int64))
    made.append(helper.make_node("Where", [here, one, fused.reshape.input[1]], [name], name=name))
    return name


def _give(model: Model, node: NodeProto, what: str, values: list[int]) -> None:
    """Sizes or axes, in the form of the model's opset."""
    if model.opset < _AXES_ARE_INPUTS:
        set_attribute(node, what, values)
    else:
        node.input.append(
            add_initializer(model, f"{node.output[0]}_{what}", np.array(values, np.int64))
        )
