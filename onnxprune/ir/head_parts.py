"""Heads, the parts of tensors that they are, and the axes of both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from onnxprune.ir.shapes import Shapes
from onnxprune.ir.values import Dim

# How a head is compared: by its error relative to its variance, as independent probabilities, as
# one distribution per position, or as class scores of a sample at a temperature
VALUES, BINARY, CLASSES, SCORES = "values", "binary", "classes", "scores"
Part = tuple[int, int, int]  # axis, start, stop
Dims = tuple[Dim, ...]


@dataclass(frozen=True)
class Head:
    """A tensor that is compared, and how.

    Attributes
    ----------
    tensor
        Name.
    kind
        `VALUES`, `BINARY`, `CLASSES` or `SCORES`.
    axis
        Axis of the channels or classes.
    probabilities
        True if the values of `BINARY` or `CLASSES` are probabilities, not logits.
    output
        Output that it reaches.
    score
        Head whose probabilities say where something is detected; positions of this head are
        weighted by them. None = all positions count alike.
    """

    tensor: str
    kind: str = VALUES
    axis: int = 1
    probabilities: bool = False
    output: str = ""
    score: Head | None = None


@dataclass(frozen=True)
class Found:
    """A head, the tensor at which the walk ended, and the part of it that the head is."""

    head: Head
    source: str
    part: Part | None


def has_one_row(shape: Dims | None) -> bool:
    """Return True for (samples, classes), up to trailing axes of length 1."""
    if shape is None or len(shape) < 2 or shape[1] == 1:
        return False
    return all(length == 1 for length in shape[2:])


def merge(found: Sequence[Found], shapes: Shapes) -> list[Head]:
    """Return the heads, with those that are together all of a tensor as one."""
    # several parts of one tensor, which mean the same
    groups: dict[tuple[str, str], list[Found]] = {}
    for item in found:
        groups.setdefault((item.source, item.head.kind), []).append(item)
    heads: dict[str, Head] = {}
    for (source, kind), items in groups.items():
        parts = [item.part for item in items if item.part is not None]
        whole = next((item.head for item in items if item.part is None), None)
        if whole is not None:
            heads.setdefault(source, whole)
        elif kind == VALUES and _cover(parts, shapes.shape(source)):
            heads.setdefault(source, Head(source, kind, parts[0][0]))
        else:
            for item in items:
                heads.setdefault(item.head.tensor, item.head)
    return list(heads.values())


def _cover(parts: Sequence[Part], shape: Dims | None) -> bool:
    """Return True if ranges of one axis are together all of it."""
    axes = {axis for axis, _, _ in parts}
    if len(axes) != 1 or shape is None or not 0 <= parts[0][0] < len(shape):
        return False
    length = shape[parts[0][0]]
    positions = {i for _, start, stop in parts for i in range(start, stop)}
    return isinstance(length, int) and len(positions) == length


def guess_axis(shape: Dims | None) -> int:
    """Return the axis of the channels of a tensor: the second of maps, else the shortest."""
    if shape is None or len(shape) < 3:
        return 1
    if len(shape) == 4:
        return 1
    lengths = [(n if isinstance(n, int) else math.inf, -i) for i, n in enumerate(shape) if i]
    return -min(lengths)[1]


def find_axis(before: Dims, after: Dims, axis: int) -> int | None:
    """Return the axis of the first shape that a reshape keeps as `axis` of the second."""
    for i, length in enumerate(before):
        if length != after[axis] or length is None:
            continue
        leading = _equal_sizes(before[:i], after[:axis])
        trailing = _equal_sizes(before[i + 1 :], after[axis + 1 :])
        if leading or trailing:
            return i
    return None


def _equal_sizes(first: Dims, second: Dims) -> bool:
    """Return True if two lists of lengths surely have the same product."""
    if None in first or None in second:
        return False
    symbols = [sorted(str(n) for n in dims if not isinstance(n, int)) for dims in (first, second)]
    sizes = [math.prod(n for n in dims if isinstance(n, int)) for dims in (first, second)]
    return symbols[0] == symbols[1] and sizes[0] == sizes[1]
