"""Splitting of fused projections, so that queries, keys and values can have different widths.

A linear layer that computes queries, keys and values at once yields one axis of k times n
channels, which is reshaped to (k, n), transposed and indexed. As one tensor its parts can only be
pruned alike. Split first, then reshaped and moved part by part, they are independent; no value
changes and nothing is copied more often.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
from onnx import NodeProto, helper

from onnxprune.ir.edit import add_initializer, copy_message, replace_nodes
from onnxprune.ir.model import EditableModel
from onnxprune.ir.nodes import STANDARD_DOMAINS, attribute, nested, set_attribute
from onnxprune.ir.shapes import Shapes
from onnxprune.ir.values import Dim, is_static

_AXES_ARE_INPUTS = 13  # opset from which Split sizes and Squeeze axes are inputs


@dataclass
class _FusedProjection:
    """Reshape that splits one axis into `parts` times the rest, and the nodes up to the indexing.

    Attributes
    ----------
    reshape
        The Reshape node.
    axis
        Axis that it splits; the parts have the same axis of its target.
    parts
        Number of parts.
    width
        Length of each part before it is reshaped.
    chain
        Nodes between the Reshape and the consumers, which only move axes.
    consumers
        (node, part that each of its outputs takes).
    """

    reshape: NodeProto
    axis: int
    parts: int
    width: int
    chain: list[NodeProto] = field(default_factory=list)
    consumers: list[tuple[NodeProto, list[int]]] = field(default_factory=list)


def split_fused_projections(model: EditableModel, shapes: Shapes) -> bool:
    """Rewrite the fused projections of the main graph; return whether there were any.

    Leaves Identity nodes.
    """
    graph = model.proto.graph
    matcher = _Matcher(model, shapes)
    projections = []
    for node in graph.node:
        fused = matcher.match(node)
        if fused is not None:
            projections.append(fused)
    if not projections:
        return False
    replaced: dict[int, list[NodeProto]] = {}
    for fused in projections:
        _rewrite(model, fused, shapes, replaced)
    nodes: list[NodeProto] = []
    for node in graph.node:
        nodes += replaced.get(id(node), [node])
    replace_nodes(graph, nodes)
    return True


class _Matcher:
    """Search for fused projections in a model."""

    def __init__(self, model: EditableModel, shapes: Shapes) -> None:
        self.shapes = shapes
        graph = model.proto.graph
        self.consumers: dict[str, list[NodeProto]] = {}
        self.outputs: set[str] = set()
        # bodies read tensors by name, so that their nodes count as consumers too
        for inner in nested(graph):
            self.outputs.update(o.name for o in inner.output)
            for node in inner.node:
                for name in node.input:
                    self.consumers.setdefault(name, []).append(node)
        self.main_nodes = {id(n) for n in graph.node}

    def match(self, node: NodeProto) -> _FusedProjection | None:
        """Return the fused projection that begins with a Reshape; None for other nodes."""
        fused = self._match_reshape(node)
        if fused is None:
            return None
        name, axis = node.output[0], fused.axis
        # follow nodes that only move axes, as long as there is one consumer
        while name not in self.outputs:
            following = self.consumers.get(name, [])
            moved = _moved_axis(following[0], axis, self.shapes) if len(following) == 1 else None
            if moved is None:
                complete = bool(following) and self._match_consumers(fused, following, name, axis)
                return fused if complete else None
            fused.chain.append(following[0])
            name, axis = following[0].output[0], moved
        return None

    def _match_reshape(self, node: NodeProto) -> _FusedProjection | None:
        if node.op_type != "Reshape" or node.domain not in STANDARD_DOMAINS:
            return None
        # a target that is partly computed is enough: the sizes come from the shapes
        if len(node.input) < 2 or node.input[1] not in self.shapes.values:
            return None
        before, after = self.shapes.shape(node.input[0]), self.shapes.shape(node.output[0])
        if before is None or after is None or len(after) <= len(before):
            return None
        factors = _find_leading_factor(before, after)
        return None if factors is None else _FusedProjection(node, *factors)

    def _match_consumers(
        self, fused: _FusedProjection, nodes: Sequence[NodeProto], name: str, axis: int
    ) -> bool:
        """Record which part each consumer takes; return False if one takes anything else."""
        for node in nodes:
            parts = _find_taken_parts(node, name, axis, fused.parts, self.shapes)
            if parts is None or id(node) not in self.main_nodes:
                return False
            fused.consumers.append((node, parts))
        return True


def _find_leading_factor(
    before: tuple[Dim, ...], after: tuple[Dim, ...]
) -> tuple[int, int, int] | None:
    """Return (axis, k, n) for a Reshape from (..., k * n, ...) to (..., k, factors of n, ...)."""
    i = 0
    # the first axis that differs is the split one
    while i < len(before) and before[i] == after[i] and before[i] is not None:
        i += 1
    if i == len(before):
        return None
    tail = len(before) - i - 1  # axes after the split one
    inside = after[i + 1 : len(after) - tail]
    sizes = (before[i], after[i], *inside)
    if not inside or not is_static(sizes) or before[i + 1 :] != after[len(after) - tail :]:
        return None
    # with one part there is nothing to split, with parts of one channel nothing to cut
    total, k, n = sizes[0], sizes[1], prod(sizes[2:])
    return (i, k, n) if k > 1 and n > 1 and k * n == total else None


def _moved_axis(node: NodeProto, axis: int, shapes: Shapes) -> int | None:
    """Return the position of an axis after a node that only moves axes.

    None for other nodes, and if the axis itself is removed.
    """
    if node.domain not in STANDARD_DOMAINS:
        return None
    rank = len(shapes.shape(node.output[0]) or ())
    if node.op_type == "Transpose":
        return list(attribute(node, "perm") or range(rank)[::-1]).index(axis)
    if node.op_type not in ("Squeeze", "Unsqueeze"):
        return None
    axes: Iterable[int] | None = attribute(node, "axes")
    if len(node.input) > 1:
        axes = shapes.value(node.input[1])
    if axes is None:
        return None
    if node.op_type == "Squeeze":
        removed = {int(a) % len(shapes.shape(node.input[0]) or ()) for a in axes}
        return None if axis in removed else axis - sum(a < axis for a in removed)
    added = {int(a) % rank for a in axes}
    # the position among those that were there before
    return [i for i in range(rank) if i not in added][axis]


def _find_taken_parts(
    node: NodeProto, name: str, axis: int, count: int, shapes: Shapes
) -> list[int] | None:
    """Return the part that each output of a Gather, Slice or Split takes; None if not one each."""
    # a node that reads the tensor twice, or as an index, takes more than a part
    if node.domain not in STANDARD_DOMAINS or list(node.input).count(name) != 1:
        return None
    if node.input[0] != name:
        return None
    rank = len(shapes.shape(name) or ())
    values = [shapes.value(n) if n else None for n in node.input[1:]]
    if node.op_type == "Slice":
        return _find_sliced_part(node, values, rank, axis, count)
    if node.op_type not in ("Gather", "Split") or attribute(node, "axis", 0) % rank != axis:
        return None
    if node.op_type == "Split":
        return list(range(count)) if len(node.output) == count else None
    index = values[0]
    # an index of rank 2 or more would add axes
    if index is None or index.size != 1 or index.ndim > 1:
        return None
    return [int(index.ravel()[0]) % count]


def _find_sliced_part(
    node: NodeProto, values: Sequence[np.ndarray | None], rank: int, axis: int, count: int
) -> list[int] | None:
    """Return the one part that a Slice along `axis` takes."""
    bounds: list[np.ndarray | None] = list(values[:4])
    if not values:  # before opset 10 the bounds are attributes
        for key in ("starts", "ends", "axes"):
            if attribute(node, key) is not None:
                bounds.append(np.array(attribute(node, key)))
    single = [b for b in bounds if b is not None and b.size == 1]
    # each bound must be constant and for one axis, which has to be listed
    if len(bounds) < 3 or len(single) < len(bounds):
        return None
    start, end, sliced_axis, step = [*(int(b[0]) for b in single), 1][:4]
    # Python's slice has the rules of ONNX for such bounds
    picked = range(count)[start:end:step]
    return [picked[0]] if sliced_axis % rank == axis and len(picked) == 1 else None


def _rewrite(
    model: EditableModel,
    fused: _FusedProjection,
    shapes: Shapes,
    replaced: dict[int, list[NodeProto]],
) -> None:
    """Replace the Reshape by a Split and one Reshape and chain per part.

    Parameters
    ----------
    replaced
        id of a node -> nodes that take its place; filled in here.
    """
    node = fused.reshape
    name = node.name or node.output[0]
    pieces = [f"{node.output[0]}.part{i}" for i in range(fused.parts)]
    split = helper.make_node(
        "Split", [node.input[0]], pieces, name=f"{name}.parts", axis=fused.axis
    )
    _set_numbers(model, split, "split", [fused.width] * fused.parts)
    nodes = [split]
    target = _make_part_target(model, fused, shapes, nodes)
    last = fused.chain[-1].output[0] if fused.chain else node.output[0]
    # each part keeps an axis of length 1, so that the chain can be copied unchanged
    for i, piece in enumerate(pieces):
        reshape = copy_message(node)
        reshape.name = f"{name}.part{i}"
        reshape.input[:] = [piece, target]
        reshape.output[:] = [f"{node.output[0]}.box{i}"]
        nodes.append(reshape)
        for step in fused.chain:
            moved = copy_message(step)
            moved.name = f"{step.name or step.output[0]}.part{i}"
            moved.input[0] = nodes[-1].output[0]
            moved.output[0] = f"{step.output[0]}.box{i}"
            nodes.append(moved)
    replaced[id(node)] = nodes
    # the nodes of a chain are repeated per part, next to the Reshape
    for step in fused.chain:
        replaced[id(step)] = []
    for consumer, parts in fused.consumers:
        replaced[id(consumer)] = _rewrite_consumer(model, consumer, parts, last, shapes)


def _rewrite_consumer(
    model: EditableModel, consumer: NodeProto, parts: Sequence[int], source: str, shapes: Shapes
) -> list[NodeProto]:
    """Return an Identity per output, or a Squeeze if a Gather picked the part by a scalar."""
    nodes = []
    scalar = False
    if consumer.op_type == "Gather":
        index = shapes.value(consumer.input[1])
        scalar = index is not None and index.ndim == 0
    for i, out in zip(parts, consumer.output, strict=False):
        name = consumer.name if len(consumer.output) == 1 else f"{consumer.name or out}.part{i}"
        # a Gather by a scalar removes the axis of the parts, by a vector of one it keeps it
        op = "Squeeze" if scalar else "Identity"
        node = helper.make_node(op, [f"{source}.box{i}"], [out], name=name)
        if scalar:
            axis = attribute(consumer, "axis", 0) % len(shapes.shape(source) or ())
            _set_numbers(model, node, "axes", [axis])
        nodes.append(node)
    return nodes


def _make_part_target(
    model: EditableModel, fused: _FusedProjection, shapes: Shapes, nodes: list[NodeProto]
) -> str:
    """Return the name of the Reshape's target with 1 in place of the number of parts.

    A target that is computed is changed by a Where, which is appended to `nodes`.
    """
    original = fused.reshape.input[1]
    name = f"{fused.reshape.output[0]}_part_shape"
    known = shapes.value(original)
    if known is not None:
        values = known.copy()
        values[fused.axis] = 1
        return add_initializer(model, name, values)
    length = len(shapes.values[original])
    here = add_initializer(model, f"{name}_here", np.arange(length) == fused.axis)
    one = add_initializer(model, f"{name}_one", np.array([1], np.int64))
    nodes.append(helper.make_node("Where", [here, one, original], [name], name=name))
    return name


def _set_numbers(model: EditableModel, node: NodeProto, what: str, values: list[int]) -> None:
    """Set sizes or axes as an attribute or input, whichever the model's opset has."""
    if model.opset < _AXES_ARE_INPUTS:
        set_attribute(node, what, values)
    else:
        name = f"{node.output[0]}_{what}"
        node.input.append(add_initializer(model, name, np.array(values, np.int64)))
