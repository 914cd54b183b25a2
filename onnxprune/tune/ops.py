"""ONNX operators in torch, one row per operator: the table with which `bridge` runs a graph.

A row is a function of (Call, *inputs) and the positions of trainable inputs. This module holds
elementwise operators and reductions and joins the tables of the others: `ops_shape` moves data,
`ops_nn` contracts, pools and normalizes, `ops_rnn` holds the recurrent operators.

Source of the semantics: https://onnx.ai/onnx/operators
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping

from onnxprune.tune.call import Call, Row, Tensor, to_common_device, torch
from onnxprune.tune.ops_nn import NN
from onnxprune.tune.ops_rnn import RECURRENT
from onnxprune.tune.ops_shape import SHAPE

F = torch.nn.functional
MAX_TRAINABLE = 8  # inputs of Sum, Min and Max that may be parameters


def _unary(function: Callable[..., Tensor]) -> Row:
    """Return the row of a function of one tensor."""
    return Row(lambda c, x: function(x))


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Row:
    """Return the row of a broadcasting function of two tensors; either may be a parameter."""
    return Row(
        lambda c, a, b: function(*to_common_device(a, b)), trainable=(0, 1), elementwise=True
    )


def _variadic(function: Callable[[Tensor, Tensor], Tensor]) -> Row:
    """Return the row of an operator that reduces any number of tensors from the left."""
    return Row(
        lambda c, *xs: functools.reduce(function, to_common_device(*xs)),
        trainable=tuple(range(MAX_TRAINABLE)),
        elementwise=True,
    )


def _logical(function: Callable[[Tensor, Tensor], Tensor]) -> Row:
    """Return the row of a comparison, which has no gradient."""
    return Row(lambda c, a, b: function(*to_common_device(a, b)))


def _divide(a: Tensor, b: Tensor) -> Tensor:
    if a.is_floating_point() or b.is_floating_point():
        return a / b
    # ONNX truncates the quotient of integers, torch's operator would return floats
    return torch.div(a, b, rounding_mode="trunc")


def _mod(c: Call, a: Tensor, b: Tensor) -> Tensor:
    return (
        # fmod has the sign of the dividend, the other form that of the divisor
        torch.fmod(*to_common_device(a, b))
        if c.get("fmod", 0)
        else torch.remainder(*to_common_device(a, b))
    )


def _clip(c: Call, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    # bounds are attributes before opset 11, inputs from there on
    least = c.get("min", None) if low is None else low.item()
    most = c.get("max", None) if high is None else high.item()
    return x if least is None and most is None else torch.clamp(x, least, most)


def _gelu(c: Call, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=c.get("approximate", "none"))


def _prelu(c: Call, x: Tensor, slope: Tensor) -> Tensor:
    # torch's prelu takes one factor per channel only, ONNX broadcasts any shape
    return torch.where(x < 0, x * slope, x)


def _shrink(c: Call, x: Tensor) -> Tensor:
    bias, limit = c.get("bias", 0.0), c.get("lambd", 0.5)
    return torch.where(x < -limit, x + bias, torch.where(x > limit, x - bias, torch.zeros_like(x)))


def _cast(c: Call, x: Tensor) -> Tensor:
    return x.to(c.dtype(c.get("to", 1)))


def _where(c: Call, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    condition, a, b = to_common_device(condition, a, b)
    return torch.where(condition, a, b)


def _softmax(function: Callable[..., Tensor]) -> Row:
    """Return the row of a softmax over one axis; before opset 13 over all axes from it on."""

    def compute(c: Call, x: Tensor) -> Tensor:
        if c.opset >= 13:
            return function(x, dim=c.get("axis", -1))
        axis = c.get("axis", 1) % x.ndim
        return function(x.reshape(math.prod(x.shape[:axis]), -1), dim=1).reshape(x.shape)

    return Row(compute)


def _reduce(function: Callable[[Tensor, list[int], bool], Tensor]) -> Row:
    """Return the row of a reduction; axes are an attribute or, in newer opsets, an input."""

    def compute(c: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
        given = axes.tolist() if axes is not None else c.get("axes", [])
        # without axes the steps around the reduction remain, as the absolute value of ReduceL1
        if not given and c.get("noop_with_empty_axes", 0):
            return function(x.unsqueeze(-1), [x.ndim], False)
        # no axes stand for all
        over = [a % x.ndim for a in given] or list(range(x.ndim))
        return function(x, over, bool(c.get("keepdims", 1)))

    return Row(compute)


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    # torch takes one axis at a time; from the last, so that the other numbers stay valid
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _arg(function: Callable[..., Tensor]) -> Row:
    """Return the row of an operator that locates an extreme value."""
    return Row(lambda c, x: function(x, dim=c.get("axis", 0), keepdim=bool(c.get("keepdims", 1))))


def _round_through(x: Tensor) -> Tensor:
    """Round with a gradient of one (straight-through)."""
    return x + (torch.round(x) - x).detach()


def _reshape_per_axis(c: Call, x: Tensor, value: Tensor) -> Tensor:
    """Reshape a scale or zero point to broadcast over `x` along the axis attribute."""
    value = value.to(x.device, torch.float32)
    if value.ndim != 1 or value.numel() == 1:
        return value
    axis = c.get("axis", 1) % x.ndim
    return value.reshape([-1 if a == axis else 1 for a in range(x.ndim)])


def _quantize(c: Call, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """Quantize; the result stays in floats so that gradients pass."""
    # ONNX quantizes to uint8 without a zero point
    kind = torch.uint8 if zero is None else zero.dtype
    limits = torch.iinfo(kind)
    offset = 0.0 if zero is None else _reshape_per_axis(c, x, zero)
    rounded = _round_through(x / _reshape_per_axis(c, x, scale))
    return torch.clamp(rounded + offset, limits.min, limits.max)


def _dequantize(c: Call, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    offset = 0.0 if zero is None else _reshape_per_axis(c, x, zero)
    return (x.to(torch.float32) - offset) * _reshape_per_axis(c, x, scale)


ELEMENTWISE: dict[str, Row] = {
    "Abs": _unary(torch.abs),
    "Acos": _unary(torch.acos),
    "Asin": _unary(torch.asin),
    "Atan": _unary(torch.atan),
    "Ceil": _unary(torch.ceil),
    "Cos": _unary(torch.cos),
    "Cosh": _unary(torch.cosh),
    "Erf": _unary(torch.erf),
    "Exp": _unary(torch.exp),
    "Floor": _unary(torch.floor),
    "Identity": Row(lambda c, x: x, trainable=(0,), elementwise=True),
    # tuning runs without dropout, as the deployed graph does
    "Dropout": Row(lambda c, x, *rest: x),
    "IsInf": _unary(torch.isinf),
    "IsNaN": _unary(torch.isnan),
    "Log": _unary(torch.log),
    "Neg": _unary(torch.neg),
    "Not": _unary(torch.logical_not),
    "Reciprocal": _unary(torch.reciprocal),
    "Round": _unary(torch.round),
    "Sign": _unary(torch.sign),
    "Sin": _unary(torch.sin),
    "Sinh": _unary(torch.sinh),
    "Sqrt": _unary(torch.sqrt),
    "Tan": _unary(torch.tan),
    "Tanh": _unary(torch.tanh),
    "Relu": _unary(F.relu),
    "Sigmoid": _unary(torch.sigmoid),
    "Softplus": _unary(lambda x: F.softplus(x)),
    "Softsign": _unary(F.softsign),
    "HardSwish": _unary(F.hardswish),
    "Mish": _unary(F.mish),
    "Swish": Row(lambda c, x: x * torch.sigmoid(c.get("alpha", 1.0) * x)),
    "Gelu": Row(_gelu),
    "Shrink": Row(_shrink),
    "HardSigmoid": Row(
        lambda c, x: torch.clamp(c.get("alpha", 0.2) * x + c.get("beta", 0.5), 0, 1)
    ),
    "LeakyRelu": Row(lambda c, x: F.leaky_relu(x, c.get("alpha", 0.01))),
    "Elu": Row(lambda c, x: F.elu(x, c.get("alpha", 1.0))),
    "Celu": Row(lambda c, x: F.celu(x, c.get("alpha", 1.0))),
    "ThresholdedRelu": Row(lambda c, x: x * (x > c.get("alpha", 1.0))),
    "Selu": Row(
        lambda c, x: (
            c.get("gamma", 1.0507009873554805) * F.elu(x, c.get("alpha", 1.6732632423543772))
        )
    ),
    "PRelu": Row(_prelu, trainable=(1,)),
    "Clip": Row(_clip),
    "Cast": Row(_cast, trainable=(0,), elementwise=True),
    "CastLike": Row(lambda c, x, like: x.to(like.dtype)),
    "Add": _binary(torch.add),
    "Sub": _binary(torch.sub),
    "Mul": _binary(torch.mul),
    "Div": _binary(_divide),
    # the result has the type of the base; exponents may be integers
    "Pow": Row(lambda c, a, b: torch.pow(*to_common_device(a, b)).to(a.dtype)),
    "Mod": Row(_mod),
    "Min": _variadic(torch.minimum),
    "Max": _variadic(torch.maximum),
    "Sum": _variadic(torch.add),
    "Mean": Row(lambda c, *xs: functools.reduce(torch.add, to_common_device(*xs)) / len(xs)),
    "And": _logical(torch.logical_and),
    "Or": _logical(torch.logical_or),
    "Xor": _logical(torch.logical_xor),
    "Equal": _logical(torch.eq),
    "Greater": _logical(torch.gt),
    "GreaterOrEqual": _logical(torch.ge),
    "Less": _logical(torch.lt),
    "LessOrEqual": _logical(torch.le),
    "Where": Row(_where, trainable=(1, 2), elementwise=True),
    "Softmax": _softmax(F.softmax),
    "LogSoftmax": _softmax(F.log_softmax),
    "QuantizeLinear": Row(_quantize, trainable=(0,)),
    "DequantizeLinear": Row(_dequantize),
}
REDUCING: dict[str, Row] = {
    "ReduceMean": _reduce(lambda x, a, k: x.mean(a, k)),
    "ReduceSum": _reduce(lambda x, a, k: x.sum(a, k)),
    "ReduceMax": _reduce(lambda x, a, k: x.amax(a, k)),
    "ReduceMin": _reduce(lambda x, a, k: x.amin(a, k)),
    "ReduceL1": _reduce(lambda x, a, k: x.abs().sum(a, k)),
    "ReduceL2": _reduce(lambda x, a, k: torch.linalg.vector_norm(x, 2, a, k)),
    "ReduceSumSquare": _reduce(lambda x, a, k: x.square().sum(a, k)),
    "ReduceProd": _reduce(_product),
    "ReduceLogSumExp": _reduce(lambda x, a, k: x.logsumexp(a, k)),
    "ReduceLogSum": _reduce(lambda x, a, k: x.sum(a, k).log()),
    "ArgMax": _arg(torch.argmax),
    "ArgMin": _arg(torch.argmin),
}
OPS: Mapping[str, Row] = {**ELEMENTWISE, **REDUCING, **SHAPE, **NN, **RECURRENT}


def supported() -> list[str]:
    """Return the names of the operators with a torch implementation, sorted."""
    return sorted(OPS)


def find(op: str, domain: str) -> Row | None:
    """Return the row of an operator of the default domain, None if there is none."""
    return OPS.get(op) if domain in ("", "ai.onnx") else None
