"""Gradients of reductions and normalizations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from onnxprune.autodiff.losses import COERCED_BEFORE
from onnxprune.autodiff.movement import along
from onnxprune.autodiff.pooling import largest
from onnxprune.autodiff.step import BackwardStep, NoGradient, Rule
from onnxprune.autodiff.tape import Value


def reduction(formula: Callable[[Value, Value, Value, list[int]], Value]) -> Rule:
    """Return the rule of a reduction.

    Parameters
    ----------
    formula
        (g, x, y, axes) -> gradient; g and y keep the reduced axes with length 1.
    """

    def rule(s: BackwardStep) -> list[Value | None]:
        rank = len(s.x.shape)
        axes = s.numbers(1, "axes")
        # an empty list stands for all axes, as an absent one does
        if not axes and not s.attribute("noop_with_empty_axes", 0):
            axes = list(range(rank))
        axes = sorted(int(a) % rank for a in axes or [])
        # without keepdims the output lacks the reduced axes
        kept = [1 if i in axes else n for i, n in enumerate(s.x.shape)]
        return [formula(s.grad.reshape(kept), s.x, s.y.reshape(kept), axes).expand(s.x.shape)]

    return rule


def count(x: Value, axes: Sequence[int]) -> int:
    """Return the number of elements that a reduction over the axes combines."""
    return math.prod(x.shape[a] for a in axes)


def extremum(g: Value, x: Value, y: Value, axes: list[int]) -> Value:
    """Differentiate ReduceMax and ReduceMin."""
    return largest(x, y, g, axes)


def softmax(s: BackwardStep) -> list[Value | None]:
    """Differentiate Softmax."""
    axes = _find_softmax_axes(s)
    return [s.y * (s.grad - (s.grad * s.y).reduce("ReduceSum", axes))]


def log_softmax(s: BackwardStep) -> list[Value | None]:
    """Differentiate LogSoftmax."""
    return [s.grad - s.y.call("Exp") * s.grad.reduce("ReduceSum", _find_softmax_axes(s))]


def batch_normalization(s: BackwardStep) -> list[Value | None]:
    """Differentiate BatchNormalization at inference: a constant factor per channel."""
    s.only_first()
    if s.attribute("training_mode", 0):
        raise NoGradient("BatchNormalization in training mode")
    scale, variance = s.operand(1), s.operand(4)
    factor = scale / (variance + s.attribute("epsilon", 1e-5)).call("Sqrt")
    return [s.grad * factor.reshape([scale.shape[0], *[1] * (len(s.x.shape) - 2)])]


def layer_normalization(s: BackwardStep) -> list[Value | None]:
    """Differentiate LayerNormalization."""
    s.only_first()
    axes = range(s.attribute("axis", -1) % len(s.x.shape), len(s.x.shape))
    epsilon = s.attribute("epsilon", 1e-5)
    return [_differentiate_normalization(s.x, s.grad * s.operand(1), axes, epsilon)]


def rms_normalization(s: BackwardStep) -> list[Value | None]:
    """Differentiate RMSNormalization."""
    s.only_first()
    axes = range(s.attribute("axis", -1) % len(s.x.shape), len(s.x.shape))
    epsilon = s.attribute("epsilon", 1e-5)
    return [_differentiate_normalization(s.x, s.grad * s.operand(1), axes, epsilon, centered=False)]


def instance_normalization(s: BackwardStep) -> list[Value | None]:
    """Differentiate InstanceNormalization."""
    s.only_first()
    rank = len(s.x.shape)
    scale = s.operand(1).reshape([s.x.shape[1], *[1] * (rank - 2)])
    return [
        _differentiate_normalization(
            s.x, s.grad * scale, range(2, rank), s.attribute("epsilon", 1e-5)
        )
    ]


def group_normalization(s: BackwardStep) -> list[Value | None]:
    """Differentiate GroupNormalization."""
    s.only_first()
    groups, (samples, channels, *space) = s.attribute("num_groups"), s.x.shape
    scale = s.operand(1)
    # the scale has an entry per group (opset 18) or per channel (21)
    entries = scale.shape[0]
    repeated = scale.reshape([entries, 1]).expand([entries, channels // entries])
    g = s.grad * repeated.reshape([channels, *[1] * len(space)])
    folded = [samples, groups, channels // groups * math.prod(space)]
    x, epsilon = s.x.reshape(folded), s.attribute("epsilon", 1e-5)
    return [_differentiate_normalization(x, g.reshape(folded), [2], epsilon).reshape(s.x.shape)]


def lp_normalization(s: BackwardStep) -> list[Value | None]:
    """Differentiate LpNormalization."""
    if s.attribute("p", 2) != 2:
        raise NoGradient("LpNormalization with p = 1")
    axes = [s.attribute("axis", -1)]
    length = (s.x * s.x).reduce("ReduceSum", axes).call("Sqrt")
    return [(s.grad - s.y * (s.grad * s.y).reduce("ReduceSum", axes)) / length]


def local_response(s: BackwardStep) -> list[Value | None]:
    """Differentiate LRN.

    y = x d^-beta with d = bias + alpha / size * sum of x^2 over neighboring channels.
    """
    size, channels = s.attribute("size"), s.x.shape[1]
    alpha, beta = s.attribute("alpha", 1e-4), s.attribute("beta", 0.75)
    distance = np.arange(channels)[:, None] - np.arange(channels)[None]
    # an even size reaches one channel further up than down
    band = ((distance >= -((size - 1) // 2)) & (distance <= size // 2)).astype(float)
    d = along(s.x * s.x, 1, band) * (alpha / size) + s.attribute("bias", 1.0)
    # a channel contributes to those that it is a neighbor of: the transposed band
    neighbors = along(s.grad * s.y / d, 1, band.T)
    return [s.grad * d**-beta - s.x * neighbors * (2 * alpha * beta / size)]


def _differentiate_normalization(
    x: Value, g: Value, axes: Sequence[int], epsilon: float, centered: bool = True
) -> Value:
    """Return the gradient of (x - mean) / sqrt(variance + epsilon) times g.

    Not centered: of x / sqrt(mean square + epsilon).
    """
    d = x - x.reduce("ReduceMean", axes) if centered else x
    inverse = 1.0 / ((d * d).reduce("ReduceMean", axes) + epsilon).call("Sqrt")
    unit = d * inverse
    # the deviation depends on x too: what remains is orthogonal to the normalized value
    inner = g - unit * (g * unit).reduce("ReduceMean", axes)
    return inverse * (inner - g.reduce("ReduceMean", axes) if centered else inner)


def _find_softmax_axes(s: BackwardStep) -> list[int]:
    """Return the axes that a Softmax normalizes; old opsets flatten all from its own on."""
    rank = len(s.x.shape)
    if s.tape.opset >= COERCED_BEFORE:
        return [s.attribute("axis", -1) % rank]
    return list(range(s.attribute("axis", 1) % rank, rank))
