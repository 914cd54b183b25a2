"""Gradients of operators that only move values: each is the transpose of a 0/1 matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from onnxprune.autodiff.step import BackwardStep, NoGradient
from onnxprune.autodiff.tape import Value, concat

_MAX_READS = 1 << 24  # entries of an index table: positions times the most reads of one of them


def along(value: Value, axis: int, matrix: np.ndarray) -> Value:
    """Multiply by a constant matrix (in, out) along one axis."""
    before, size, after = _split_size(value.shape, axis)
    shape = [*value.shape[:axis], matrix.shape[1], *value.shape[axis + 1 :]]
    if after == 1:
        return value.reshape([before, size]).matmul(value.like(matrix)).reshape(shape)
    return value.like(matrix.T).matmul(value.reshape([before, size, after])).reshape(shape)


def put_back(grad: Value, axis: int, positions: np.ndarray, size: int) -> Value:
    """Return the adjoint of x.take(positions) along an axis: gradients sum up at their source.

    Parameters
    ----------
    grad
        Gradient of what was taken.
    positions
        (grad.shape[axis],), the source of each element; -1 = none, as for padding.
    size
        Length of the axis of x.

    Raises
    ------
    NoGradient
        The index table would be too large.
    """
    counts = np.bincount(positions[positions >= 0], minlength=size)
    most = max(1, int(counts.max(initial=0)))
    # one contiguous range: padding suffices
    if most == 1 and len(positions) and positions[0] >= 0 and (np.diff(positions) == 1).all():
        return grad.pad_axis(axis, int(positions[0]), size - 1 - int(positions[-1]))
    # one element read very often, such as a padding token, needs a row per read
    if size * most > _MAX_READS:
        raise NoGradient(
            f"{len(positions)} indices read one of {size} positions up to {most} times"
        )
    # row i of `source` lists the elements that were read from i, filled with the index of a zero
    order = np.argsort(positions, kind="stable")
    order = order[positions[order] >= 0]
    rank = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    source = np.full((size, most), len(positions))
    source[positions[order], rank] = order
    # index len(positions) reads this zero
    padded = grad.pad_axis(axis, 0, 1) if (counts < most).any() else grad
    taken = padded.take(axis, source.ravel())
    if most == 1:
        return taken
    shape = [*grad.shape[:axis], size, most, *grad.shape[axis + 1 :]]
    return taken.reshape(shape).reduce("ReduceSum", [axis + 1], keepdims=False)


def reshape(s: BackwardStep) -> list[Value | None]:
    """Differentiate Reshape, Flatten, Squeeze and Unsqueeze."""
    return [s.grad.reshape(s.x.shape)]


def transpose(s: BackwardStep) -> list[Value | None]:
    """Differentiate Transpose."""
    perm = s.attribute("perm", list(range(len(s.x.shape)))[::-1])
    return [s.grad.transpose([int(i) for i in np.argsort(perm)])]


def expand(s: BackwardStep) -> list[Value | None]:
    """Differentiate Expand."""
    return [s.grad.sum_to(s.x.shape)]


def tile(s: BackwardStep) -> list[Value | None]:
    """Differentiate Tile."""
    pairs = []
    for size, tiled in zip(s.x.shape, s.y.shape, strict=True):
        # an axis of repetitions in front of each axis
        pairs += [tiled // size, size]
    blocks = s.grad.reshape(pairs)
    return [blocks.reduce("ReduceSum", range(0, len(pairs), 2)).reshape(s.x.shape)]


def concatenate(s: BackwardStep) -> list[Value | None]:
    """Differentiate Concat."""
    axis = s.attribute("axis", 1) % len(s.y.shape)
    grads: list[Value | None] = []
    start = 0
    for index, need in enumerate(s.needs):
        size = s.operand(index).shape[axis]
        grads.append(s.grad.slice(axis, start, start + size) if need else None)
        start += size
    return grads


def split(s: BackwardStep) -> list[Value | None]:
    """Differentiate Split."""
    axis = s.attribute("axis", 0) % len(s.x.shape)
    dtype = next(g.dtype for g in s.grads if g is not None)
    parts = []
    for output, grad in zip(s.outputs, s.grads, strict=True):
        if output is None:
            raise NoGradient("the size of a part is not known")
        # a part that nothing reads has a gradient of zero
        parts.append(grad if grad is not None else s.tape.filled(output.shape, 0.0, dtype))
    return [concat(parts, axis)]


def slice_(s: BackwardStep) -> list[Value | None]:
    """Differentiate Slice."""
    starts, ends = s.numbers(1, "starts") or [], s.numbers(2, "ends") or []
    axes = s.numbers(3, "axes", range(len(starts))) or []
    steps = s.numbers(4, "", [1] * len(starts)) or []
    grad = s.grad
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        axis %= len(s.x.shape)
        size = s.x.shape[axis]
        # going backwards, an end before the first element includes it
        stop = None if step < 0 and end < -size else end
        grad = put_back(grad, axis, np.arange(size)[start:stop:step], size)
    return [grad]


def pad(s: BackwardStep) -> list[Value | None]:
    """Differentiate Pad."""
    s.only_first()
    pads = s.numbers(1, "pads") or []
    rank, half = len(s.x.shape), len(pads) // 2
    axes = s.numbers(3, "", range(rank)) or []
    mode = s.attribute("mode", "constant")
    grad = s.grad
    for axis, before, after in zip(axes, pads[:half], pads[half:], strict=True):
        axis %= rank
        size = s.x.shape[axis]
        if before or after:
            grad = put_back(grad, axis, _find_padded_sources(size, before, after, mode), size)
    return [grad]


def gather(s: BackwardStep) -> list[Value | None]:
    """Differentiate Gather with constant indices."""
    indices = s.known(1)
    if indices is None:
        raise NoGradient("the indices depend on the data")
    axis = s.attribute("axis", 0) % len(s.x.shape)
    before, size, after = _split_size(s.x.shape, axis)
    grad = s.grad.reshape([before, indices.size, after])
    # negative indices count from the end
    return [put_back(grad, 1, indices.ravel() % size, size).reshape(s.x.shape)]


def gather_nd(s: BackwardStep) -> list[Value | None]:
    """Differentiate GatherND with constant indices."""
    indices = s.known(1)
    if indices is None or s.attribute("batch_dims", 0):
        raise NoGradient("the indices depend on the data, or batch_dims is not 0")
    depth = indices.shape[-1]
    lead, rest = s.x.shape[:depth], math.prod(s.x.shape[depth:])
    columns = indices.reshape(-1, depth).T
    # negative indices count from the end
    wrapped = [column % size for column, size in zip(columns, lead, strict=True)]
    positions = np.ravel_multi_index(wrapped, lead)
    grad = s.grad.reshape([len(positions), rest])
    return [put_back(grad, 0, positions, math.prod(lead)).reshape(s.x.shape)]


def top_k(s: BackwardStep) -> list[Value | None]:
    """Differentiate TopK by its values."""
    s.only_first()
    if s.outputs[1] is None:
        raise NoGradient("the indices of TopK have no name")
    zeros = s.tape.filled(s.x.shape, 0.0, s.grad.dtype)
    return [zeros.scatter(s.outputs[1], s.grad, s.attribute("axis", -1))]


def cumulative_sum(s: BackwardStep) -> list[Value | None]:
    """Differentiate CumSum: a sum in the other direction."""
    s.only_first()
    flags = {"reverse": 1 - s.attribute("reverse", 0), "exclusive": s.attribute("exclusive", 0)}
    return [s.tape.emit("CumSum", [s.grad, s.operand(1)], s.x.shape, s.grad.dtype, flags)]


def trilu(s: BackwardStep) -> list[Value | None]:
    """Differentiate Trilu."""
    inputs = [s.grad, s.optional(1)] if s.optional(1) is not None else [s.grad]
    attributes = {"upper": s.attribute("upper", 1)}
    return [s.tape.emit("Trilu", inputs, s.x.shape, s.grad.dtype, attributes)]


def depth_to_space(s: BackwardStep) -> list[Value | None]:
    """Differentiate DepthToSpace."""
    n, c, h, w = s.x.shape
    b = s.attribute("blocksize")
    grad = s.grad.reshape([n, c // b**2, h, b, w, b])
    perm = [0, 3, 5, 1, 2, 4] if s.attribute("mode", "DCR") == "DCR" else [0, 1, 3, 5, 2, 4]
    return [grad.transpose(perm).reshape(s.x.shape)]


def space_to_depth(s: BackwardStep) -> list[Value | None]:
    """Differentiate SpaceToDepth."""
    n, c, h, w = s.x.shape
    b = s.attribute("blocksize")
    blocks = s.grad.reshape([n, b, b, c, h // b, w // b])
    return [blocks.transpose([0, 3, 4, 1, 5, 2]).reshape(s.x.shape)]


def _split_size(shape: Sequence[int], axis: int) -> tuple[int, int, int]:
    """Return the number of elements before, along and after an axis."""
    return math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])


def _find_padded_sources(size: int, before: int, after: int, mode: str) -> np.ndarray:
    """Return the source of each position of a padded axis, -1 for the constant."""
    # negative pads crop
    source = np.arange(size)[max(0, -before) : size - max(0, -after)]
    width = (max(0, before), max(0, after))
    if mode == "constant":
        return np.pad(source, width, constant_values=-1)
    if mode == "reflect":
        return np.pad(source, width, "reflect")
    if mode == "edge":
        return np.pad(source, width, "edge")
    if mode == "wrap":
        return np.pad(source, width, "wrap")
    raise NoGradient(f"mode {mode!r} is not known")
