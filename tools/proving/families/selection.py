"""Worlds of operators that select, crop, reverse or transform positions."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
from onnx import TensorProto

from proving.worlds import LENGTHS, Graph, shapes, space

_TWO = (1, 2)
_AXES = (-3, -2, -1, 0, 1, 2)
_BIT_CAST_TO = {np.float64: TensorProto.INT64, np.float32: TensorProto.INT32}


def _has(shape: tuple[int, ...], axis: int) -> bool:
    """Return whether a shape has an axis."""
    return -len(shape) <= axis < len(shape)


@space(
    "TopK",
    exact=True,
    opset=(11, 24),
    axis=_AXES,
    k=LENGTHS,
    largest=(0, 1),
    outputs=("values", "indices", "both"),
    shape=shapes(1, 2, 3),
)
def top_k(g: Graph, c: SimpleNamespace) -> list[str] | None:
    """Values and positions of the largest and smallest along any axis."""
    if not _has(c.shape, c.axis) or c.k > c.shape[c.axis]:
        return None
    data, count = g.free(c.shape, scale=1), g.integers(c.k)
    outputs = g.node_of(2, "TopK", data, count, axis=c.axis, largest=c.largest)
    return {"values": outputs[:1], "indices": outputs[1:], "both": outputs}[c.outputs]


@space(
    "Compress",
    exact=True,
    opset=(11, 21),
    axis=(None, *_AXES),
    condition=((True,), (False, True), (True, False, True), (True, True)),
    shape=shapes(1, 2, 3),
)
def compress(g: Graph, c: SimpleNamespace) -> str | None:
    """A constant condition along any axis, and of the flattened tensor."""
    if c.axis is not None and not _has(c.shape, c.axis):
        return None
    length = math.prod(c.shape) if c.axis is None else c.shape[c.axis]
    if len(c.condition) > length:
        return None
    return g.node("Compress", g.free(c.shape), g.constant(c.condition, bool), axis=c.axis)


@space("OneHot", exact=True, axis=(-1, 0, 1), depth=LENGTHS, shape=shapes(1, 2))
def one_hot(g: Graph, c: SimpleNamespace) -> str:
    """Computed classes, some of them out of range."""
    classes = g.cast(g.free(c.shape, 0, 2), TensorProto.INT64)
    depth, values = g.constant(c.depth, np.int64), g.constant([-1, 3])
    return g.node("OneHot", classes, depth, values, axis=c.axis)


@space("Trilu", exact=True, upper=(0, 1), k=(None, -1, 0, 1, 2), shape=shapes(2, 3))
def triangle(g: Graph, c: SimpleNamespace) -> str:
    """Both triangles, from any diagonal."""
    diagonal = "" if c.k is None else g.constant(c.k, np.int64)
    return g.node("Trilu", g.free(c.shape), diagonal, upper=c.upper)


@space(
    "CenterCropPad",
    exact=True,
    opset=(18,),
    axes=(None, [0], [1], [-1], [0, 2], [1, 2]),
    target=shapes(3),
    shape=shapes(2, 3),
)
def center_crop_pad(g: Graph, c: SimpleNamespace) -> str | None:
    """Some axes to other lengths, some to their own."""
    axes = range(len(c.shape)) if c.axes is None else c.axes
    if not all(_has(c.shape, a) for a in axes):
        return None
    sizes = g.integers(*[c.target[a] for a in axes])
    return g.node("CenterCropPad", g.free(c.shape), sizes, axes=c.axes)


@space(
    "ReverseSequence",
    exact=True,
    axes=((0, 1), (1, 0)),
    lengths=shapes(1, 2, 3),
    shape=shapes(2, 3, 4),
)
def reverse_sequence(g: Graph, c: SimpleNamespace) -> str | None:
    """Sequences of their own lengths, time or batch first."""
    time, batch = c.axes
    if len(c.lengths) != c.shape[batch] or max(c.lengths) > c.shape[time]:
        return None
    lengths = g.integers(*c.lengths)
    return g.node("ReverseSequence", g.free(c.shape), lengths, time_axis=time, batch_axis=batch)


@space(
    "TensorScatter",
    exact=True,
    opset=(24,),
    axis=(-3, -2, -1, 1, 2),
    update=LENGTHS,
    indices=(False, True),
    mode=("linear", "circular"),
    shape=shapes(3, 4),
)
def tensor_scatter(g: Graph, c: SimpleNamespace) -> str | None:
    """An update at positions per batch, along any axis but that of the batch."""
    if c.axis % len(c.shape) == 0 or c.update > c.shape[c.axis]:
        return None
    shape = list(c.shape)
    shape[c.axis] = c.update
    room = c.shape[c.axis] - c.update
    places = [i % (room + 1) for i in range(c.shape[0])]
    indices = g.integers(*places) if c.indices else ""
    data, update = g.free(c.shape), g.free(tuple(shape))
    return g.node("TensorScatter", data, update, indices, axis=c.axis, mode=c.mode)


@space(
    "CumProd",
    exact=True,
    opset=(26,),
    axis=_AXES,
    exclusive=(0, 1),
    reverse=(0, 1),
    shape=shapes(1, 2, 3),
)
def cumulative_product(g: Graph, c: SimpleNamespace) -> str | None:
    """In either direction, with and without the position itself."""
    if not _has(c.shape, c.axis):
        return None
    data, axis = g.free(c.shape, 1, 3), g.constant(c.axis, np.int64)
    return g.node("CumProd", data, axis, exclusive=c.exclusive, reverse=c.reverse)


@space("Det", opset=(11, 22), n=LENGTHS, rest=shapes(0, 1, 2))
def determinant(g: Graph, c: SimpleNamespace) -> str:
    """Square matrices in any number."""
    return g.node("Det", g.free((*c.rest, c.n, c.n)))


@space(
    "DFT",
    opset=(17, 20),
    axis=(-3, -2, 0, 1, 2),
    inverse=(0, 1),
    onesided=(0, 1),
    parts=_TWO,
    shape=shapes(2, 3),
)
def fourier(g: Graph, c: SimpleNamespace) -> str | None:
    """Real and complex signals along any axis."""
    shape = (*c.shape, c.parts)
    rank = len(shape)
    if not _has(shape, c.axis) or c.axis % rank == rank - 1:
        return None
    if c.onesided and (c.inverse or c.parts > 1):
        return None
    given = {"inverse": c.inverse or None, "onesided": c.onesided or None}
    if c.opset < 20:
        return g.node("DFT", g.free(shape), axis=c.axis % rank, **given)
    return g.node("DFT", g.free(shape), "", g.constant(c.axis, np.int64), **given)


@space("BitCast", exact=True, opset=(26,), shape=shapes(1, 2, 3))
def bit_cast(g: Graph, c: SimpleNamespace) -> str:
    """To integers and back."""
    bits = g.node("BitCast", g.free(c.shape), to=_BIT_CAST_TO[g.dtype])
    return g.node("BitCast", bits, name="", to=g.float_type)


@space(
    "MaxRoiPool",
    runtime="onnxruntime",
    c=LENGTHS,
    size=shapes(2),
    boxes=LENGTHS,
    out=shapes(2, lengths=_TWO),
)
def max_roi_pool(g: Graph, c: SimpleNamespace) -> str:
    """Boxes of one image."""
    boxes = g.constant([[0, 0, 0, i % 2, 1] for i in range(c.boxes)])
    data = g.free((1, c.c, *c.size))
    return g.node("MaxRoiPool", data, boxes, pooled_shape=list(c.out))


@space(
    "MaxUnpool",
    exact=True,
    runtime="onnxruntime",
    n=_TWO,
    c=LENGTHS,
    size=((2,), (4,), (2, 2), (4, 2)),
    given=(False, True),
    between=("", "Relu"),
)
def max_unpool(g: Graph, c: SimpleNamespace) -> str:
    """The inverse of a pooling, with and without the size."""
    window = {"kernel_shape": [2] * len(c.size), "strides": [2] * len(c.size)}
    shape = (c.n, c.c, *c.size)
    pooled, indices = g.node_of(2, "MaxPool", g.free(shape), name="", **window)
    values = g.node(c.between, pooled, name="") if c.between else pooled
    size = g.integers(*shape) if c.given else ""
    return g.node("MaxUnpool", values, indices, size, **window)
