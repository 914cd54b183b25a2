"""Products of axes: merged into one axis and taken apart again, with dynamic factors or without."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from onnxprune.analysis.causes import Axis, Causes
from onnxprune.analysis.folded import MERGED, Folded, Part
from onnxprune.analysis.rule import Misfit
from onnxprune.analysis.state import Node
from onnxprune.ir.values import Dim, is_static, product, quotient


def merge_parts(node: Node, parts: Sequence[Part]) -> Axis:
    """Return the axis of a product of parts.

    With a dynamic factor it is a `Folded`; if costs could not find the length of that factor, the
    positions of the others are frozen.
    """
    if is_static([p.length for p in parts]):
        return _merge_static(node, parts).axis
    if not any(isinstance(p.axis, np.ndarray) for p in parts):
        # all factors are frozen: the reason of a dynamic one explains the length as well
        return next(int(p.axis) for p in parts if not isinstance(p.length, int))
    if any(not isinstance(p.length, int) and not p.places for p in parts):
        return freeze_parts(node, parts)
    merged: list[Part] = []
    for part in parts:
        # adjacent factors of fixed length become one, so that equal products have equal factors
        if merged and is_static([merged[-1].length, part.length]):
            merged[-1] = _merge_static(node, [merged[-1], part])
        else:
            merged.append(part)
    why = next(int(p.axis) for p in merged if not isinstance(p.length, int))
    return Folded(why, merged)


def _merge_static(node: Node, parts: Sequence[Part]) -> Part:
    """Return the product of parts of fixed length."""
    axis, size = parts[0].axis, 1
    for n, part in enumerate(parts):
        if not isinstance(part.length, int):
            raise Misfit(MERGED)
        if n:
            axis = node.record.causes.merge(axis, size, part.axis, part.length)
        size *= part.length
    return Part(axis, size)


def split_part(node: Node, part: Part, sizes: Sequence[Dim]) -> list[Part]:
    """Return the factors of a part, whose lengths multiply to its own."""
    if len(sizes) == 1:
        return [part]
    # a frozen axis has one reason for all of its factors
    if isinstance(part.axis, int) or not is_static(sizes):
        return [Part(part.axis, size) for size in sizes]
    out: list[Part] = []
    axis: Axis = part.axis
    for n, size in enumerate(sizes[:-1]):
        row, axis = node.record.causes.split(axis, size, prod(sizes[n + 1 :]), node.single())
        out.append(Part(row, size))
    return [*out, Part(axis, sizes[-1])]


def parts_of(axis: Axis, length: Dim, place: tuple[str, int]) -> list[Part]:
    """Return the factors of an axis: those of a `Folded`, else the axis itself."""
    if isinstance(axis, Folded):
        return list(axis.parts)
    if isinstance(axis, np.ndarray):
        return [Part(axis, len(axis))]
    return [Part(axis, length, () if isinstance(length, int) else (place,))]


def freeze_parts(node: Node, parts: Sequence[Part]) -> int:
    """Freeze parts; return the number of the reason."""
    why = node.why(MERGED)
    for part in parts:
        node.record.causes.freeze(part.axis, why)
    return why


def refine(lengths: Sequence[Dim], sizes: Sequence[Dim]) -> list[Dim] | None:
    """Return all products of leading lengths of either list, each a multiple of the one before.

    None if one of them is no multiple of the one before, as for 6 x 4 and 4 x 6.
    """
    left, right = leading_products(lengths), leading_products(sizes)
    ends: list[Dim] = [1]
    i = j = 1
    while i < len(left) or j < len(right):
        a = left[i] if i < len(left) else None
        b = right[j] if j < len(right) else None
        if a == b:
            end, i, j = a, i + 1, j + 1
        # the nearer boundary is the one that divides the other; a list may be at its end
        elif b is None or (a is not None and quotient(b, a) is not None):
            end, i = a, i + 1
        elif a is None or quotient(a, b) is not None:
            end, j = b, j + 1
        else:
            return None
        if quotient(end, ends[-1]) is None:
            return None
        ends.append(end)
    return ends


def leading_products(lengths: Sequence[Dim]) -> list[Dim]:
    """Return the products of the first 0, 1, 2, ... lengths, none of which is unknown."""
    products: list[Dim] = [1]
    for length in lengths:
        products.append(product([products[-1], length]))
    return products


def named(lengths: Sequence[Dim], stem: str) -> list[Dim]:
    """Return lengths with a name of their own for each unknown one."""
    return [f"{stem}{i}" if d is None else d for i, d in enumerate(lengths)]


def fix_run(parts: Sequence[Part], sizes: Sequence[Dim]) -> list[Part] | None:
    """Return the parts with adjacent dynamic ones as one, whose length the sizes fix.

    None if there are none, if they are apart, or if the length is no number.
    """
    dynamic = [i for i, part in enumerate(parts) if not isinstance(part.length, int)]
    # a row-major product of factors that are not adjacent is no product of the two
    if not dynamic or dynamic[-1] - dynamic[0] != len(dynamic) - 1:
        return None
    start, end = dynamic[0], dynamic[-1] + 1
    fixed = product([part.length for part in (*parts[:start], *parts[end:])])
    length = quotient(product(sizes), fixed)
    if not isinstance(length, int):
        return None
    return [*parts[:start], Part(parts[start].axis, length), *parts[end:]]


def unfold(causes: Causes, axis: Folded, size: Dim) -> Axis:
    """Return the ids of a dynamic axis if another operand fixes its length.

    It is frozen if that length does not determine those of its factors.
    """
    if not isinstance(size, int):
        return axis
    fixed = prod(d for d in axis.lengths if isinstance(d, int))
    dynamic = [d for d in axis.lengths if not isinstance(d, int)]
    # several dynamic factors: any of them may have any divisor of the length
    if len(dynamic) != 1 or fixed == 0 or size % fixed:
        causes.freeze(axis, int(axis))
        return int(axis)
    sizes = [d if isinstance(d, int) else size // fixed for d in axis.lengths]
    ids, length = axis.factors[0], sizes[0]
    for factor, count in zip(axis.factors[1:], sizes[1:], strict=True):
        ids, length = causes.merge(ids, length, factor, count), length * count
    return ids
