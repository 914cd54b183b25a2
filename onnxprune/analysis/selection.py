"""Operators that pick, crop or rotate positions and need more than a pattern."""

from __future__ import annotations

import numpy as np

from onnxprune.analysis.causes import Axis
from onnxprune.analysis.literals import (
    Axes,
    axes_of,
    freeze_axes,
    record_literal,
    stop,
)
from onnxprune.analysis.rule import Misfit
from onnxprune.analysis.state import Node, Select, SizeLiteral
from onnxprune.ir.contrib import CONTRIB_DOMAIN
from onnxprune.ir.values import Dim


def compress(node: Node) -> list[Axes]:
    """Pick the positions of `axis` at which a constant condition holds."""
    axes, condition = axes_of(node), node.value(1)
    if not node.has("axis") and len(axes) > 1:
        freeze_axes(node, axes, None, "positions of the flattened tensor are selected")
        return [[node.why("selected from the flattened tensor")]]
    axis = node.integer("axis", 0) % len(axes)
    ids = axes[axis]
    if not isinstance(ids, np.ndarray):
        return [axes]
    if condition is None or condition.ndim != 1:
        axes[axis] = stop(node, ids, "selected by a computed condition")
        return [axes]
    # the condition may be shorter than the axis: what it does not cover is dropped
    index = np.flatnonzero(condition[: len(ids)])
    node.record.selects.append(Select(node.index, axis, ids, index))
    axes[axis] = ids[index]
    return [axes]


def center_crop_pad(node: Node) -> list[Axes]:
    """Crop or pad around the center; an axis that keeps its length is kept."""
    axes, before, after = axes_of(node), node.shape(0), node.out_shape()
    listed = node.integers("axes")
    order = range(len(axes)) if listed is None else [a % len(axes) for a in listed]
    for i in order:
        # the center of a shorter axis is another position
        if before[i] != after[i] or not isinstance(before[i], int):
            axes[i] = stop(node, axes[i], "cropped or padded around its center")
    record_literal(node, ("input", 1), [axes[i] for i in order])
    return [axes]


def rotary_embedding(node: Node) -> list[Axes]:
    """Rotate pairs of channels of each head by the angles of a cache.

    A pair (two channels of a head, in all heads) and a channel that is not rotated are units, as
    are heads.
    """
    axes, shape = axes_of(node), node.shape(0)
    contrib = node.proto.domain == CONTRIB_DOMAIN
    caches, rank = ((2, 3) if contrib else (1, 2)), len(axes)
    positions = 1 if contrib else 3
    if positions < node.inputs:
        freeze_axes(node, axes_of(node, positions), None, "its values are positions")
    angles = node.shape(caches[0])[-1]
    heads, size = _count_heads(node, shape, angles)
    if rank == 4:
        head_axis, channel_axis, sequence = axes[1], axes[3], 2
    else:
        head_axis, channel_axis = node.record.causes.split(axes[2], heads, size, node.single())
        sequence = 1
    for i in (0, sequence):
        axes[i] = stop(node, axes[i], f"{node.op} fixes this axis")
    rotated = node.integer("rotary_embedding_dim", 0) or size
    if rotated > size or rotated % 2 or angles != rotated // 2:
        raise Misfit(f"{angles} angles do not rotate {rotated} of {size} channels")
    part: Axis = channel_axis if isinstance(channel_axis, int) else channel_axis[:rotated]
    pairs = _pair_rotated(node, part, rotated)
    # the caches hold an angle per pair: they lose the pairs that the data loses
    for slot in caches:
        cache = axes_of(node, slot)
        freeze_axes(node, cache[:-1], None, f"{node.op} fixes this axis")
        node.record.causes.unify(pairs, cache[-1])
    _record_number(node, "num_heads", head_axis)
    _record_number(node, "rotary_embedding_dim", part)
    return [axes]


def _count_heads(node: Node, shape: tuple[Dim, ...], angles: Dim) -> tuple[int, int]:
    """Return the number of heads and the channels of each; Misfit if they are not known."""
    heads: Dim = node.integer("num_heads", 0)
    size = shape[-1]
    if len(shape) == 4:
        heads = 1  # an axis of its own
    elif isinstance(size, int):
        if not heads and isinstance(angles, int) and angles:
            heads = size // (2 * angles)  # onnxruntime without num_heads
        if not isinstance(heads, int) or not heads or size % heads:
            raise Misfit(f"{size} channels are not a multiple of {heads} heads")
        size //= heads
    if not isinstance(size, int) or not isinstance(heads, int) or not isinstance(angles, int):
        raise Misfit("its channels or angles are dynamic")
    return heads, size


def _pair_rotated(node: Node, part: Axis, rotated: int) -> Axis:
    """Return the axis of pairs of rotated channels; both channels of a pair are cut together."""
    half, causes = rotated // 2, node.record.causes
    # as neighbors, pairs are rows; as halves, they are columns
    if node.integer("interleaved", 0):
        pairs, two = causes.split(part, half, 2, node.single())
    else:
        two, pairs = causes.split(part, 2, half, node.single())
    causes.freeze(two, node.why("both channels of a pair are rotated together"))
    return pairs


def _record_number(node: Node, name: str, axis: Axis) -> None:
    """Record an attribute that holds the length of an axis; 0 stands for all of it."""
    if isinstance(axis, np.ndarray) and node.integer(name, 0):
        literal = SizeLiteral(node.index, ("attribute", name), (axis,), scalar=True)
        node.record.literals.append(literal)
