"""Gradient rules, one row per operator.

A row of ELEMENTWISE is the derivative of an elementwise operator: g is the gradient of the output,
x the input, y the output, `at` reads an attribute. A row of TABLE is a function of a
`BackwardStep` that returns one gradient per input. An operator without a row blocks gradients,
which the builder reports. The gradient of an operator in ZERO is zero almost everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from onnx import TensorProto

from onnxprune.autodiff import contractions, movement, pooling, reductions
from onnxprune.autodiff.step import BackwardStep, NoGradient, Rule
from onnxprune.autodiff.tape import Value, total

Derivative = Callable[[Value, Value, Value, Callable[..., Any]], Value]
_UNBOUNDED = 3e38  # Clip's default bounds are the largest float
_SELU_ALPHA, _SELU_GAMMA = 1.6732632423543772, 1.0507009873554805  # ONNX operator Selu, defaults


def unary(derivative: Derivative) -> Rule:
    """Return the rule of an elementwise operator; only its first input has a gradient."""

    def rule(s: BackwardStep) -> list[Value | None]:
        s.only_first()
        return [derivative(s.grad, s.x, s.y, s.attribute)]

    return rule


def binary(
    first: Callable[[Value, Value, Value, Value], Value],
    second: Callable[[Value, Value, Value, Value], Value],
) -> Rule:
    """Return the rule of an elementwise operator of two inputs.

    Broadcast axes are summed.

    Parameters
    ----------
    first, second
        (g, a, b, y) -> gradient of the input.
    """

    def rule(s: BackwardStep) -> list[Value | None]:
        a, b = s.x, s.operand(1)
        return [
            first(s.grad, a, b, s.y).sum_to(a.shape) if s.needs[0] else None,
            second(s.grad, a, b, s.y).sum_to(b.shape) if s.needs[1] else None,
        ]

    return rule


def variadic(term: Callable[[BackwardStep, Value], Value]) -> Rule:
    """Return the rule of an operator that treats any number of inputs alike."""

    def rule(s: BackwardStep) -> list[Value | None]:
        values = [s.operand(i) for i in range(len(s.inputs))]
        return [
            term(s, v).sum_to(v.shape) if need else None
            for v, need in zip(values, s.needs, strict=True)
        ]

    return rule


def _extremum(s: BackwardStep, x: Value) -> Value:
    """Differentiate Max and Min; equal inputs share the gradient."""
    hits = total([s.operand(i).equals(s.y).cast(s.grad.dtype) for i in range(len(s.inputs))])
    return s.grad / hits * x.equals(s.y)


def _where(s: BackwardStep) -> list[Value | None]:
    """Differentiate Where by both branches."""
    condition = s.x
    chosen = s.grad.where(condition).sum_to(s.operand(1).shape) if s.needs[1] else None
    other = s.grad.where(~condition).sum_to(s.operand(2).shape) if s.needs[2] else None
    return [None, chosen, other]


def _gelu(g: Value, x: Value, y: Value, at: Callable[..., Any]) -> Value:
    """Differentiate Gelu, x Phi(x), exact or approximated by Tanh."""
    if at("approximate", "none") == "tanh":
        t = ((x + x * x * x * 0.044715) * math.sqrt(2 / math.pi)).call("Tanh")
        inner = (x * x * (3 * 0.044715) + 1.0) * math.sqrt(2 / math.pi)
        return g * ((t + 1.0) * 0.5 + x * 0.5 * (1.0 - t * t) * inner)
    phi = ((x * math.sqrt(0.5)).call("Erf") + 1.0) * 0.5
    return g * (phi + x * (x * x * -0.5).call("Exp") * (1 / math.sqrt(2 * math.pi)))


def _mish(g: Value, x: Value, y: Value, at: Callable[..., Any]) -> Value:
    """Differentiate Mish, x Tanh(Softplus(x))."""
    t = x.call("Softplus").call("Tanh")
    return g * (t + x * x.call("Sigmoid") * (1.0 - t * t))


def _swish(g: Value, x: Value, y: Value, at: Callable[..., Any]) -> Value:
    """Differentiate Swish, x Sigmoid(alpha x)."""
    gate = (x * at("alpha", 1.0)).call("Sigmoid")
    return g * (gate + y * (1.0 - gate) * at("alpha", 1.0))


def _select_slope(g: Value, sign: Value, slope: Value) -> Value:
    """Return g for positive `sign`, slope * g elsewhere.

    A slope of shape (channels,) stays in onnxruntime's blocked layout, which is faster.
    """
    if not _is_blocked(sign) or slope.shape != sign.shape[1:2]:
        return g.where(sign > 0, g * slope)
    # the two sum to 1 where `sign` is positive, and the shift remains elsewhere
    return g * sign.above(0).affine(1.0 - slope, slope)


def _is_blocked(x: Value) -> bool:
    """Return whether onnxruntime has a blocked layout for a tensor: (batch, channels, ...)."""
    return x.dtype == TensorProto.FLOAT and len(x.shape) > 2


def _leaky_relu(g: Value, x: Value, y: Value, at: Callable[..., Any]) -> Value:
    """Differentiate LeakyRelu."""
    alpha = at("alpha", 0.01)
    # reading the output, which has the input's sign, keeps Conv and LeakyRelu fused
    sign = y if alpha > 0 else x
    slope = x.like(np.full(x.shape[1:2], alpha)) if _is_blocked(x) else x.like(alpha)
    return _select_slope(g, sign, slope)


def _prelu(g: Value, a: Value, b: Value, y: Value) -> Value:
    """Differentiate PRelu by its data."""
    per_channel = _is_blocked(a) and b.shape == (a.shape[1], *[1] * (len(a.shape) - 2))
    return _select_slope(g, a, b.reshape(a.shape[1:2]) if per_channel else b)


def _clip(s: BackwardStep) -> list[Value | None]:
    """Differentiate Clip; the gradient is 0 at the bounds too, as for Relu."""
    s.only_first()
    low, high = s.numbers(1, "min"), s.numbers(2, "max")
    masks = []
    # masks of the output, not of the input, keep Conv and Clip fused
    if low is not None and low[0] > -_UNBOUNDED:
        masks.append(s.y.above(low[0]))
    if high is not None and high[0] < _UNBOUNDED:
        masks.append(s.y.below(high[0]))
    if not masks:
        return [s.grad]
    return [s.grad * (masks[0] * masks[1] if len(masks) > 1 else masks[0])]


def _dropout(s: BackwardStep) -> list[Value | None]:
    """Differentiate Dropout at inference."""
    # the mode is an input since opset 12
    if len(s.inputs) > 2 and s.optional(2) is not None and s.numbers(2) != [False]:
        raise NoGradient("Dropout in training mode")
    return [s.grad]


def _power_base(g: Value, a: Value, b: Value, y: Value) -> Value:
    """Differentiate Pow by its base."""
    # exponents may be integers
    exponent = b.cast(a.dtype)
    return g * exponent * a ** (exponent - 1.0)


ELEMENTWISE: Mapping[str, Derivative] = {
    # by the output, which keeps Conv and Relu fused
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
    "MaxPool": pooling.max_pool,
    "AveragePool": pooling.average_pool,
    "GlobalAveragePool": pooling.global_average_pool,
    "GlobalMaxPool": pooling.global_max_pool,
    "Resize": pooling.resize,
    "Upsample": pooling.resize,
    "ReduceSum": reductions.reduction(lambda g, x, y, axes: g),
    "ReduceMean": reductions.reduction(lambda g, x, y, axes: g * (1.0 / reductions.count(x, axes))),
    "ReduceMax": reductions.reduction(reductions.extremum),
    "ReduceMin": reductions.reduction(reductions.extremum),
    "ReduceL1": reductions.reduction(lambda g, x, y, axes: g * x.call("Sign")),
    # zero where all elements are: the norm has no gradient there
    "ReduceL2": reductions.reduction(lambda g, x, y, axes: (g / y * x).where(y > 0)),
    "ReduceSumSquare": reductions.reduction(lambda g, x, y, axes: g * 2.0 * x),
    "ReduceLogSum": reductions.reduction(lambda g, x, y, axes: g / y.call("Exp")),
    "ReduceLogSumExp": reductions.reduction(lambda g, x, y, axes: g * (x - y).call("Exp")),
    "Softmax": reductions.softmax,
    "LogSoftmax": reductions.log_softmax,
    "BatchNormalization": reductions.batch_normalization,
    "LayerNormalization": reductions.layer_normalization,
    "RMSNormalization": reductions.rms_normalization,
    "SimplifiedLayerNormalization": reductions.rms_normalization,
    "InstanceNormalization": reductions.instance_normalization,
    "GroupNormalization": reductions.group_normalization,
    "LpNormalization": reductions.lp_normalization,
    "LRN": reductions.local_response,
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
    "Trilu": movement.trilu,
    "DepthToSpace": movement.depth_to_space,
    "SpaceToDepth": movement.space_to_depth,
}

_ZERO_OPS = """
Shape Size ArgMax ArgMin Equal Greater GreaterOrEqual Less LessOrEqual Not And Or Xor
Floor Ceil Round Sign NonZero NonMaxSuppression IsNaN IsInf
ConstantOfShape Range OneHot EyeLike RandomNormalLike RandomUniformLike
"""
ZERO = frozenset(_ZERO_OPS.split())

# outputs that gradients need and exporters omit: op -> position
EXTRA_OUTPUT: Mapping[str, int] = {"MaxPool": 1}
