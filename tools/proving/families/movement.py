"""Worlds of operators that move positions, and of indexing."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import numpy as np
from onnx import numpy_helper

from proving.worlds import LENGTHS, PROVED, Graph, shapes, space

_TWO = (1, 2)
_PERMUTATIONS = [list(p) for n in (1, 2, 3) for p in itertools.permutations(range(n))]


@space("Transpose", exact=True, perm=(None, *_PERMUTATIONS), shape=shapes(1, 2, 3))
def transpose(g: Graph, c: SimpleNamespace) -> str | None:
    """All orders of up to three axes."""
    if c.perm is not None and len(c.perm) != len(c.shape):
        return None
    return g.node("Transpose", g.free(c.shape), perm=c.perm)


@space(
    "Concat",
    exact=True,
    axis=(-3, -2, -1, 0, 1, 2),
    others=[s for n in (1, 2) for s in itertools.product(LENGTHS, repeat=n)],
    kinds=("free", "weight", "same"),
    shape=shapes(1, 2, 3),
)
def concat(g: Graph, c: SimpleNamespace) -> str | None:
    """Two and three parts: computed, weights, and the same tensor twice."""
    if not -len(c.shape) <= c.axis < len(c.shape):
        return None
    parts = [g.free(c.shape)]
    for length in c.others:
        shape = list(c.shape)
        shape[c.axis] = length
        if c.kinds == "same":
            parts.append(parts[0])
        else:
            parts.append(g.free(tuple(shape)) if c.kinds == "free" else g.weight(shape))
    return g.node("Concat", *parts, axis=c.axis)


@space(
    "Split",
    exact=True,
    opset=(11, 13, 18),
    axis=(None, -2, -1, 0, 1, 2),
    parts=(None, *shapes(2, 3)),
    count=LENGTHS,
    shape=shapes(1, 2, 3),
)
def split(g: Graph, c: SimpleNamespace) -> list[str] | None:
    """Equal parts, sizes, and a number of outputs; each part is consumed on its own."""
    rank = len(c.shape)
    if c.axis is not None and not -rank <= c.axis < rank:
        return None
    shape, axis = list(c.shape), c.axis or 0
    if c.parts is None:
        length = shape[axis]
        if length < c.count or (c.opset < 18 and length % c.count):
            return None
        count = {"num_outputs": c.count} if c.opset >= 18 else {}
        return g.node_of(c.count, "Split", g.free(c.shape), axis=c.axis, **count)
    if c.count > 1 or shape[axis] > 1:
        return None  # the sizes decide the length
    shape[axis] = sum(c.parts)
    data, count = g.free(tuple(shape)), len(c.parts)
    if c.opset < 13:
        return g.node_of(count, "Split", data, axis=c.axis, split=list(c.parts))
    return g.node_of(count, "Split", data, g.integers(*c.parts), axis=c.axis)


_BOUNDS = (0, 1, 2, -1, -2, 9, -9)


@space(
    "Slice",
    exact=True,
    opset=(9, 13),
    axis=(None, -1, 0, 1, 2),
    start=_BOUNDS,
    end=_BOUNDS,
    step=(1, 2, -1, -2),
    shape=shapes(1, 2, 3),
)
def slice_(g: Graph, c: SimpleNamespace) -> str | None:
    """Bounds from either end, out of range, with steps in both directions."""
    if c.axis is not None and not -len(c.shape) <= c.axis < len(c.shape):
        return None
    axes = None if c.axis is None else [c.axis]
    data = g.free(c.shape)
    if c.opset < 10:
        if c.step != 1:
            return None
        return g.node("Slice", data, starts=[c.start], ends=[c.end], axes=axes)
    listed = "" if axes is None else g.integers(*axes)
    step = "" if c.step == 1 else g.integers(c.step)
    return g.node("Slice", data, g.integers(c.start), g.integers(c.end), listed, step)


_INDICES: list[object] = [0, -1, [0], [-1, 0], [0, 0], [1, 0, 1], [[0, 1], [1, 0]], [2, -3, 1, 0]]


@space(
    "Gather",
    exact=True,
    axis=(None, -2, -1, 0, 1, 2),
    indices=_INDICES,
    data=("free", "weight"),
    shape=shapes(1, 2, 3),
)
def gather(g: Graph, c: SimpleNamespace) -> str | None:
    """Scalars, lists with repetitions, matrices; from either end."""
    rank, indices = len(c.shape), np.array(c.indices)
    if c.axis is not None and not -rank <= c.axis < rank:
        return None
    length = c.shape[c.axis or 0]
    if indices.max() >= length or indices.min() < -length:
        return None
    data = g.free(c.shape) if c.data == "free" else g.weight(c.shape)
    return g.node("Gather", data, g.constant(indices, np.int64), axis=c.axis)


@space(
    "Pad",
    exact=True,
    opset=(9, 11, 18),
    before=(0, 1, -1),
    after=(0, 2),
    axis=(0, 1, 2),
    listed=(False, True),
    mode=("constant", "edge", "reflect"),
    value=(None, 0, 3),
    shape=shapes(1, 2, 3),
)
def pad(g: Graph, c: SimpleNamespace) -> str | None:
    """One axis at both ends, also negative, in three modes and with a value."""
    rank = len(c.shape)
    if c.axis >= rank or (c.listed and c.opset < 18) or (c.before < 0 and c.mode != "constant"):
        return None
    if c.mode == "reflect" and c.shape[c.axis] <= max(c.before, c.after):
        return None
    if c.mode != "constant" and c.value is not None:
        return None
    pads = [0] * 2 * rank
    pads[c.axis], pads[rank + c.axis] = c.before, c.after
    data = g.free(c.shape)
    if c.opset < 11:
        value = None if c.value is None else float(c.value)
        return g.node("Pad", data, pads=pads, mode=c.mode, value=value)
    value = "" if c.value is None else g.constant(c.value)
    if c.listed:
        return g.node(
            "Pad", data, g.integers(c.before, c.after), value, g.integers(c.axis), mode=c.mode
        )
    return g.node("Pad", data, g.integers(*pads), value, mode=c.mode)


@space(
    "Squeeze",
    exact=True,
    opset=(11, 13),
    axes=(None, [0], [1], [-1], [2], [0, 2], [1, -1]),
    shape=shapes(2, 3, 4),
)
def squeeze(g: Graph, c: SimpleNamespace) -> str | None:
    """Named axes, and all of length one."""
    rank = len(c.shape)
    if any(not -rank <= a < rank or c.shape[a] != 1 for a in c.axes or ()):
        return None
    if c.opset < 13:
        return g.node("Squeeze", g.free(c.shape), axes=c.axes)
    axes = [] if c.axes is None else [g.integers(*c.axes)]
    return g.node("Squeeze", g.free(c.shape), *axes)


@space(
    "Unsqueeze",
    exact=True,
    opset=(11, 13),
    axes=([0], [1], [-1], [2], [0, 2], [-1, 0], [1, 3]),
    shape=shapes(1, 2, 3),
)
def unsqueeze(g: Graph, c: SimpleNamespace) -> str | None:
    """New axes at any place."""
    rank = len(c.shape) + len(c.axes)
    if any(not -rank <= a < rank for a in c.axes) or len({a % rank for a in c.axes}) < len(c.axes):
        return None
    if c.opset < 13:
        return g.node("Unsqueeze", g.free(c.shape), axes=c.axes)
    return g.node("Unsqueeze", g.free(c.shape), g.integers(*c.axes))


@space("Expand", exact=True, target=shapes(1, 2, 3), shape=shapes(1, 2, 3))
def expand(g: Graph, c: SimpleNamespace) -> str | None:
    """All targets that a shape broadcasts to."""
    pairs = zip(c.shape[::-1], c.target[::-1], strict=False)
    if any(a != b and 1 not in (a, b) for a, b in pairs):
        return None
    return g.node("Expand", g.free(c.shape), g.integers(*c.target))


@space("Tile", exact=True, repeats=shapes(1, 2, 3), shape=shapes(1, 2, 3))
def tile(g: Graph, c: SimpleNamespace) -> str | None:
    """Up to three repetitions of each axis."""
    if len(c.repeats) != len(c.shape):
        return None
    return g.node("Tile", g.free(c.shape), g.integers(*c.repeats))


@space("Shape ConstantOfShape", exact=True, constant=(0, 2), shape=shapes(1, 2, 3))
def shape_of(g: Graph, c: SimpleNamespace) -> str:
    """A tensor of the shape of another, added to it."""
    data = g.free(c.shape)
    sizes = g.node("Shape", data)
    value = numpy_helper.from_array(np.array([c.constant], g.dtype))
    filled = g.node("ConstantOfShape", sizes, value=value)
    return g.node("Add", filled, data, name="")


def _factorizations(count: int) -> list[tuple[int, ...]]:
    """Return the shapes of up to three axes that hold this many elements."""
    divisors = [d for d in range(1, count + 1) if count % d == 0]
    return [
        s
        for rank in (1, 2, 3)
        for s in itertools.product(divisors, repeat=rank)
        if math.prod(s) == count
    ]


@space(
    "Reshape",
    exact=True,
    opset=(13, 21),
    target=range(16),
    inferred=(None, 0, 1, 2),
    copied=(None, 0, 1, 2),
    shape=shapes(1, 2, 3),
)
def reshape(g: Graph, c: SimpleNamespace) -> str | None:
    """All shapes of the same number of elements, with 0 and -1 in any place."""
    targets = _factorizations(math.prod(c.shape))
    if c.target >= len(targets):
        return None
    sizes = list(targets[c.target])
    if c.copied is not None:
        same = c.copied < min(len(sizes), len(c.shape)) and sizes[c.copied] == c.shape[c.copied]
        if not same or c.copied == c.inferred:
            return None
        sizes[c.copied] = 0
    if c.inferred is not None:
        if c.inferred >= len(sizes):
            return None
        sizes[c.inferred] = -1
    return g.node("Reshape", g.free(c.shape), g.integers(*sizes))


@space(
    "Reshape",
    exact=True,
    first=range(16),
    perm=_PERMUTATIONS,
    second=range(16),
    shape=shapes(1, 2, 3, lengths=(1, 2, 3, 4, 6)),
)
def reshape_chain(g: Graph, c: SimpleNamespace) -> str | None:
    """Axes split and merged in another order, as in a channel shuffle."""
    targets = _factorizations(math.prod(c.shape))
    if max(c.first, c.second) >= len(targets) or math.prod(c.shape) > 24:
        return None
    first, second = targets[c.first], targets[c.second]
    if len(c.perm) != len(first):
        return None
    split = g.node("Reshape", g.free(c.shape), g.integers(*first))
    moved = g.node("Transpose", split, name="", perm=c.perm)
    return g.node("Reshape", moved, g.integers(*second), name=f"{PROVED}_2")


@space("Flatten", exact=True, axis=(None, *range(-4, 5)), shape=shapes(1, 2, 3, 4))
def flatten(g: Graph, c: SimpleNamespace) -> str | None:
    """All axes to flatten at."""
    if c.axis is not None and not -len(c.shape) <= c.axis <= len(c.shape):
        return None
    return g.node("Flatten", g.free(c.shape), axis=c.axis)


def _random_indices(g: Graph, shape: tuple[int, ...], limits: tuple[int, ...]) -> np.ndarray:
    """Return indices of a shape whose last axis has one limit per position."""
    drawn = [g.rng.integers(0, limit, shape[:-1]) for limit in limits]
    return np.stack(drawn, -1)


@space(
    "GatherND", exact=True, batch=(0, 1), depth=LENGTHS, picks=shapes(0, 1), shape=shapes(1, 2, 3)
)
def gather_nd(g: Graph, c: SimpleNamespace) -> str | None:
    """Tuples of one to three indices, with and without a batch axis."""
    if c.batch + c.depth > len(c.shape):
        return None
    shape = (*c.shape[: c.batch], *c.picks, c.depth)
    limits = c.shape[c.batch : c.batch + c.depth]
    indices = g.constant(_random_indices(g, shape, limits), np.int64)
    return g.node("GatherND", g.free(c.shape), indices, batch_dims=c.batch)


@space(
    "ScatterND",
    exact=True,
    opset=(11, 18),
    depth=LENGTHS,
    reduction=(None, "add", "mul", "max", "min"),
    updates=("free", "weight"),
    shape=shapes(1, 2, 3),
)
def scatter_nd(g: Graph, c: SimpleNamespace) -> str | None:
    """Two updates at tuples of one to three indices."""
    if c.depth > len(c.shape) or (c.reduction and c.opset < 16):
        return None
    count = min(2, math.prod(c.shape[: c.depth]))
    places = list(np.ndindex(*c.shape[: c.depth]))
    chosen = g.rng.choice(len(places), count, replace=False)
    indices = g.constant([places[i] for i in chosen], np.int64)
    shape = (count, *c.shape[c.depth :])
    updates = g.free(shape) if c.updates == "free" else g.weight(shape)
    return g.node("ScatterND", g.free(c.shape), indices, updates, reduction=c.reduction)


@space(
    "GatherElements ScatterElements",
    exact=True,
    axis=(None, -2, -1, 0, 1, 2),
    reduction=(None, "add", "max"),
    picks=shapes(1, 2, 3),
    shape=shapes(1, 2, 3),
)
def by_element(g: Graph, c: SimpleNamespace) -> str | None:
    """Index tensors of every shape within that of the data."""
    rank, axis = len(c.shape), c.axis or 0
    if len(c.picks) != rank or not -rank <= axis < rank:
        return None
    if any(
        p > n for i, (p, n) in enumerate(zip(c.picks, c.shape, strict=True)) if i != axis % rank
    ):
        return None
    length = c.shape[axis]
    data = g.free(c.shape)
    if c.op == "GatherElements":
        if c.reduction:
            return None
        indices = g.constant(g.rng.integers(-length, length, c.picks), np.int64)
        return g.node("GatherElements", data, indices, axis=c.axis)
    if c.picks[axis] > length:
        return None
    order = np.argsort(g.rng.random(c.picks), axis)  # no index twice
    indices = g.constant(order, np.int64)
    return g.node(
        "ScatterElements", data, indices, g.free(c.picks), axis=c.axis, reduction=c.reduction
    )
