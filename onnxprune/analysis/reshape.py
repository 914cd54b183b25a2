"""Row-major reshapes of axes: lengths are factored at every boundary of input and output."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from onnxprune.analysis.causes import Axis
from onnxprune.analysis.literals import Axes, axes_of, place, record_literal, stop
from onnxprune.analysis.rule import Misfit
from onnxprune.analysis.state import Node
from onnxprune.ir.values import Dim, is_static


def reshape(node: Node) -> list[Axes]:
    """Reshape and Flatten."""
    axes, out = axes_of(node), node.out_shape()
    result = regroup(node, axes, node.shape(0), out)
    if node.op != "Reshape":
        return [result]
    target = node.partial(1)
    literal = target if target is not None else np.full(len(out), None, object)
    entries = [None if literal[i] in (-1, None) else a for i, a in enumerate(result)]
    record_literal(node, place(node, "shape", 1), entries)
    for axis, size in zip(result, literal, strict=False):
        if size is None and isinstance(axis, np.ndarray):
            stop(node, axis, "reshaped to a computed length")
    return [result]


def regroup(node: Node, axes: Axes, before: tuple[Dim, ...], after: tuple[Dim, ...]) -> Axes:
    """Return the axes of the output of a row-major reshape.

    Parameters
    ----------
    node
        Node that reshapes.
    axes
        Axes of its input.
    before, after
        Shapes of its input and output.
    """
    # axes of length 1 have no part in it
    source = [(a, d) for a, d in zip(axes, before, strict=False) if d != 1]
    places = [i for i, d in enumerate(after) if d != 1]
    lengths, target = [d for _, d in source], [after[i] for i in places]
    head = _equal_prefix(lengths, target)
    tail = _equal_prefix(lengths[head:][::-1], target[head:][::-1])
    end = len(source) - tail
    middle = _regroup_middle(node, source[head:end], target[head : len(target) - tail])
    kept = [a for a, _ in source]
    result: Axes = [node.single()] * len(after)
    for i, axis in zip(places, [*kept[:head], *middle, *kept[end:]], strict=False):
        result[i] = axis
    return result


def _equal_prefix(a: Sequence[Dim], b: Sequence[Dim]) -> int:
    """Return how many lengths, from the left, are known and equal."""
    for n, (x, y) in enumerate(zip(a, b, strict=False)):
        if x is None or x != y:
            return n
    return min(len(a), len(b))


def _regroup_middle(node: Node, source: list[tuple[Axis, Dim]], sizes: list[Dim]) -> Axes:
    """Return axes of the given lengths for (axis, length) pairs of the same product."""
    if not any(isinstance(a, np.ndarray) for a, _ in source):
        return [source[0][0] if source else node.single()] * len(sizes)
    lengths = [d for _, d in source]
    if not is_static(lengths) or not is_static(sizes):
        return _regroup_around_dynamic(node, source, sizes)
    if prod(lengths) != prod(sizes):
        raise Misfit(f"lengths {lengths} are reshaped to {sizes}")
    # a boundary is a product of leading lengths, of the input or of the output
    cuts = sorted(set(np.cumprod(lengths).tolist()) | set(np.cumprod(sizes).tolist()))
    ends = [1, *cuts]
    measured = [(axis, d) for (axis, _), d in zip(source, lengths, strict=True)]
    if all(b % a == 0 for a, b in zip(ends, ends[1:], strict=False)):
        return _collect(node, _factor(node, measured, ends), sizes, ends)
    # boundaries cut through each other, as in 6 x 4 -> 4 x 6: join all, then split
    return _split_all(node, _merge_all(node, measured), sizes)


def _regroup_around_dynamic(node: Node, source: list[tuple[Axis, Dim]], sizes: list[Dim]) -> Axes:
    """Regroup blocks of equal product at either end; freeze the axes between them."""
    lengths = [d for _, d in source]
    # source[:i] becomes the output axes [:j], source[k:] becomes [m:]
    i, j = _equal_blocks(lengths, sizes)
    k, m = _equal_blocks(lengths[i:][::-1], sizes[j:][::-1])
    k, m = len(source) - k, len(sizes) - m
    why = node.why("merged with a dynamic axis")
    # a single dynamic axis between the blocks is passed on unchanged
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
    """Match the last axes of a block: if one length divides the other, the shorter one is kept.

    Returns
    -------
    frozen
        What to freeze of the last axis of the input.
    axis
        Last axis of the output; `otherwise` if neither length divides the other.
    """
    axis, length = last
    if not isinstance(axis, np.ndarray) or not isinstance(length, int):
        return axis, otherwise
    if not isinstance(size, int) or length == size:
        return axis, otherwise
    if length % size == 0:
        return node.record.causes.split(axis, length // size, size, node.single())
    if size % length == 0:
        return why, node.record.causes.merge(why, size // length, axis, length)
    return axis, otherwise


def _equal_blocks(a: Sequence[Dim], b: Sequence[Dim]) -> tuple[int, int]:
    """Return the sizes of the longest prefixes of known lengths that have the same product."""
    i = j = 0
    best, left, right = (0, 0), 1, 1
    while True:
        if left == right:
            best = (i, j)
        next_a, next_b = a[i] if i < len(a) else None, b[j] if j < len(b) else None
        if left <= right and isinstance(next_a, int):
            left, i = left * next_a, i + 1
        elif left > right and isinstance(next_b, int):
            right, j = right * next_b, j + 1
        else:
            return best


def _factor(node: Node, source: list[tuple[Axis, int]], ends: list[int]) -> list[tuple[Axis, int]]:
    """Split the input axes at every boundary; `ends` are the products up to each boundary."""
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
    """Merge the factors into the output axes."""
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
    """Return the axis of a product of (axis, length) pairs."""
    axis, size = parts[0]
    for factor, length in parts[1:]:
        axis, size = node.record.causes.merge(axis, size, factor, length), size * length
    return axis


def _split_all(node: Node, axis: Axis, sizes: Sequence[int]) -> Axes:
    """Return the factors of an axis."""
    out = []
    for n, size in enumerate(sizes[:-1]):
        row, axis = node.record.causes.split(axis, size, prod(sizes[n + 1 :]), node.single())
        out.append(row)
    return [*out, axis]
