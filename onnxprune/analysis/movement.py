"""Ops that move positions about: each is the op itself, applied to lists of ids.

A function takes a Node and gives the axes of its outputs; literals that spell sizes are recorded for refitting.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import numpy as np

from onnxprune.analysis.apply import Misfit
from onnxprune.analysis.causes import Axis
from onnxprune.analysis.state import Node, Refit, Restore, Select
from onnxprune.ir.values import Dim, is_static

Axes = list[Axis]


def axes_of(node: Node, slot: int = 0) -> Axes:
    """Axes of an operand; a constant that has none yet gets fresh causes."""
    tensor = node.operands[slot]
    if tensor is None:
        raise Misfit(f"operand {slot} is missing")
    for i, (axis, size) in enumerate(zip(tensor.axes, node.shape(slot), strict=False)):
        if axis is None:
            tensor.axes[i] = (
                node.record.causes.fresh(size, node.single())
                if isinstance(size, int)
                else node.why("dynamic axis")
            )
    return list(tensor.axes)  # type: ignore[arg-type]


def _ids(node: Node, axis: Axis, size: Dim) -> np.ndarray:
    """Array form of an axis."""
    if isinstance(axis, np.ndarray):
        return axis
    if not isinstance(size, int):
        raise Misfit("a dynamic axis is taken apart")
    return node.record.causes.frozen(axis, size)


def _refit(
    node: Node,
    where: tuple[str, str | int],
    entries: list[Axis | None],
    watch: Sequence[np.ndarray] = (),
) -> None:
    """Note that a literal is to be written anew; where it is computed and nothing of it is known, nothing can be, and the axes stay."""
    arrays = tuple(e if isinstance(e, np.ndarray) else None for e in entries)
    kind, slot = where
    if (
        kind == "input"
        and int(slot) < len(node.names)
        and node.names[int(slot)]
        and node.partial(int(slot)) is None
    ):
        for axis in (*arrays, *watch):
            if axis is not None:
                stop(node, axis, "of a computed size")
    elif any(a is not None for a in arrays):
        node.record.refits.append(Refit(node.index, where, arrays, watch=tuple(watch)))


def _where(node: Node, name: str, slot: int) -> tuple[str, str | int]:
    """Where a list of sizes stands: an input in newer opsets, an attribute in older ones."""
    return (
        ("input", slot)
        if slot < len(node.proto.input) and node.proto.input[slot]
        else ("attribute", name)
    )


def _list(node: Node, name: str, slot: int) -> list[int] | None:
    """A list of integers given as attribute or constant input; None where absent; Misfit where not constant."""
    if _where(node, name, slot)[0] == "attribute":
        found = node.attribute(name)
        return None if found is None else [int(v) for v in found]  # type: ignore[attr-defined]
    value = node.value(slot)
    if value is None:
        raise Misfit(f"{name} is computed from the input")
    if value.ndim > 1 or value.dtype.kind not in "iu":
        raise Misfit(f"{name} is not a list of integers")
    return [int(v) for v in value.ravel()]


def transpose(node: Node) -> list[Axes]:
    axes = axes_of(node)
    perm = node.attribute("perm") or range(len(axes))[::-1]
    return [[axes[p] for p in perm]]  # type: ignore[attr-defined]


def concat(node: Node) -> list[Axes]:
    slots = (
        range(2, node.inputs, 3) if node.op == "QLinearConcat" else range(node.inputs)
    )  # a part, its scale, its zero point
    parts = [axes_of(node, s) for s in slots]
    rank = len(parts[0])
    axis = int(node.attribute("axis", 1)) % rank  # type: ignore[call-overload]
    out = parts[0]
    for part in parts[1:]:
        for i in range(rank):
            if i != axis:
                node.record.causes.unify(out[i], part[i])
                out[i] = part[i] if isinstance(part[i], int) else out[i]
    if all(isinstance(p[axis], int) for p in parts):
        return [out]
    try:
        out[axis] = np.concatenate(
            [_ids(node, p[axis], node.shape(s)[axis]) for s, p in zip(slots, parts, strict=False)]
        )
    except Misfit:
        why = node.why("joined with a dynamic axis")
        for part in parts:
            node.record.causes.freeze(part[axis], why)
        out[axis] = why
    return [out]


def split(node: Node) -> list[Axes]:
    axes = axes_of(node)
    axis = int(node.attribute("axis", 0)) % len(axes)  # type: ignore[call-overload]
    count = len(node.proto.output)
    if isinstance(axes[axis], int):
        return [list(axes) for _ in range(count)]
    ids = axes[axis]
    sizes = _list(node, "split", 1) or [len(p) for p in np.array_split(ids, count)]
    if node.attribute("num_outputs") is not None:
        step = -(-len(ids) // count)  # type: ignore[arg-type]
        sizes = [step] * (count - 1) + [len(ids) - step * (count - 1)]  # type: ignore[arg-type]
    parts = np.split(ids, np.cumsum(sizes)[:-1])
    _refit(node, ("input", 1) if node.opset >= 13 else ("attribute", "split"), list(parts))
    return [[p if i == axis else a for i, a in enumerate(axes)] for p in parts]


def slice_(node: Node) -> list[Axes]:
    axes = axes_of(node)
    if node.opset < 10:
        starts, ends, where = (
            _list(node, "starts", 9) or [],
            _list(node, "ends", 9) or [],
            _list(node, "axes", 9),
        )
    else:
        if all(isinstance(a, int) for a in axes):
            return [axes]
        where = _list(node, "axes", 3)
        if node.value(1) is None or node.value(2) is None:
            return [_freeze_axes(node, axes, where, "sliced by computed bounds")]
        starts, ends = _list(node, "starts", 1) or [], _list(node, "ends", 2) or []
    steps = (_list(node, "steps", 4) if node.opset >= 10 else None) or [1] * len(starts)
    where = [a % len(axes) for a in (where if where is not None else range(len(starts)))]
    new_starts: list[Axis | None] = [None] * len(where)
    new_ends: list[Axis | None] = [None] * len(where)
    watch = []
    for k, (start, end, axis, step) in enumerate(zip(starts, ends, where, steps, strict=False)):
        ids = axes[axis]
        if isinstance(ids, int):
            continue
        index = np.arange(len(ids))[
            slice(start, None if step < 0 and end < -len(ids) else end, step)
        ]
        axes[axis] = ids[index]
        if len(index) == len(ids) and step == 1:
            continue
        if step != 1 or not len(index):
            if len(where) > 1:
                axes[axis] = stop(node, ids, "sliced with a step together with other axes")
            else:
                node.record.selects.append(Select(node.index, axis, ids, index))
            continue
        new_starts[k], new_ends[k] = ids[: index[0]], ids[: index[-1] + 1]
        watch.append(ids)
    _refit(node, _where(node, "starts", 1), new_starts, watch)
    _refit(node, _where(node, "ends", 2), new_ends, watch)
    return [axes]


def gather(node: Node) -> list[Axes]:
    axes = axes_of(node)
    axis = int(node.attribute("axis", 0)) % len(axes)  # type: ignore[call-overload]
    index = node.value(1)
    ids, picks = axes[axis], axes_of(node, 1)
    if node.operands[1].constant:  # type: ignore[union-attr]
        picks = _freeze_axes(node, picks, None, "a constant index")
    if not isinstance(ids, np.ndarray):
        return [axes[:axis] + picks + axes[axis + 1 :]]
    if index is None or index.ndim != 1:
        stop(node, ids, "picked by a computed or single index")
        return [axes[:axis] + picks + axes[axis + 1 :]]
    index = np.where(index < 0, index + len(ids), index)
    node.record.selects.append(Select(node.index, axis, ids, index))
    return [axes[:axis] + [ids[index]] + axes[axis + 1 :]]


def pad(node: Node) -> list[Axes]:
    axes = axes_of(node)
    amounts = _list(node, "pads", 1)
    where = [
        a % len(axes)
        for a in (
            _list(node, "axes", 3)
            if node.opset >= 18 and len(node.proto.input) > 3 and node.proto.input[3]
            else None
        )
        or range(len(axes))
    ]
    entries: list[Axis | None] = [None] * (2 * len(where))
    for k, axis in enumerate(where):
        before, after = amounts[k], amounts[k + len(where)]  # type: ignore[index]
        ids = axes[axis]
        if isinstance(ids, int) or not (before or after):
            continue
        if node.attribute("mode", "constant") != "constant" or before < 0 or after < 0:
            axes[axis] = stop(node, ids, "padded from its own values")
            continue
        ends = [node.record.causes.new(n) if n else None for n in (before, after)]
        axes[axis] = np.concatenate([p for p in (ends[0], ids, ends[1]) if p is not None])
        entries[k], entries[k + len(where)] = ends
    _refit(node, _where(node, "pads", 1), entries)
    return [axes]


def squeeze(node: Node) -> list[Axes]:
    axes = axes_of(node)
    gone = _list(node, "axes", 1)
    shape = node.shape(0)
    gone = (
        [i for i, d in enumerate(shape) if d == 1]
        if gone is None
        else [a % len(axes) for a in gone]
    )
    return [[a for i, a in enumerate(axes) if i not in gone]]


def unsqueeze(node: Node) -> list[Axes]:
    axes = axes_of(node)
    rank = len(node.out_shape())
    added = {a % rank for a in _list(node, "axes", 1) or []}
    rest = iter(axes)
    return [[node.single() if i in added else next(rest) for i in range(rank)]]


def expand(node: Node) -> list[Axes]:
    """A broadcast axis gets causes of its own: its positions are equal, and the target is refitted."""
    axes, out = axes_of(node), node.out_shape()
    shape = (1,) * (len(out) - len(axes)) + node.shape(0)
    axes = [*[node.single()] * (len(out) - len(axes)), *axes]
    target = node.partial(1)
    lead = len(out) - (len(target) if target is not None else len(out))
    for i, (have, want) in enumerate(zip(shape, out, strict=False)):
        if (
            have == 1
            and isinstance(want, int)
            and target is not None
            and isinstance(target[i - lead], int | np.integer)
            and i >= lead
        ):
            axes[i] = node.record.causes.fresh(want, node.single())
    _refit(
        node,
        ("input", 1),
        [
            None if target is not None and target[i - lead] == 1 else axes[i]
            for i in range(lead, len(out))
        ],
    )
    return [axes]


def tile(node: Node) -> list[Axes]:
    axes, repeats = axes_of(node), node.partial(1)
    if repeats is None:
        raise Misfit("repeats are computed from the input")
    entries: list[Axis | None] = [None] * len(repeats)
    for i, (count, size) in enumerate(zip(repeats.tolist(), node.shape(0), strict=False)):
        if count == 1:
            continue
        if not isinstance(count, int):
            axes[i] = stop(node, axes[i], "repeated a computed number of times")
        elif size == 1:
            axes[i] = entries[i] = node.record.causes.fresh(count, node.single())
        elif isinstance(axes[i], np.ndarray):
            axes[i] = np.tile(axes[i], count)
        else:
            axes[i] = node.why("repeated frozen axis")
    _refit(node, ("input", 1), entries)
    return [axes]


def constant_of_shape(node: Node) -> list[Axes]:
    target = node.partial(0)
    if target is None:
        raise Misfit("its shape is computed from the input")
    axes: Axes = [
        node.record.causes.fresh(int(d), node.single())
        if isinstance(d, int | np.integer)
        else node.why("dynamic axis")
        for d in target
    ]
    _refit(node, ("input", 0), list(axes))
    return [axes]


def shape(node: Node) -> list[Axes]:
    tensor = node.operands[0]
    axes = tensor.axes if tensor is not None else []
    start, end = int(node.attribute("start", 0)), int(node.attribute("end", len(axes)))  # type: ignore[call-overload]
    told = tuple(a if isinstance(a, np.ndarray) else None for a in axes[start:end])
    if any(a is not None for a in told):
        node.record.restores.append(Restore(node.index, told))
    return [[node.why("a shape")]]


def resize_to_sizes(node: Node) -> list[Axes]:
    """Resize by target sizes: an axis whose length stays is carried, and its entry refitted."""
    axes, out = axes_of(node), node.out_shape()
    for i, (have, want) in enumerate(zip(node.shape(0), out, strict=False)):
        if have != want or not isinstance(have, int):
            axes[i] = stop(node, axes[i], "resized")
    if node.inputs > 3:
        where = node.attribute("axes")
        order = range(len(axes)) if where is None else [int(a) % len(axes) for a in where]  # type: ignore[attr-defined]
        _refit(node, ("input", 3), [axes[i] for i in order])
    return [axes]


def stop(node: Node, axis: Axis, text: str) -> int:
    why = axis if isinstance(axis, int) else node.why(text)
    node.record.causes.freeze(axis, why)
    return why


def _freeze_axes(node: Node, axes: Axes, where: list[int] | None, text: str) -> Axes:
    gone = range(len(axes)) if where is None else [a % len(axes) for a in where]
    return [stop(node, a, text) if i in gone else a for i, a in enumerate(axes)]


# ---------------------------------------------------------------- reshape


def reshape(node: Node) -> list[Axes]:
    axes, out = axes_of(node), node.out_shape()
    result = regroup(node, axes, node.shape(0), out)
    if node.op == "Reshape":
        target = node.partial(1)
        literal = target if target is not None else np.full(len(out), None, object)
        _refit(
            node,
            _where(node, "shape", 1),
            [None if literal[i] in (-1, None) else a for i, a in enumerate(result)],
        )
        for axis, size in zip(result, literal, strict=False):
            if size is None and isinstance(axis, np.ndarray):
                stop(node, axis, "reshaped to a computed length")
    return [result]


def regroup(node: Node, axes: Axes, before: tuple[Dim, ...], after: tuple[Dim, ...]) -> Axes:
    """Axes of the output of a row-major reshape."""
    source = [(a, d) for a, d in zip(axes, before, strict=False) if d != 1]
    places = [i for i, d in enumerate(after) if d != 1]
    result: Axes = [node.single()] * len(after)
    target = [after[i] for i in places]
    found: Axes = [0] * len(target)
    head = 0
    while (
        head < min(len(source), len(target))
        and source[head][1] == target[head]
        and target[head] is not None
    ):
        found[head] = source[head][0]
        head += 1
    tail = 0
    while (
        tail < min(len(source), len(target)) - head
        and source[-1 - tail][1] == target[-1 - tail]
        and target[-1 - tail] is not None
    ):
        found[len(target) - 1 - tail] = source[-1 - tail][0]
        tail += 1
    middle = source[head : len(source) - tail]
    sizes = target[head : len(target) - tail]
    found[head : len(target) - tail] = _regroup_middle(node, middle, sizes)
    for i, axis in zip(places, found, strict=False):
        result[i] = axis
    return result


def _regroup_middle(node: Node, source: list[tuple[Axis, Dim]], sizes: list[Dim]) -> Axes:
    if not any(isinstance(a, np.ndarray) for a, _ in source):
        return [source[0][0] if source else node.single()] * len(sizes)
    lengths = [d for _, d in source]
    if not is_static(lengths) or not is_static(sizes):
        return _around_dynamic(node, source, sizes)
    if prod(lengths) != prod(sizes):
        raise Misfit(f"lengths {lengths} are reshaped to {sizes}")
    cuts = sorted(set(np.cumprod(lengths).tolist()) | set(np.cumprod(sizes).tolist()))
    ends = [1, *cuts]
    measured = [(axis, d) for (axis, _), d in zip(source, lengths, strict=False)]
    if all(b % a == 0 for a, b in zip(ends, ends[1:], strict=False)):
        return _collect(node, _factor(node, measured, ends), sizes, ends)
    return _split_all(node, _merge_all(node, measured), sizes)


def _around_dynamic(node: Node, source: list[tuple[Axis, Dim]], sizes: list[Dim]) -> Axes:
    """Blocks of equal product at either end, apart from what lies between, which is frozen."""
    lengths = [d for _, d in source]
    i, j = _equal_blocks(lengths, sizes)
    k, m = _equal_blocks(lengths[i:][::-1], sizes[j:][::-1])
    k, m = len(source) - k, len(sizes) - m
    why = node.why("merged with a dynamic axis")
    between: Axes = [source[i][0]] if m - j == k - i == 1 else [why] * (m - j)
    frozen = [a for a, _ in source[i:k]]
    if k > i and m > j:
        frozen[-1], between[-1] = _innermost(node, source[k - 1], sizes[m - 1], why, between[-1])
    for axis in frozen:
        node.record.causes.freeze(axis, why)
    return [
        *(_regroup_middle(node, source[:i], sizes[:j]) if j else []),
        *between,
        *(_regroup_middle(node, source[k:], sizes[m:]) if len(sizes) > m else []),
    ]


def _innermost(
    node: Node, last: tuple[Axis, Dim], size: Dim, why: int, otherwise: Axis
) -> tuple[Axis, Axis]:
    """(what to freeze of the last axis of a block, the last axis it becomes): where one length divides the other, positions of the shorter go on."""
    axis, length = last
    if (
        not isinstance(axis, np.ndarray)
        or not isinstance(length, int)
        or not isinstance(size, int)
        or length == size
    ):
        return axis, otherwise
    if length % size == 0:
        return node.record.causes.split(axis, length // size, size, node.single())
    if size % length == 0:
        return why, node.record.causes.merge(why, size // length, axis, length)
    return axis, otherwise


def _equal_blocks(a: Sequence[Dim], b: Sequence[Dim]) -> tuple[int, int]:
    """The longest beginnings of two lists, known lengths only, that have the same product."""
    i = j = 0
    best, left, right = (0, 0), 1, 1
    while True:
        if left == right:
            best = (i, j)
        more, other = a[i] if i < len(a) else None, b[j] if j < len(b) else None
        if left <= right and isinstance(more, int):
            left, i = left * more, i + 1
        elif left > right and isinstance(other, int):
            right, j = right * other, j + 1
        else:
            return best


def _factor(node: Node, source: list[tuple[Axis, int]], ends: list[int]) -> list[tuple[Axis, int]]:
    """The input axes taken apart at every boundary of input or output."""
    parts: list[tuple[Axis, int]] = []
    done, k = 1, 1
    for axis, size in source:
        done *= size
        sizes = []
        while k < len(ends) and ends[k] <= done:
            sizes.append(ends[k] // ends[k - 1])
            k += 1
        parts += zip(_split_all(node, axis, sizes), sizes, strict=False)
    return parts


def _collect(
    node: Node, parts: list[tuple[Axis, int]], sizes: Sequence[int], ends: list[int]
) -> Axes:
    out, k, done = [], 0, 1
    for size in sizes:
        done *= size
        group = []
        while k < len(parts) and ends[k + 1] <= done:
            group.append(parts[k])
            k += 1
        out.append(_merge_all(node, group))
    return out


def _merge_all(node: Node, parts: list[tuple[Axis, int]]) -> Axis:
    axis, size = parts[0]
    for more, length in parts[1:]:
        axis, size = node.record.causes.merge(axis, size, more, length), size * length
    return axis


def _split_all(node: Node, axis: Axis, sizes: Sequence[int]) -> Axes:
    out = []
    for n, size in enumerate(sizes[:-1]):
        row, axis = node.record.causes.split(axis, size, prod(sizes[n + 1 :]), node.single())
        out.append(row)
    return [*out, axis]


def literals(op: str) -> int:
    """First operand that is not data but spells sizes, positions or bounds, all behind it being the like."""
    return {"Concat": 1 << 30, "QLinearConcat": 1 << 30, "Gather": 2, "ConstantOfShape": 0}.get(
        op, 1
    )


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
}
