"""Operators that move positions: each is applied to ids as the operator is to values.

A function takes a node, returns the axes of its outputs, and records the literals that spell
sizes, which a cut must rewrite.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from onnxprune.analysis.causes import Axis
from onnxprune.analysis.folded import Folded
from onnxprune.analysis.literals import (
    Axes,
    axes_of,
    freeze_axes,
    fresh_axis,
    ids_of,
    place,
    read_list,
    record_literal,
    stop,
)
from onnxprune.analysis.ops.resampling import cropped_axes
from onnxprune.analysis.reshape import reshape
from onnxprune.analysis.rule import Misfit, axis_attribute
from onnxprune.analysis.selection import center_crop_pad, compress, rotary_embedding
from onnxprune.analysis.state import Node, Restore, Select, Squeezed
from onnxprune.analysis.unpooling import max_pool, max_unpool


def transpose(node: Node) -> list[Axes]:
    """Permute axes."""
    axes = axes_of(node)
    order = node.integers("perm") or range(len(axes))[::-1]
    return [[axes[p] for p in order]]


def concat(node: Node) -> list[Axes]:
    """Join ids along `axis`; tie the other axes."""
    # a quantized part is followed by its scale and zero point
    slots = range(2, node.inputs, 3) if node.op == "QLinearConcat" else range(node.inputs)
    parts = [axes_of(node, s) for s in slots]
    rank = len(parts[0])
    axis = axis_attribute(node, 1, rank)
    out = parts[0]
    for part in parts[1:]:
        for i in range(rank):
            if i != axis:  # axes that are not joined have the same positions in all parts
                node.record.causes.unify(out[i], part[i])
                out[i] = part[i] if isinstance(part[i], int) else out[i]
    # all are frozen: nothing to join
    if all(isinstance(p[axis], int) for p in parts):
        return [out]
    try:
        joined = [
            ids_of(node, p[axis], node.shape(s)[axis]) for s, p in zip(slots, parts, strict=True)
        ]
        out[axis] = np.concatenate(joined)
    except Misfit:
        why = node.why("joined with a dynamic axis")
        for part in parts:
            node.record.causes.freeze(part[axis], why)
        out[axis] = why
    return [out]


def split(node: Node) -> list[Axes]:
    """Split ids along `axis`."""
    axes = axes_of(node)
    axis = axis_attribute(node, 0, len(axes))
    count = len(node.proto.output)
    ids = axes[axis]
    if isinstance(ids, int):
        return [list(axes) for _ in range(count)]
    sizes = read_list(node, "split", 1) or [len(p) for p in np.array_split(ids, count)]
    # num_outputs rounds up: the last part gets what is left, which may be less
    if node.has("num_outputs"):
        step = -(-len(ids) // count)
        sizes = [step] * (count - 1) + [len(ids) - step * (count - 1)]
    parts = np.split(ids, np.cumsum(sizes)[:-1])
    record_literal(node, ("input", 1) if node.opset >= 13 else ("attribute", "split"), parts)
    return [[p if i == axis else a for i, a in enumerate(axes)] for p in parts]


class _Bounds(NamedTuple):
    """What a Slice takes of one axis."""

    axis: int
    start: int
    end: int
    step: int


def _read_bounds(node: Node, rank: int) -> list[_Bounds]:
    """Return the bounds of a Slice whose bounds are constant."""
    inputs = node.opset >= 10  # attributes before; no operand has the slot 9
    starts = read_list(node, "starts", 1 if inputs else 9) or []
    ends = read_list(node, "ends", 2 if inputs else 9) or []
    axes = read_list(node, "axes", 3 if inputs else 9)
    steps = (read_list(node, "steps", 4) if inputs else None) or [1] * len(starts)
    where = [a % rank for a in (axes if axes is not None else range(len(starts)))]
    return [_Bounds(*b) for b in zip(where, starts, ends, steps, strict=False)]


def slice_(node: Node) -> list[Axes]:
    """Slice ids; a slice with a step becomes a selection."""
    axes = axes_of(node)
    if node.opset >= 10:
        # computed bounds matter only if an axis can be cut at all
        if all(isinstance(a, int) for a in axes):
            return [axes]
        if node.value(1) is None or node.value(2) is None:
            where = read_list(node, "axes", 3)
            return [freeze_axes(node, axes, where, "sliced by computed bounds")]
    bounds = _read_bounds(node, len(axes))
    new_starts: list[Axis | None] = [None] * len(bounds)
    new_ends: list[Axis | None] = [None] * len(bounds)
    watch = []
    for k, (axis, start, end, step) in enumerate(bounds):
        ids = axes[axis]
        if isinstance(ids, int):
            continue
        # a negative end beyond the first position means that the first is included
        last = None if step < 0 and end < -len(ids) else end
        index = np.arange(len(ids))[slice(start, last, step)]
        axes[axis] = ids[index]
        # nothing is taken away, so that no bound needs to change
        if len(index) == len(ids) and step == 1:
            continue
        if step == 1 and len(index):
            # as many positions precede each bound as are kept before it
            new_starts[k], new_ends[k] = ids[: index[0]], ids[: index[-1] + 1]
            watch.append(ids)
        # a Gather will take its place, which serves one axis
        elif len(bounds) > 1:
            axes[axis] = stop(node, ids, "sliced with a step together with other axes")
        else:
            node.record.selects.append(Select(node.index, axis, ids, index))
    record_literal(node, place(node, "starts", 1), new_starts, watch)
    record_literal(node, place(node, "ends", 2), new_ends, watch)
    return [axes]


def gather(node: Node) -> list[Axes]:
    """Pick positions by a constant index."""
    axes = axes_of(node)
    axis = axis_attribute(node, 0, len(axes))
    index = node.value(1)
    ids, picks = axes[axis], axes_of(node, 1)
    # the index is no axis to cut: `Select` rewrites it where the picked axis loses positions
    if node.operand(1).constant:
        picks = freeze_axes(node, picks, None, "positions of a constant index")
    if not isinstance(ids, np.ndarray):
        return [axes[:axis] + picks + axes[axis + 1 :]]
    if index is None:
        # an index from the input can be any position
        stop(node, ids, "gathered by a computed index")
        return [axes[:axis] + picks + axes[axis + 1 :]]
    index = np.where(index < 0, index + len(ids), index)
    node.record.selects.append(Select(node.index, axis, ids, index))
    if index.ndim != 1:  # the output has no axis that could lose the picked positions
        node.record.causes.freeze(ids[index.ravel()], node.why("picked by a single index"))
        return [axes[:axis] + picks + axes[axis + 1 :]]
    return [axes[:axis] + [ids[index]] + axes[axis + 1 :]]


def pad(node: Node) -> list[Axes]:
    """Add positions with causes of their own at both ends."""
    axes = axes_of(node)
    amounts = read_list(node, "pads", 1)
    if amounts is None:
        raise Misfit("it has no pads")
    named = node.opset >= 18 and len(node.proto.input) > 3 and node.proto.input[3]
    listed = (read_list(node, "axes", 3) if named else None) or range(len(axes))
    where = [a % len(axes) for a in listed]
    entries: list[Axis | None] = [None] * (2 * len(where))
    for k, axis in enumerate(where):
        before, after = amounts[k], amounts[k + len(where)]
        ids = axes[axis]
        if isinstance(ids, int) or not (before or after):
            continue
        # reflect and edge repeat channels, and negative amounts crop them
        if node.text("mode", "constant") != "constant" or before < 0 or after < 0:
            axes[axis] = stop(node, ids, "padded with its own values")
            continue
        # padding can be cut with the channels that it is added to further on
        ends = [node.record.causes.new(n) if n else None for n in (before, after)]
        axes[axis] = np.concatenate([p for p in (ends[0], ids, ends[1]) if p is not None])
        entries[k], entries[k + len(where)] = ends
    record_literal(node, place(node, "pads", 1), entries)
    return [axes]


def squeeze(node: Node) -> list[Axes]:
    """Remove axes of length 1."""
    axes = axes_of(node)
    listed = read_list(node, "axes", 1)
    if listed is None:
        # without a list, lengths of 1 decide, of which a cut may make more
        dropped = [i for i, d in enumerate(node.shape(0)) if d == 1]
        cuttable = tuple(a for a in axes if isinstance(a, np.ndarray))
        if cuttable:
            node.record.squeezed.append(Squeezed(node.index, tuple(dropped), cuttable))
    else:
        dropped = [a % len(axes) for a in listed]
    return [[a for i, a in enumerate(axes) if i not in dropped]]


def unsqueeze(node: Node) -> list[Axes]:
    """Insert axes of length 1."""
    axes = axes_of(node)
    rank = len(node.out_shape())
    added = {a % rank for a in read_list(node, "axes", 1) or []}
    rest = iter(axes)
    return [[node.single() if i in added else next(rest) for i in range(rank)]]


def expand(node: Node) -> list[Axes]:
    """Broadcast to a shape; a broadcast axis gets causes of its own, as its positions are equal."""
    axes, out = axes_of(node), node.out_shape()
    shape = (1,) * (len(out) - len(axes)) + node.shape(0)
    axes = [*[node.single()] * (len(out) - len(axes)), *axes]
    target = node.partial(1)
    lead = len(out) - (len(target) if target is not None else len(out))
    for i, (before, after) in enumerate(zip(shape, out, strict=False)):
        # an axis that was there before, or whose target is not known, keeps its own causes
        if i < lead or before != 1 or not isinstance(after, int) or target is None:
            continue
        if isinstance(target[i - lead], int | np.integer):
            axes[i] = node.record.causes.fresh(after, node.single())
    entries = [
        # a target of 1 keeps the length of the input, whatever that is after a cut
        None if target is not None and target[i - lead] == 1 else axes[i]
        for i in range(lead, len(out))
    ]
    record_literal(node, ("input", 1), entries)
    return [axes]


def tile(node: Node) -> list[Axes]:
    """Repeat ids; the copies of a single position get causes of their own."""
    axes, repeats = axes_of(node), node.partial(1)
    if repeats is None:
        raise Misfit("repeats are computed from the input")
    entries: list[Axis | None] = [None] * len(repeats)
    for i, (count, size) in enumerate(zip(repeats.tolist(), node.shape(0), strict=False)):
        axis = axes[i]
        if count == 1:
            continue
        if not isinstance(count, int):
            axes[i] = stop(node, axis, "repeated a computed number of times")
        # repeated any number of times, copies of one position need not be cut alike
        elif size == 1:
            axes[i] = entries[i] = node.record.causes.fresh(count, node.single())
        elif isinstance(axis, np.ndarray):
            axes[i] = np.tile(axis, count)
        else:
            axes[i] = node.why("a frozen axis, repeated")
    record_literal(node, ("input", 1), entries)
    return [axes]


def constant_of_shape(node: Node) -> list[Axes]:
    """Create a tensor of a given shape."""
    target = node.partial(0)
    if target is None:
        raise Misfit("its shape is computed from the input")
    sizes = [int(d) if isinstance(d, int | np.integer) else None for d in target]
    axes = [fresh_axis(node, d) for d in sizes]
    record_literal(node, ("input", 0), axes)
    return [axes]


def shape(node: Node) -> list[Axes]:
    """Return the sizes, which must remain those from before the cut."""
    axes = node.operand(0).axes
    start, end = node.integer("start", 0), node.integer("end", len(axes))
    ids = tuple(a if isinstance(a, np.ndarray) else None for a in axes[start:end])
    # of dynamic length, its factors are scaled back
    scaled = tuple(a.arrays if isinstance(a, Folded) else () for a in axes[start:end])
    if any(a is not None for a in ids) or any(scaled):
        node.record.restores.append(Restore(node.index, ids, scaled))
    return [[node.why("its values are sizes")]]


def resize_to_sizes(node: Node) -> list[Axes]:
    """Resize by target sizes, or by scales of some axes; an axis of scale 1 is kept."""
    axes, out = axes_of(node), node.out_shape()
    listed = node.integers("axes")
    order = [a % len(axes) for a in (range(len(axes)) if listed is None else listed)]
    resampled = _find_resampled_axes(node, order)
    for i, (before, after) in enumerate(zip(node.shape(0), out, strict=False)):
        if before != after or not isinstance(before, int) or i in resampled:
            axes[i] = stop(node, axes[i], "resized")
    if node.inputs > 3:
        record_literal(node, ("input", 3), [axes[i] for i in order])
    return [axes]


def _find_resampled_axes(node: Node, order: list[int]) -> set[int]:
    """Return the axes that a Resize may resample although their length need not change.

    `order` holds the axes that its scales, sizes and regions are given for.
    """
    resampled = cropped_axes(node, order)
    if node.inputs > 3:
        policy = node.text("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch" and _find_common_scale(node, order, policy) != 1:
            return set(order)
        return resampled
    # a length of 8 at a scale of 1.1 is still 8
    scales = node.value(2)
    if scales is not None and len(scales) == len(order):
        resampled |= {a for a, s in zip(order, scales, strict=True) if s != 1}
    return resampled


def _find_common_scale(node: Node, order: list[int], policy: str) -> float | None:
    """Return the scale of all axes of a Resize that keeps the aspect ratio; None if unknown."""
    sizes, lengths = node.value(3), [node.dim(0, a) for a in order]
    if sizes is None or len(sizes) != len(order):
        return None
    scales = [int(s) / d for s, d in zip(sizes, lengths, strict=True) if d]
    if len(scales) != len(order):
        return None
    return min(scales) if policy == "not_larger" else max(scales)


MOVES: dict[str, Callable[[Node], list[Axes]]] = {
    "Transpose": transpose,
    "Concat": concat,
    "QLinearConcat": concat,
    "Split": split,
    "Slice": slice_,
    "Gather": gather,
    "Pad": pad,
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
    "Expand": expand,
    "Tile": tile,
    "ConstantOfShape": constant_of_shape,
    "Shape": shape,
    "Reshape": reshape,
    "Flatten": reshape,
    "Resize": resize_to_sizes,
    "Upsample": resize_to_sizes,
    "CenterCropPad": center_crop_pad,
    "Compress": compress,
    "MaxPool": max_pool,
    "MaxUnpool": max_unpool,
    "RotaryEmbedding": rotary_embedding,
}
# operators that follow the factors of dynamic axes, see `onnxprune.analysis.folded`
KEEPS_FACTORS = frozenset("Transpose Squeeze Unsqueeze Shape Reshape Flatten".split())
