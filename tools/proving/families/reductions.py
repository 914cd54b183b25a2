"""Worlds of reductions, extremes and cumulative sums."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np

from proving.worlds import Graph, shapes, space

_AXES = [list(a) for n in (1, 2, 3) for a in itertools.combinations(range(3), n)]
_POSITIVE = ("ReduceLogSum", "ReduceLogSumExp", "ReduceProd")


@space(
    """ReduceSum ReduceL1 ReduceL2 ReduceSumSquare ReduceMean ReduceMax ReduceMin ReduceProd
    ReduceLogSum ReduceLogSumExp""",
    exact="ReduceSum ReduceL1 ReduceSumSquare ReduceMax ReduceMin ReduceProd",
    opset=(11, 18),
    axes=(None, [], *_AXES, [-1], [-2, -1]),
    keepdims=(0, 1),
    noop=(0, 1),
    shape=shapes(1, 2, 3),
)
def reduction(g: Graph, c: SimpleNamespace) -> str | None:
    """Any axes, as an attribute or an input, absent or empty, with and without noop."""
    rank = len(c.shape)
    as_input = c.opset >= (13 if c.op == "ReduceSum" else 18)
    if any(not -rank <= a < rank for a in c.axes or ()) or (not as_input and c.noop):
        return None
    if c.axes == [] and not as_input:
        return None
    data = g.free(c.shape, 1, 3) if c.op in _POSITIVE else g.free(c.shape)
    if not as_input:
        return g.node(c.op, data, axes=c.axes, keepdims=c.keepdims)
    axes = "" if c.axes is None else g.constant(c.axes, np.int64)
    return g.node(c.op, data, axes, keepdims=c.keepdims, noop_with_empty_axes=1 if c.noop else None)


@space(
    "ArgMax ArgMin",
    exact=True,
    opset=(11, 13),
    axis=(None, -3, -2, -1, 0, 1, 2),
    keepdims=(0, 1),
    last=(0, 1),
    shape=shapes(1, 2, 3),
)
def extreme(g: Graph, c: SimpleNamespace) -> str | None:
    """The first or the last position of an extreme."""
    if c.axis is not None and not -len(c.shape) <= c.axis < len(c.shape):
        return None
    last = c.last if c.opset >= 12 else None
    if c.last and last is None:
        return None
    data = g.free(c.shape)
    return g.node(c.op, data, axis=c.axis, keepdims=c.keepdims, select_last_index=last)


@space(
    "CumSum",
    exact=True,
    opset=(11, 14),
    axis=(-3, -2, -1, 0, 1, 2),
    exclusive=(0, 1),
    reverse=(0, 1),
    shape=shapes(1, 2, 3),
)
def cumulative_sum(g: Graph, c: SimpleNamespace) -> str | None:
    """In either direction, with and without the position itself."""
    if not -len(c.shape) <= c.axis < len(c.shape):
        return None
    axis = g.constant(c.axis, np.int64)
    return g.node("CumSum", g.free(c.shape), axis, exclusive=c.exclusive, reverse=c.reverse)
