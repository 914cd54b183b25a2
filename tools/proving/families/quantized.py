"""Worlds of quantized operators.

onnxruntime runs them: their steps are small integers and their scales powers of two, so float32
holds every value, and equality to the bit is demanded.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from proving.worlds import LENGTHS, Graph, shapes, space

_TWO = (1, 2)
_TYPES = (np.uint8, np.int8)
_DOMAIN = "com.microsoft"
SCALE = 0.5  # of activations


def zero_point(g: Graph, dtype: type, shape: tuple[int, ...] = ()) -> str:
    """Return zero points: in the middle of unsigned types."""
    low = 120 if dtype is np.uint8 else -3
    return g.weight(shape, low, low + 6, dtype=dtype)


def scales(g: Graph, shape: tuple[int, ...] = ()) -> str:
    """Return powers of two."""
    return g.constant(2.0 ** -g.rng.integers(1, 4, shape), np.float32)


def steps(g: Graph, shape: tuple[int, ...], dtype: type) -> str:
    """Return quantized weights."""
    low = 116 if dtype is np.uint8 else -8
    return g.weight(shape, low, low + 16, dtype=dtype)


def quantized(g: Graph, shape: tuple[int, ...], dtype: type) -> tuple[str, str, str]:
    """Return a computed tensor in steps, with its scale and zero point."""
    scale, zero = g.constant(SCALE, np.float32), zero_point(g, dtype)
    return g.node("QuantizeLinear", g.free(shape), scale, zero, name=""), scale, zero


def dequantized(g: Graph, tensor: str, scale: str, zero: str) -> str:
    """Return a quantized tensor in floats."""
    return g.node("DequantizeLinear", tensor, scale, zero, name="")


@space(
    "QuantizeLinear DequantizeLinear",
    exact=True,
    runtime="onnxruntime",
    opset=(13, 21),
    axis=(None, -3, -2, -1, 0, 1, 2),
    form=("tensor", "one", "channel", "blocked"),
    dtype=_TYPES,
    zero=(True, False),
    shape=shapes(1, 2, 3),
)
def quantize(g: Graph, c: SimpleNamespace) -> str | None:
    """Per tensor, per position of any axis, and in blocks of it."""
    rank, axis = len(c.shape), 1 if c.axis is None else c.axis
    along = c.form in ("channel", "blocked")
    if (along and not -rank <= axis < rank) or (not along and c.axis is not None):
        return None
    if (c.form == "blocked" and c.opset < 21) or (not c.zero and c.dtype is np.int8):
        return None
    size: tuple[int, ...] = {"tensor": (), "one": (1,)}.get(
        c.form, c.shape[axis : axis + 1 or None]
    )
    block = None
    if c.form == "blocked":
        block = 2 if c.shape[axis] > 1 else 1
        counts = list(c.shape)
        counts[axis] = -(-c.shape[axis] // block)
        size = tuple(counts)
    scale = scales(g, size)
    zero = zero_point(g, c.dtype, size) if c.zero else ""
    attributes = {"axis": c.axis, "block_size": block}
    if c.op == "QuantizeLinear":
        return g.node("QuantizeLinear", g.free(c.shape), scale, zero, **attributes)
    data, _, _ = quantized(g, c.shape, c.dtype)
    return g.node("DequantizeLinear", data, scale, zero, **attributes)


@space("DynamicQuantizeLinear", runtime="onnxruntime", shape=shapes(1, 2, 3))
def dynamic_quantize(g: Graph, c: SimpleNamespace) -> str:
    """Scale and zero point of all values."""
    tensor, scale, zero = g.node_of(3, "DynamicQuantizeLinear", g.free(c.shape))
    return dequantized(g, tensor, scale, zero)


@space(
    "ConvInteger QLinearConv",
    exact=True,
    runtime="onnxruntime",
    g=LENGTHS,
    c=LENGTHS,
    o=LENGTHS,
    h=LENGTHS,
    k=_TWO,
    pad=(0, 1),
    dtype=_TYPES,
    weight_zero=("", "tensor", "channel"),
    bias=(False, True),
)
def conv(g: Graph, c: SimpleNamespace) -> str | None:
    """Groups; scales and zero points of the weight per tensor and per filter."""
    integer = c.op == "ConvInteger"
    if c.h + 2 * c.pad < c.k or (integer and c.bias) or (not integer and not c.weight_zero):
        return None
    out, dtype = (c.g * c.o,), np.uint8 if integer else np.int8
    data, scale, zero = quantized(g, (1, c.g * c.c, c.h, 2), c.dtype)
    weight = steps(g, (c.g * c.o, c.c, c.k, 1), dtype)
    per = out if c.weight_zero == "channel" else ()
    attributes = {"group": c.g, "pads": [c.pad, 0, c.pad, 0]}
    if integer:
        second = zero_point(g, dtype, per) if c.weight_zero else ""
        return g.node("ConvInteger", data, weight, zero, second, **attributes)
    # the zero points of signed weights must be zero
    weight_zero = g.constant(np.zeros(per), dtype)
    result, result_zero = g.constant(4.0, np.float32), zero_point(g, c.dtype)
    bias = g.weight(out, -40, 41, dtype=np.int32) if c.bias else ""
    operands = (data, scale, zero, weight, scales(g, per), weight_zero, result, result_zero, bias)
    return dequantized(g, g.node("QLinearConv", *operands, **attributes), result, result_zero)


@space(
    "MatMulInteger QLinearMatMul",
    exact=True,
    runtime="onnxruntime",
    batch=shapes(0, 1),
    m=LENGTHS,
    k=LENGTHS,
    n=LENGTHS,
    dtype=_TYPES,
    second=("weight", "free"),
    zero=("", "tensor", "channel"),
)
def matmul(g: Graph, c: SimpleNamespace) -> str | None:
    """Two quantized matrices; zero points per tensor and per column."""
    integer = c.op == "MatMulInteger"
    if (not integer and not c.zero) or (c.second == "free" and c.zero == "channel"):
        return None
    dtype = np.uint8 if integer else np.int8
    data, scale, zero = quantized(g, (*c.batch, c.m, c.k), c.dtype)
    per = (c.n,) if c.zero == "channel" else ()
    if c.second == "free":
        weight, weight_scale, weight_zero = quantized(g, (c.k, c.n), dtype)
    else:
        weight, weight_scale = steps(g, (c.k, c.n), dtype), scales(g, per)
        weight_zero = zero_point(g, dtype, per) if integer else g.constant(np.zeros(per), dtype)
    if integer:
        return g.node("MatMulInteger", data, weight, zero, weight_zero if c.zero else "")
    result, result_zero = g.constant(4.0, np.float32), zero_point(g, c.dtype)
    operands = (data, scale, zero, weight, weight_scale, weight_zero, result, result_zero)
    return dequantized(g, g.node("QLinearMatMul", *operands), result, result_zero)


@space(
    "QGemm",
    exact=True,
    runtime="onnxruntime",
    m=LENGTHS,
    k=LENGTHS,
    n=LENGTHS,
    transposed=((0, 0), (0, 1), (1, 0), (1, 1)),
    bias=("", "n", "1n", "mn"),
    per_channel=(False, True),
    float_result=(False, True),
)
def qgemm(g: Graph, c: SimpleNamespace) -> str:
    """All orders of axes; the result quantized or float."""
    data, scale, zero = quantized(g, (c.k, c.m) if c.transposed[0] else (c.m, c.k), np.uint8)
    weight = steps(g, (c.n, c.k) if c.transposed[1] else (c.k, c.n), np.int8)
    per = (c.n,) if c.per_channel else ()
    length = {"m": c.m, "n": c.n, "1": 1}
    bias = g.weight([length[x] for x in c.bias], -40, 41, dtype=np.int32) if c.bias else ""
    operands = [data, scale, zero, weight, scales(g, per), g.constant(np.zeros(per), np.int8), bias]
    attributes = {"transA": c.transposed[0], "transB": c.transposed[1], "domain": _DOMAIN}
    if c.float_result:
        return g.node("QGemm", *operands, **attributes)
    result, result_zero = g.constant(4.0, np.float32), zero_point(g, np.uint8)
    tensor = g.node("QGemm", *operands, result, result_zero, **attributes)
    return dequantized(g, tensor, result, result_zero)


@space(
    "DynamicQuantizeMatMul MatMulIntegerToFloat",
    runtime="onnxruntime",
    batch=shapes(0, 1),
    m=LENGTHS,
    k=LENGTHS,
    n=LENGTHS,
    per_channel=(False, True),
    zero=(False, True),
    bias=(False, True),
)
def matmul_to_float(g: Graph, c: SimpleNamespace) -> str:
    """Scales and zero points per tensor and per column, with and without a bias."""
    per = (c.n,) if c.per_channel else (1,)
    weight, weight_scale = steps(g, (c.k, c.n), np.uint8), scales(g, per)
    weight_zero = zero_point(g, np.uint8, per) if c.zero else ""
    bias = g.weight((c.n,)) if c.bias else ""
    shape = (*c.batch, c.m, c.k)
    if c.op == "DynamicQuantizeMatMul":
        operands = [g.free(shape), weight, weight_scale, weight_zero, bias]
    else:
        data, scale, zero = quantized(g, shape, np.uint8)
        operands = [data, weight, scale, weight_scale, zero, weight_zero, bias]
    return g.node(c.op, *operands, domain=_DOMAIN)


@space(
    "QLinearAdd QLinearMul",
    exact=True,
    runtime="onnxruntime",
    dtype=_TYPES,
    form=("n", "1n", "n1", "nn", "1nn", "n1n", "nn1", "nnn"),
    second=("free", "weight"),
    shape=shapes(1, 2, 3),
)
def elementwise(g: Graph, c: SimpleNamespace) -> str | None:
    """Two quantized operands of all shapes that broadcast."""
    if len(c.form) > len(c.shape):
        return None
    tail = c.shape[len(c.shape) - len(c.form) :]
    shape = tuple(n if mark == "n" else 1 for n, mark in zip(tail, c.form, strict=True))
    operands = [*quantized(g, c.shape, c.dtype)]
    if c.second == "free":
        operands += quantized(g, shape, c.dtype)
    else:
        operands += [steps(g, shape, c.dtype), scales(g), zero_point(g, c.dtype)]
    result, zero = g.constant(4.0, np.float32), zero_point(g, c.dtype)
    return dequantized(g, g.node(c.op, *operands, result, zero, domain=_DOMAIN), result, zero)


@space(
    "QLinearLeakyRelu QLinearSigmoid QLinearSoftmax",
    runtime="onnxruntime",
    dtype=_TYPES,
    axis=(None, -2, -1, 0, 1),
    opset_of_softmax=(11, 13),
    shape=shapes(2, 3),
)
def unary(g: Graph, c: SimpleNamespace) -> str | None:
    """One quantized operand; Softmax along any axis, in both definitions."""
    softmax = c.op == "QLinearSoftmax"
    if not softmax and (c.axis is not None or c.opset_of_softmax != 13):
        return None
    data = quantized(g, c.shape, c.dtype)
    result = g.constant(1 / 128 if softmax or c.op == "QLinearSigmoid" else SCALE, np.float32)
    zero = g.constant(-100 if c.dtype is np.int8 else 0, c.dtype)
    attributes = {"axis": c.axis, "opset": c.opset_of_softmax} if softmax else {}
    tensor = g.node(c.op, *data, result, zero, domain=_DOMAIN, **attributes)
    return dequantized(g, tensor, result, zero)


@space("QLinearWhere", exact=True, runtime="onnxruntime", dtype=_TYPES, shape=shapes(1, 2, 3))
def where(g: Graph, c: SimpleNamespace) -> str:
    """A computed condition and two quantized operands."""
    condition = g.node("Greater", g.free(c.shape), g.constant(0), name="")
    first, second = quantized(g, c.shape, c.dtype), quantized(g, c.shape, c.dtype)
    result, zero = g.constant(SCALE, np.float32), zero_point(g, c.dtype)
    operands = (condition, *first, *second, result, zero)
    return dequantized(g, g.node("QLinearWhere", *operands, domain=_DOMAIN), result, zero)


@space(
    "QLinearAveragePool QLinearGlobalAveragePool",
    exact=True,
    runtime="onnxruntime",
    dtype=_TYPES,
    channels_last=(0, 1),
    kernel=_TWO,
    pad=(0, 1),
    shape=shapes(4),
)
def pool(g: Graph, c: SimpleNamespace) -> str | None:
    """Channels in front and at the end."""
    spatial = c.shape[1:3] if c.channels_last else c.shape[2:]
    everywhere = c.op == "QLinearGlobalAveragePool"
    if (everywhere and (c.kernel > 1 or c.pad)) or c.pad >= c.kernel:
        return None
    if any(n + 2 * c.pad < c.kernel for n in spatial):
        return None
    data = quantized(g, c.shape, c.dtype)
    result, zero = g.constant(SCALE, np.float32), zero_point(g, c.dtype)
    window = {} if everywhere else {"kernel_shape": [c.kernel] * 2, "pads": [c.pad] * 4}
    layout = {"channels_last": c.channels_last}
    tensor = g.node(c.op, *data, result, zero, domain=_DOMAIN, **window, **layout)
    return dequantized(g, tensor, result, zero)


@space(
    "QLinearConcat",
    exact=True,
    runtime="onnxruntime",
    dtype=_TYPES,
    axis=(0, 1, 2, -1),
    length=LENGTHS,
    shape=shapes(1, 2, 3),
)
def concat(g: Graph, c: SimpleNamespace) -> str | None:
    """Two computed parts with their own scales."""
    if c.axis >= len(c.shape):
        return None
    shape = list(c.shape)
    shape[c.axis] = c.length
    result, zero = g.constant(SCALE, np.float32), zero_point(g, c.dtype)
    parts = (*quantized(g, c.shape, c.dtype), *quantized(g, tuple(shape), c.dtype))
    tensor = g.node("QLinearConcat", result, zero, *parts, domain=_DOMAIN, axis=c.axis)
    return dequantized(g, tensor, result, zero)
