"""Gradients of reductions and normalizations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from onnxprune.autodiff.losses import COERCED_BEFORE
from onnxprune.autodiff.movement import along
from onnxprune.autodiff.step import NoGradient, Rule, Step
from onnxprune.autodiff.tape import Value
from onnxprune.autodiff.windows import largest


def reduction(formula: Callable[[Value, Value, Value, list[int]], Value]) -> Rule:
    """A Reduce op from the gradient in terms of (g, x, y, axes), g and y with their axes kept."""

    def rule(s: Step) -> list[Value | None]:
        rank = len(s.x.shape)
        axes = s.numbers(1, "axes")
        if axes is None and not s.attribute("noop_with_empty_axes", 0):
            axes = list(range(rank))
        axes = sorted(int(a) % rank for a in axes or [])
        kept = [1 if i in axes else n for i, n in enumerate(s.x.shape)]
        return [formula(s.grad.reshape(kept), s.x, s.y.reshape(kept), axes).expand(s.x.shape)]

    return rule


def count(x: Value, axes: Sequence[int]) -> int:
    """Elements that a reduction over the axes takes together."""
    return math.prod(x.shape[a] for a in axes)


def extremum(g: Value, x: Value, y: Value, axes: list[int]) -> Value:
    """ReduceMax, ReduceMin."""
    return largest(x, y, g, axes)


def softmax(s: Step) -> list[Value | None]:
    axes = _softmax_axes(s)
    return [s.y * (s.grad - (s.grad * s.y).reduce("ReduceSum", axes))]


def log_softmax(s: Step) -> list[Value | None]:
    return [s.grad - s.y.call("Exp") * s.grad.reduce("ReduceSum", _softmax_axes(s))]


def batch_normalization(s: Step) -> list[Value | None]:
    """At inference: a constant factor a channel."""
    s.only_first()
    if s.attribute("training_mode", 0):
        raise NoGradient("BatchNormalization in training mode")
    scale, variance = s.operand(1), s.operand(4)
    factor = scale / (variance + s.attribute("epsilon", 1e-5)).call("Sqrt")
    return [s.grad * factor.reshape([scale.shape[0], *[1] * (len(s.x.shape) - 2)])]


def layer_normalization(s: Step) -> list[Value | None]:
    s.only_first()
    axes = range(s.attribute("axis", -1) % len(s.x.shape), len(s.x.shape))
    return [_normalized(s.x, s.grad * s.operand(1), axes, s.attribute("epsilon", 1e-5))]


def rms_normalization(s: Step) -> list[Value | None]:
    s.only_first()
    axes = range(s.attribute("axis", -1) % len(s.x.shape), len(s.x.shape))
    return [
        _normalized(s.x, s.grad * s.operand(1), axes, s.attribute("epsilon", 1e-5), centered=False)
    ]


def instance_normalization(s: Step) -> list[Value | None]:
    s.only_first()
    rank = len(s.x.shape)
    scale = s.operand(1).reshape([s.x.shape[1], *[1] * (rank - 2)])
    return [_normalized(s.x, s.grad * scale, range(2, rank), s.attribute("epsilon", 1e-5))]


def group_normalization(s: Step) -> list[Value | None]:
    """Scale has an entry a group (opset 18) or a channel (21)."""
    s.only_first()
    groups, (samples, channels, *space) = s.attribute("num_groups"), s.x.shape
    scale = s.operand(1)
    repeated = scale.reshape([scale.shape[0], 1]).expand(
        [scale.shape[0], channels // scale.shape[0]]
    )
    g = s.grad * repeated.reshape([channels, *[1] * len(space)])
    folded = [samples, groups, channels // groups * math.prod(space)]
    return [
        _normalized(
            s.x.reshape(folded), g.reshape(folded), [2], s.attribute("epsilon", 1e-5)
        ).reshape(s.x.shape)
    ]


def lp_normalization(s: Step) -> list[Value | None]:
    if s.attribute("p", 2) != 2:
        raise NoGradient("LpNormalization with p = 1")
    axes = [s.attribute("axis", -1)]
    length = (s.x * s.x).reduce("ReduceSum", axes).call("Sqrt")
    return [(s.grad - s.y * (s.grad * s.y).reduce("ReduceSum", axes)) / length]


def local_response(s: Step) -> list[Value | None]:
    """LRN: y = x d^-beta with d = bias + alpha / size * sum of x^2 over neighboring channels."""
    size, alpha, beta, channels = (
        s.attribute("size"),
        s.attribute("alpha", 1e-4),
        s.attribute("beta", 0.75),
        s.x.shape[1],
    )
    distance = np.arange(channels)[:, None] - np.arange(channels)[None]
    band = ((distance >= -((size - 1) // 2)) & (distance <= size // 2)).astype(float)
    d = along(s.x * s.x, 1, band) * (alpha / size) + s.attribute("bias", 1.0)
    spread = along(s.grad * s.y / d, 1, band.T)
    return [s.grad * d**-beta - s.x * spread * (2 * alpha * beta / size)]


def _normalized(
    x: Value, g: Value, axes: Sequence[int], epsilon: float, centered: bool = True
) -> Value:
    """Gradient of (x - mean) / sqrt(variance + epsilon), or of x / sqrt(mean square + epsilon), given that of the quotient."""
    d = x - x.reduce("ReduceMean", axes) if centered else x
    inverse = 1.0 / ((d * d).reduce("ReduceMean", axes) + epsilon).call("Sqrt")
    unit = d * inverse
    inner = g - unit * (g * unit).reduce("ReduceMean", axes)
    return inverse * (inner - g.reduce("ReduceMean", axes) if centered else inner)


def _softmax_axes(s: Step) -> list[int]:
    rank = len(s.x.shape)
    if s.tape.opset >= COERCED_BEFORE:
        return [s.attribute("axis", -1) % rank]
    return list(range(s.attribute("axis", 1) % rank, rank))
