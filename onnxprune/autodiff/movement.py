"""Adjoints of the ops that only move values: each is the transpose of a 0/1 matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from onnxprune.autodiff.step import NoGradient, Step
from onnxprune.autodiff.tape import Value, concat

_MOST_READS = 1 << 24  # entries of an index table: positions times the most reads of one


def along(value: Value, axis: int, matrix: np.ndarray) -> Value:
    """Apply a constant matrix (in, out) along one axis."""
    before, size, after = _around(value.shape, axis)
    shape = [*value.shape[:axis], matrix.shape[1], *value.shape[axis + 1 :]]
    if after == 1:
        return value.reshape([before, size]).matmul(value.like(matrix)).reshape(shape)
    return value.like(matrix.T).matmul(value.reshape([before, size, after])).reshape(shape)


def put_back(grad: Value, axis: int, positions: np.ndarray, size: int) -> Value:
    """Adjoint of x.take(positions) along an axis of that size: what was read is given back to where it came from.

    positions: (grad.shape[axis],), source of each; -1 = came from nowhere.
    """
    counts = np.bincount(positions[positions >= 0], minlength=size)
    most = max(1, int(counts.max(initial=0)))
    if most == 1 and len(positions) and positions[0] >= 0 and (np.diff(positions) == 1).all():
        return grad.pad_axis(axis, int(positions[0]), size - 1 - int(positions[-1]))
    if size * most > _MOST_READS:
        raise NoGradient(
            f"{len(positions)} indices read one of {size} positions up to {most} times"
        )
    order = np.argsort(positions, kind="stable")
    order = order[positions[order] >= 0]
    rank = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    source = np.full((size, most), len(positions))
    source[positions[order], rank] = order
    padded = grad.pad_axis(axis, 0, 1) if (counts < most).any() else grad
    taken = padded.take(axis, source.ravel())
    if most == 1:
        return taken
    shape = [*grad.shape[:axis], size, most, *grad.shape[axis + 1 :]]
    return taken.reshape(shape).reduce("ReduceSum", [axis + 1], keepdims=False)


def reshape(s: Step) -> list[Value | None]:
    """Reshape, Flatten, Squeeze, Unsqueeze."""
    return [s.grad.reshape(s.x.shape)]


def transpose(s: Step) -> list[Value | None]:
    perm = s.attribute("perm", list(range(len(s.x.shape)))[::-1])
    return [s.grad.transpose([int(i) for i in np.argsort(perm)])]


def expand(s: Step) -> list[Value | None]:
    return [s.grad.sum_to(s.x.shape)]


def tile(s: Step) -> list[Value | None]:
    pairs = [
        n for have, out in zip(s.x.shape, s.y.shape, strict=False) for n in (out // have, have)
    ]
    blocks = s.grad.reshape(pairs)
    return [blocks.reduce("ReduceSum", range(0, len(pairs), 2)).reshape(s.x.shape)]


def concatenate(s: Step) -> list[Value | None]:
    axis = s.attribute("axis", 1) % len(s.y.shape)
    grads: list[Value | None] = []
    start = 0
    for index, need in enumerate(s.needs):
        size = s.operand(index).shape[axis]
        grads.append(s.grad.slice(axis, start, start + size) if need else None)
        start += size
    return grads


def split(s: Step) -> list[Value | None]:
    axis = s.attribute("axis", 0) % len(s.x.shape)
    dtype = next(g.dtype for g in s.grads if g is not None)
    parts = []
    for output, grad in zip(s.outputs, s.grads, strict=False):
        if output is None:
            raise NoGradient("the size of a part is not known")
        parts.append(grad if grad is not None else s.tape.filled(output.shape, 0.0, dtype))
    return [concat(parts, axis)]


def slice_(s: Step) -> list[Value | None]:
    starts, ends = s.numbers(1, "starts") or [], s.numbers(2, "ends") or []
    axes = s.numbers(3, "axes", range(len(starts))) or []
    steps = s.numbers(4, "", [1] * len(starts)) or []
    grad = s.grad
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=False):
        axis %= len(s.x.shape)
        size = s.x.shape[axis]
        stop = None if step < 0 and end < -size else end
        grad = put_back(grad, axis, np.arange(size)[start:stop:step], size)
    return [grad]


def pad(s: Step) -> list[Value | None]:
    s.only_first()
    pads = s.numbers(1, "pads") or []
    rank, half = len(s.x.shape), len(pads) // 2
    axes = s.numbers(3, "", range(rank)) or []
    mode = s.attribute("mode", "constant")
    grad = s.grad
    for axis, before, after in zip(axes, pads[:half], pads[half:], strict=False):
        axis %= rank
        if before or after:
            grad = put_back(
                grad, axis, _padded(s.x.shape[axis], before, after, mode), s.x.shape[axis]
            )
    return [grad]


def gather(s: Step) -> list[Value | None]:
    indices = s.known(1)
    if indices is None:
        raise NoGradient("the indices depend on the data")
    axis = s.attribute("axis", 0) % len(s.x.shape)
    before, size, after = _around(s.x.shape, axis)
    grad = s.grad.reshape([before, indices.size, after])
    return [put_back(grad, 1, indices.ravel() % size, size).reshape(s.x.shape)]


def gather_nd(s: Step) -> list[Value | None]:
    indices = s.known(1)
    if indices is None or s.attribute("batch_dims", 0):
        raise NoGradient("the indices depend on the data, or batch_dims is not 0")
    depth = indices.shape[-1]
    lead, rest = s.x.shape[:depth], math.prod(s.x.shape[depth:])
    wrapped = [
        column % size for column, size in zip(indices.reshape(-1, depth).T, lead, strict=False)
    ]
    positions = np.ravel_multi_index(wrapped, lead)
    grad = s.grad.reshape([len(positions), rest])
    return [put_back(grad, 0, positions, math.prod(lead)).reshape(s.x.shape)]


def top_k(s: Step) -> list[Value | None]:
    s.only_first()
    if s.outputs[1] is None:
        raise NoGradient("the indices of TopK have no name")
    zeros = s.tape.filled(s.x.shape, 0.0, s.grad.dtype)
    return [zeros.scatter(s.outputs[1], s.grad, s.attribute("axis", -1))]


def cumulative_sum(s: Step) -> list[Value | None]:
    s.only_first()
    flags = {"reverse": 1 - s.attribute("reverse", 0), "exclusive": s.attribute("exclusive", 0)}
    return [s.tape.emit("CumSum", [s.grad, s.operand(1)], s.x.shape, s.grad.dtype, flags)]


def triangle(s: Step) -> list[Value | None]:
    inputs = [s.grad, s.optional(1)] if s.optional(1) is not None else [s.grad]
    return [
        s.tape.emit("Trilu", inputs, s.x.shape, s.grad.dtype, {"upper": s.attribute("upper", 1)})
    ]


def depth_to_space(s: Step) -> list[Value | None]:
    n, c, h, w = s.x.shape
    b = s.attribute("blocksize")
    grad = s.grad.reshape([n, c // b**2, h, b, w, b])
    perm = [0, 3, 5, 1, 2, 4] if s.attribute("mode", "DCR") == "DCR" else [0, 1, 3, 5, 2, 4]
    return [grad.transpose(perm).reshape(s.x.shape)]


def space_to_depth(s: Step) -> list[Value | None]:
    n, c, h, w = s.x.shape
    b = s.attribute("blocksize")
    return [
        s.grad.reshape([n, b, b, c, h // b, w // b])
        .transpose([0, 3, 4, 1, 5, 2])
        .reshape(s.x.shape)
    ]


def _around(shape: Sequence[int], axis: int) -> tuple[int, int, int]:
    """Elements before, along and after an axis."""
    return math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])


def _padded(size: int, before: int, after: int, mode: str) -> np.ndarray:
    """Source position of each place of a padded axis, -1 for the constant."""
    source = np.arange(size)[max(0, -before) : size - max(0, -after)]
    width = (max(0, before), max(0, after))
    if mode == "constant":
        return np.pad(source, width, constant_values=-1)
    if mode not in ("reflect", "edge", "wrap"):
        raise NoGradient(f"mode {mode!r} is not known")
    return np.pad(source, width, mode=mode)  # type: ignore[call-overload]
