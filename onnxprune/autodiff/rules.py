"""The backward table: one row an op.

A row of an elementwise op is its derivative: g is the gradient of the output, x the input, y the output, `at` reads an attribute.
The others are functions of a `Step` that give one gradient an input. An op that is in neither table has no gradient, and the
builder says so; an op in ZERO has a gradient that is zero almost everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from onnx import TensorProto

from onnxprune.autodiff import contractions, movement, statistics, windows
from onnxprune.autodiff.step import NoGradient, Rule, Step
from onnxprune.autodiff.tape import Value, total

Derivative = Callable[[Value, Value, Value, Callable[..., Any]], Value]
_UNBOUNDED = 3e38  # Clip's default bounds are the largest float
_SELU_ALPHA, _SELU_GAMMA = 1.6732632423543772, 1.0507009873554805  # ONNX operator Selu, defaults


def unary(derivative: Derivative) -> Rule:
    """A rule for an elementwise op whose first input alone has a gradient."""

    def rule(s: Step) -> list[Value | None]:
        s.only_first()
        return [derivative(s.grad, s.x, s.y, s.attribute)]

    return rule


def binary(
    first: Callable[[Value, Value, Value, Value], Value],
    second: Callable[[Value, Value, Value, Value], Value],
) -> Rule:
    """A rule for an elementwise op of two inputs from (g, a, b, y); what was broadcast is summed."""

    def rule(s: Step) -> list[Value | None]:
        a, b = s.x, s.operand(1)
        return [
            first(s.grad, a, b, s.y).sum_to(a.shape) if s.needs[0] else None,
            second(s.grad, a, b, s.y).sum_to(b.shape) if s.needs[1] else None,
        ]

    return rule


def variadic(term: Callable[[Step, Value], Value]) -> Rule:
    """A rule for an op of any number of inputs that are treated alike."""

    def rule(s: Step) -> list[Value | None]:
        values = [s.operand(i) for i in range(len(s.inputs))]
        return [
            term(s, v).sum_to(v.shape) if need else None
            for v, need in zip(values, s.needs, strict=False)
        ]

    return rule


def _extremum(s: Step, x: Value) -> Value:
    """Max, Min: inputs that are equally large share the gradient."""
    hits = total([s.operand(i).equals(s.y).cast(s.grad.dtype) for i in range(len(s.inputs))])
    return s.grad / hits * x.equals(s.y)


def _where(s: Step) -> list[Value | None]:
    condition = s.x
    chosen = s.grad.where(condition).sum_to(s.operand(1).shape) if s.needs[1] else None
    other = s.grad.where(~condition).sum_to(s.operand(2).shape) if s.needs[2] else None
    return [None, chosen, other]


def _gelu(g: Value, x: Value, y: Value, at: Callable[..., Any]) -> Value:
    """Gelu: x Phi(x), exact or by tanh."""
    if at("approximate", "none") == "tanh":
        t = ((x + x * x * x * 0.044715) * math.sqrt(2 / math.pi)).call("Tanh")
        inner = (x * x * (3 * 0.044715) + 1.0) * math.sqrt(2 / math.pi)
        return g * ((t + 1.0) * 0.5 + x * 0.5 * (1.0 - t * t) * inner)
    phi = ((x * math.sqrt(0.5)).call("Erf") + 1.0) * 0.5
    return g * (phi + x * (x * x * -0.5).call("Exp") * (1 / math.sqrt(2 * math.pi)))


def _mish(g: Value, x: Value, y: Value, at: Callable[..., Any]) -> Value:
    t = x.call("Softplus").call("Tanh")
    return g * (t + x * x.call("Sigmoid") * (1.0 - t * t))


def _swish(g: Value, x: Value, y: Value, at: Callable[..., Any]) -> Value:
    gate = (x * at("alpha", 1.0)).call("Sigmoid")
    return g * (gate + y * (1.0 - gate) * at("alpha", 1.0))


def _kinked(g: Value, sign: Value, slope: Value) -> Value:
    """G where `sign` is positive, slope * g elsewhere; slope: (channels,) is the fast form."""
    if sign.dtype != TensorProto.FLOAT or len(sign.shape) < 3 or slope.shape != sign.shape[1:2]:
        return g.where(sign > 0, g * slope)
    return g * sign.above(0).affine(1.0 - slope, slope)


def _leaky_relu(g: Value, x: Value, y: Value, at: Callable[..., Any]) -> Value:
    """By the output where it has the input's sign, so that Conv and LeakyRelu stay fused."""
    alpha = at("alpha", 0.01)
    return _kinked(
        g,
        y if alpha > 0 else x,
        x.like(np.full(x.shape[1:2], alpha)) if len(x.shape) > 2 else x.like(alpha),
    )


def _prelu(g: Value, a: Value, b: Value, y: Value) -> Value:
    by_channel = len(a.shape) > 2 and b.shape == (a.shape[1], *[1] * (len(a.shape) - 2))
    return _kinked(g, a, b.reshape(a.shape[1:2]) if by_channel else b)


def _clip(s: Step) -> list[Value | None]:
    """Clip: 0 at the bounds too, as for Relu. By the output where the bounds are known, so that Conv and Clip stay fused."""
    s.only_first()
    low, high = s.numbers(1, "min"), s.numbers(2, "max")
    masks = [s.y.above(low[0])] if low is not None and low[0] > -_UNBOUNDED else []
    masks += [s.y.below(high[0])] if high is not None and high[0] < _UNBOUNDED else []
    inside = masks[0] * masks[1] if len(masks) > 1 else masks[0] if masks else None
    return [s.grad if inside is None else s.grad * inside]


def _dropout(s: Step) -> list[Value | None]:
    if len(s.inputs) > 2 and s.optional(2) is not None and s.numbers(2) != [False]:
        raise NoGradient("Dropout in training mode")
    return [s.grad]


def _power_base(g: Value, a: Value, b: Value, y: Value) -> Value:
    exponent = b.cast(a.dtype)
    return g * exponent * a ** (exponent - 1.0)


ELEMENTWISE: Mapping[str, Derivative] = {
    "Relu": lambda g, x, y, at: g * y.above(0),
    "LeakyRelu": _leaky_relu,
    "ThresholdedRelu": lambda g, x, y, at: g * (x > at("alpha", 1.0)),
    "Elu": lambda g, x, y, at: g.where(x > 0, g * (y + at("alpha", 1.0))),
    "Selu": lambda g, x, y, at: (
        g.where(x > 0, g * x.call("Exp") * at("alpha", _SELU_ALPHA)) * at("gamma", _SELU_GAMMA)
    ),
    "Celu": lambda g, x, y, at: g.where(x > 0, g * (x / at("alpha", 1.0)).call("Exp")),
    "Sigmoid": lambda g, x, y, at: g * y * (1.0 - y),
    "HardSigmoid": lambda g, x, y, at: g * ((y > 0) & (y < 1)) * at("alpha", 0.2),
    "HardSwish": lambda g, x, y, at: (
        (g * (x * (1 / 3) + 0.5) * (x < 3)).where(x > -3).where(x < 3, g)
    ),
    "Swish": _swish,
    "Mish": _mish,
    "Gelu": _gelu,
    "Softplus": lambda g, x, y, at: g * x.call("Sigmoid"),
    "Softsign": lambda g, x, y, at: g / ((x.call("Abs") + 1.0) * (x.call("Abs") + 1.0)),
    "Tanh": lambda g, x, y, at: g * (1.0 - y * y),
    "Erf": lambda g, x, y, at: g * (x * x * -1.0).call("Exp") * (2 / math.sqrt(math.pi)),
    "Exp": lambda g, x, y, at: g * y,
    "Log": lambda g, x, y, at: g / x,
    "Sqrt": lambda g, x, y, at: g * 0.5 / y,
    "Reciprocal": lambda g, x, y, at: -(g * y * y),
    "Neg": lambda g, x, y, at: -g,
    "Abs": lambda g, x, y, at: g * x.call("Sign"),
    "Sin": lambda g, x, y, at: g * x.call("Cos"),
    "Cos": lambda g, x, y, at: -(g * x.call("Sin")),
    "Tan": lambda g, x, y, at: g * (y * y + 1.0),
    "Atan": lambda g, x, y, at: g / (x * x + 1.0),
    "Identity": lambda g, x, y, at: g,
    "Cast": lambda g, x, y, at: g.cast(x.dtype),
}

TABLE: Mapping[str, Rule] = {
    **{op: unary(derivative) for op, derivative in ELEMENTWISE.items()},
    "Clip": _clip,
    "CastLike": lambda s: [s.grad.cast(s.x.dtype)],
    "Dropout": _dropout,
    "Add": binary(lambda g, a, b, y: g, lambda g, a, b, y: g),
    "Sub": binary(lambda g, a, b, y: g, lambda g, a, b, y: -g),
    "Mul": binary(lambda g, a, b, y: g * b, lambda g, a, b, y: g * a),
    "Div": binary(lambda g, a, b, y: g / b, lambda g, a, b, y: -(g * y / b)),
    "Pow": binary(_power_base, lambda g, a, b, y: g * y * a.call("Log")),
    "PRelu": binary(_prelu, lambda g, a, b, y: (g * a).where(~(a > 0))),
    "Sum": variadic(lambda s, x: s.grad),
    "Mean": variadic(lambda s, x: s.grad * (1.0 / len(s.inputs))),
    "Max": variadic(_extremum),
    "Min": variadic(_extremum),
    "Where": _where,
    "Conv": contractions.conv,
    "ConvTranspose": contractions.conv_transpose,
    "Gemm": contractions.gemm,
    "MatMul": contractions.matmul,
    "Einsum": contractions.einsum,
    "MaxPool": windows.max_pool,
    "AveragePool": windows.average_pool,
    "GlobalAveragePool": windows.global_average_pool,
    "GlobalMaxPool": windows.global_max_pool,
    "Resize": windows.resize,
    "Upsample": windows.resize,
    "ReduceSum": statistics.reduction(lambda g, x, y, axes: g),
    "ReduceMean": statistics.reduction(lambda g, x, y, axes: g * (1.0 / statistics.count(x, axes))),
    "ReduceMax": statistics.reduction(statistics.extremum),
    "ReduceMin": statistics.reduction(statistics.extremum),
    "ReduceL1": statistics.reduction(lambda g, x, y, axes: g * x.call("Sign")),
    "ReduceL2": statistics.reduction(lambda g, x, y, axes: g / y * x),
    "ReduceSumSquare": statistics.reduction(lambda g, x, y, axes: g * 2.0 * x),
    "ReduceLogSum": statistics.reduction(lambda g, x, y, axes: g / y.call("Exp")),
    "ReduceLogSumExp": statistics.reduction(lambda g, x, y, axes: g * (x - y).call("Exp")),
    "Softmax": statistics.softmax,
    "LogSoftmax": statistics.log_softmax,
    "BatchNormalization": statistics.batch_normalization,
    "LayerNormalization": statistics.layer_normalization,
    "RMSNormalization": statistics.rms_normalization,
    "InstanceNormalization": statistics.instance_normalization,
    "GroupNormalization": statistics.group_normalization,
    "LpNormalization": statistics.lp_normalization,
    "LRN": statistics.local_response,
    "Reshape": movement.reshape,
    "Flatten": movement.reshape,
    "Squeeze": movement.reshape,
    "Unsqueeze": movement.reshape,
    "Transpose": movement.transpose,
    "Expand": movement.expand,
    "Tile": movement.tile,
    "Concat": movement.concatenate,
    "Split": movement.split,
    "Slice": movement.slice_,
    "Pad": movement.pad,
    "Gather": movement.gather,
    "GatherND": movement.gather_nd,
    "TopK": movement.top_k,
    "CumSum": movement.cumulative_sum,
    "Trilu": movement.triangle,
    "DepthToSpace": movement.depth_to_space,
    "SpaceToDepth": movement.space_to_depth,
}

ZERO = frozenset(
    {
        "Shape",
        "Size",
        "ArgMax",
        "ArgMin",
        "Equal",
        "Greater",
        "GreaterOrEqual",
        "Less",
        "LessOrEqual",
        "Not",
        "And",
        "Or",
        "Xor",
        "Floor",
        "Ceil",
        "Round",
        "Sign",
        "NonZero",
        "NonMaxSuppression",
        "IsNaN",
        "IsInf",
        "ConstantOfShape",
        "Range",
        "OneHot",
        "EyeLike",
        "RandomNormalLike",
        "RandomUniformLike",
    }
)

# an output that the gradient needs and exporters leave out: op -> position
EXTRA_OUTPUT: Mapping[str, int] = {"MaxPool": 1}
