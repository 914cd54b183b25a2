"""Row-major reshapes of axes: lengths are factored at every boundary of input and output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onnxprune.analysis.causes import Axis
from onnxprune.analysis.factors import (
    fix_run,
    freeze_parts,
    leading_products,
    merge_parts,
    named,
    parts_of,
    refine,
    split_part,
)
from onnxprune.analysis.folded import MERGED, Part, arrays_of
from onnxprune.analysis.literals import Axes, axes_of, place, record_literal, stop
from onnxprune.analysis.rule import Misfit
from onnxprune.analysis.state import Node
from onnxprune.ir.equations import solve, substitute
from onnxprune.ir.example_sizes import is_anonymous
from onnxprune.ir.values import Dim, is_static, quotient


def reshape(node: Node) -> list[Axes]:
    """Reshape and Flatten."""
    axes, out = axes_of(node), node.out_shape()
    result = regroup(node, axes, node.shape(0), out)
    # Flatten has no literal: its axis is a position among the axes, not a length
    if node.op != "Reshape":
        return [result]
    target = node.partial(1)
    literal = target if target is not None else np.full(len(out), None, object)
    # -1 follows from the other sizes; 0 takes a dynamic length from the input
    entries = [
        None if d in (-1, None) or (d == 0 and isinstance(a, int)) else a
        for d, a in zip(literal, result, strict=False)
    ]
    watch = _find_copied_lengths(node, literal, axes, result, entries)
    record_literal(node, place(node, "shape", 1), entries, watch)
    for axis, size in zip(result, literal, strict=False):
        if size is None and arrays_of(axis):
            stop(node, axis, "reshaped to a computed length")
    return [result]


def _find_copied_lengths(
    node: Node, literal: np.ndarray, axes: Axes, result: Axes, entries: list[Axis | None]
) -> list[np.ndarray]:
    """Return the axes whose lengths a 0 copies to an output axis of other positions.

    The lengths are equal only before a cut, so `entries` gets the ids of frozen output axes too.
    """
    # with allowzero, 0 is a length
    if node.integer("allowzero", 0):
        return []
    watch = []
    for i, (size, source) in enumerate(zip(literal, axes, strict=False)):
        target = result[i]
        if size != 0 or not isinstance(source, np.ndarray) or target is source:
            continue
        if isinstance(target, int):
            entries[i] = node.record.causes.frozen(target, len(source))
        watch.append(source)
    return watch


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
    source = [
        part
        for i, (axis, size) in enumerate(zip(axes, named(before, "?in"), strict=False))
        for part in parts_of(axis, size, (node.names[0], i))
        if part.length != 1
    ]
    places = [i for i, d in enumerate(after) if d != 1]
    sizes = [named(after, "?out")[i] for i in places]
    source, sizes = _fix_dynamic(source, sizes)
    source, sizes = _replace_lengths(source, sizes, node.record.shapes.equal)
    source, sizes = _fix_dynamic(source, sizes)
    # input and output have equal products, whatever their lengths
    values = solve([p.length for p in source], sizes)
    source, sizes = _replace_lengths(source, sizes, values)
    # a length that is 1 after all has no part in it either
    source = [part for part in source if part.length != 1]
    places = [i for i, d in zip(places, sizes, strict=True) if d != 1]
    sizes = [d for d in sizes if d != 1]
    ends = _find_common_ends([p.length for p in source], sizes)
    grouped: Axes = []
    for (i, j), (k, m) in zip(ends, ends[1:], strict=False):
        grouped += _regroup_block(node, source[i:k], sizes[j:m])
    result: Axes = [node.single()] * len(after)
    for i, axis in zip(places, grouped, strict=True):
        result[i] = axis
    return result


def _replace_lengths(
    source: list[Part], sizes: list[Dim], values: Mapping[str, Dim]
) -> tuple[list[Part], list[Dim]]:
    """Return parts and sizes with symbols replaced by what they equal."""
    lengths = substitute([part.length for part in source], values)
    parts = [part._replace(length=d) for part, d in zip(source, lengths, strict=True)]
    return parts, substitute(sizes, values)


def _fix_dynamic(source: list[Part], sizes: list[Dim]) -> tuple[list[Part], list[Dim]]:
    """Return parts and sizes, with dynamic lengths replaced that the sizes fix together.

    In (n, 16, h, w) -> (n, 400), h w is 25. In (n, 16, h, w) -> (-1, 400) it is so if each sample
    is a row, which is what the authors of such a graph mean.
    """
    ends = _match_products([p.length for p in source], sizes)
    i, j = ends[-1] if ends else (0, 0)
    lead, size_lead, rest, tail = source[:i], sizes[:j], source[i:], sizes[j:]
    if is_static(tail):
        fixed = fix_run(rest, tail)
        return (source, sizes) if fixed is None else ([*lead, *fixed], sizes)
    first = next((k for k, p in enumerate(rest) if isinstance(p.axis, np.ndarray)), 0)
    if isinstance(tail[0], str) and is_anonymous(tail[0]) and is_static(tail[1:]):
        for k in range(1, first + 1):
            fixed = fix_run(rest[k:], tail[1:])
            if fixed is not None:
                rows = leading_products([p.length for p in rest[:k]])[-1]
                return [*lead, *rest[:k], *fixed], [*size_lead, rows, *tail[1:]]
    return source, sizes


def _find_common_ends(lengths: Sequence[Dim], sizes: Sequence[Dim]) -> list[tuple[int, int]]:
    """Return the pairs of numbers of leading lengths and sizes that have the same product.

    The first pair is (0, 0), the last is all of both.
    """
    ends = [(0, 0), *_match_products(lengths, sizes)]
    last = len(lengths), len(sizes)
    if ends[-1] == last:
        return ends
    # the totals are not known to be equal: what one end does not match, the other may
    tail = [(last[0] - i, last[1] - j) for i, j in _match_products(lengths[::-1], sizes[::-1])]
    low = ends[-1]
    return [*ends, *sorted((i, j) for i, j in tail if i >= low[0] and j >= low[1]), last]


def _match_products(a: Sequence[Dim], b: Sequence[Dim]) -> list[tuple[int, int]]:
    """Return the numbers of leading lengths, at least one of each list, of equal products."""
    places = {d: j for j, d in enumerate(leading_products(b)) if j}
    return [(i, places[d]) for i, d in enumerate(leading_products(a)) if i and d in places]


def _regroup_block(node: Node, source: list[Part], sizes: list[Dim]) -> Axes:
    """Return axes of the given sizes for parts of the same product."""
    # no part can be cut: the output axes take over a reason
    if not any(isinstance(p.axis, np.ndarray) for p in source):
        return [source[0].axis if source else node.single()] * len(sizes)
    lengths = [p.length for p in source]
    if len(lengths) == len(sizes) == 1:
        return [source[0].axis]
    static = is_static(lengths) and is_static(sizes)
    total = leading_products(lengths)[-1]
    same = total == leading_products(sizes)[-1]
    # a total of 0 has no factors that could be told apart
    if static and (not same or total == 0):
        raise Misfit(f"lengths {lengths} are reshaped to {sizes}")
    ends = refine(lengths, sizes) if same else None
    if ends is not None:
        return _collect(node, _split_parts(node, source, ends), sizes, ends)
    if static:
        # boundaries cut through each other, as in 6 x 4 -> 4 x 6: join all, then split
        joined = Part(merge_parts(node, source), total)
        return [p.axis for p in split_part(node, joined, sizes)]
    return _freeze_block(node, source, sizes)


def _freeze_block(node: Node, source: list[Part], sizes: list[Dim]) -> Axes:
    """Freeze parts whose order among the sizes is unknown, but for the innermost if it is known."""
    why = node.why(MERGED)
    frozen = list(source)
    between: Axes = [why] * len(sizes)
    if sizes:
        frozen[-1:], between[-1] = _match_innermost(node, source[-1], sizes[-1], why)
    freeze_parts(node, frozen)
    return between


def _match_innermost(node: Node, last: Part, size: Dim, why: int) -> tuple[list[Part], Axis]:
    """Match the last axes of a block: if one length divides the other, the shorter one is kept.

    Returns
    -------
    frozen
        What to freeze of the last axis of the input.
    axis
        Last axis of the output.
    """
    if is_static([last.length, size]) and isinstance(last.axis, np.ndarray):
        outer = quotient(last.length, size)
        if outer is not None:
            row, column = split_part(node, last, [outer, size])
            return [row], column.axis
        outer = quotient(size, last.length)
        if outer is not None:
            return [], merge_parts(node, [Part(why, outer), last])
    return [last], why


def _split_parts(node: Node, source: list[Part], ends: list[Dim]) -> list[Part]:
    """Split parts at every boundary; `ends` are the products up to each boundary."""
    factors: list[Part] = []
    start = 0
    for part, done in zip(source, leading_products([p.length for p in source])[1:], strict=True):
        end = ends.index(done)
        steps = zip(ends[start : end + 1], ends[start + 1 : end + 1], strict=False)
        factors += split_part(node, part, [quotient(b, a) for a, b in steps])
        start = end
    return factors


def _collect(node: Node, factors: list[Part], sizes: Sequence[Dim], ends: list[Dim]) -> Axes:
    """Merge the factors into the output axes."""
    out: Axes = []
    start = 0
    for done in leading_products(sizes)[1:]:
        end = ends.index(done)
        out.append(merge_parts(node, factors[start:end]))
        start = end
    return out
