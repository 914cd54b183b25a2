"""Worlds of normalizations and of functions along one axis."""

from __future__ import annotations

from types import SimpleNamespace

from proving.worlds import LENGTHS, Graph, shapes, space


@space(
    "BatchNormalization",
    training=(0, 1),
    outputs=(1, 3),
    shape=shapes(2, 3, 4),
)
def batch_normalization(g: Graph, c: SimpleNamespace) -> list[str] | None:
    """Stored statistics, and those of the batch with the updated ones."""
    if c.outputs > 1 and not c.training:
        return None
    channels = c.shape[1:2]
    scale, bias, mean = (g.weight(channels) for _ in range(3))
    variance = g.weight(channels, 1, 5)
    training = {"training_mode": c.training} if c.training else {}
    inputs = (g.free(c.shape), scale, bias, mean, variance)
    return g.node_of(c.outputs, "BatchNormalization", *inputs, **training)


# The reference evaluator takes the statistics of the batch before opset 14.
@space("BatchNormalization", runtime="onnxruntime", opset=(12,), shape=shapes(2, 3, 4))
def batch_normalization_9(g: Graph, c: SimpleNamespace) -> str:
    """Stored statistics, before training became an attribute."""
    scale, bias, mean = (g.weight(c.shape[1:2]) for _ in range(3))
    variance = g.weight(c.shape[1:2], 1, 5)
    return g.node("BatchNormalization", g.free(c.shape), scale, bias, mean, variance)


@space("InstanceNormalization", opset=(7, 22), shape=shapes(3, 4))
def instance_normalization(g: Graph, c: SimpleNamespace) -> str:
    """Statistics per channel."""
    scale, bias = (g.weight(c.shape[1:2]) for _ in range(2))
    return g.node("InstanceNormalization", g.free(c.shape), scale, bias)


@space("GroupNormalization", opset=(18, 21), n=(1, 2), g=LENGTHS, c=LENGTHS, rest=shapes(0, 1, 2))
def group_normalization(g: Graph, c: SimpleNamespace) -> str:
    """Scale and bias per group (opset 18) or per channel (opset 21)."""
    width = (c.g * c.c,) if c.opset >= 21 else (c.g,)
    scale, bias = g.weight(width), g.weight(width)
    data = g.free((c.n, c.g * c.c, *c.rest))
    return g.node("GroupNormalization", data, scale, bias, num_groups=c.g)


# A cut scales epsilon, which is stored as float32.
@space(
    "LayerNormalization RMSNormalization",
    tolerances={"RMSNormalization": 1e-10},
    opset=(17, 23),
    axis=(-3, -2, -1, 0, 1, 2),
    bias=(False, True),
    outputs=(1, 3),
    shape=shapes(1, 2, 3),
)
def layer_normalization(g: Graph, c: SimpleNamespace) -> list[str] | None:
    """Statistics over the last axes, with and without a bias and the statistics as outputs."""
    rank, rms = len(c.shape), c.op == "RMSNormalization"
    if not -rank <= c.axis < rank or (rms and (c.opset < 23 or c.bias or c.outputs > 1)):
        return None
    tail = c.shape[c.axis % rank :]
    bias = g.weight(tail) if c.bias else ""
    inputs = (g.free(c.shape), g.weight(tail), bias)
    outputs = g.node_of(c.outputs, c.op, *inputs, axis=c.axis)
    # statistics are declared as float32, but the reference evaluator returns float64
    return outputs[:1] + [g.cast(name, g.float_type) for name in outputs[1:]]


@space(
    "SimplifiedLayerNormalization",
    runtime="onnxruntime",
    axis=(-1, 1),
    shape=shapes(2, 3),
)
def simplified_layer_normalization(g: Graph, c: SimpleNamespace) -> str:
    """The root of the mean square over the last axes, as onnxruntime fuses it."""
    tail = c.shape[c.axis :]
    return g.node("SimplifiedLayerNormalization", g.free(c.shape), g.weight(tail), axis=c.axis)


@space(
    "SkipLayerNormalization SkipSimplifiedLayerNormalization",
    runtime="onnxruntime",
    beta=(False, True),
    bias=(False, True),
    sum_output=(False, True),
    skip=("free", "weight"),
    shape=shapes(2, 3),
)
def skip_layer_normalization(g: Graph, c: SimpleNamespace) -> list[str] | None:
    """A sum, normalized over the last axis, with and without the sum as an output."""
    simplified = c.op == "SkipSimplifiedLayerNormalization"
    if simplified and c.beta:
        return None
    width = c.shape[-1:]
    skip = g.free(c.shape) if c.skip == "free" else g.weight(c.shape)
    inputs = [g.free(c.shape), skip, g.weight(width)]
    if not simplified:
        inputs.append(g.weight(width) if c.beta else "")
    inputs.append(g.weight(width) if c.bias else "")
    count = 4 if c.sum_output else 1
    outputs = g.node_of(count, c.op, *inputs, domain="com.microsoft")
    if count == 4:  # the statistics are not computed in inference
        g.nodes[-1].output[1:3] = ["", ""]
    return [outputs[0], *outputs[3:]]


@space(
    "LpNormalization", opset=(7, 22), axis=(-3, -2, -1, 0, 1, 2), p=(1, 2), shape=shapes(1, 2, 3)
)
def lp_normalization(g: Graph, c: SimpleNamespace) -> str | None:
    """Norms of first and second order, along every axis."""
    if not -len(c.shape) <= c.axis < len(c.shape):
        return None
    return g.node("LpNormalization", g.free(c.shape, 1, 5), axis=c.axis, p=c.p)


# The reference evaluator takes as many channels as the batch has samples.
@space("LRN", runtime="onnxruntime", size=(1, 3), shape=shapes(3, 4))
def lrn(g: Graph, c: SimpleNamespace) -> str:
    """Sums of squares over neighboring channels."""
    return g.node("LRN", g.free(c.shape), size=c.size, alpha=1.0)


@space(
    "MeanVarianceNormalization",
    axes=(
        None,
        [0],
        [1],
        [2],
        [0, 2],
        [1, 2],
        [0, 1],
        [0, 2, 3],
        [2, 3],
        [-1],
        [-3, -1],
        [0, 1, 2],
    ),
    shape=shapes(3, 4),
)
def mean_variance_normalization(g: Graph, c: SimpleNamespace) -> str | None:
    """Statistics over any axes."""
    rank = len(c.shape)
    axes = [0, 2, 3] if c.axes is None else c.axes
    if any(not -rank <= a < rank for a in axes):
        return None
    return g.node("MeanVarianceNormalization", g.free(c.shape), axes=c.axes)


@space(
    "Softmax LogSoftmax Hardmax",
    exact="Hardmax",
    opset=(11, 13),
    axis=(None, -3, -2, -1, 0, 1, 2),
    shape=shapes(1, 2, 3),
)
def along_axis(g: Graph, c: SimpleNamespace) -> str | None:
    """One axis, or that and all axes after it (before opset 13)."""
    if c.axis is not None and not -len(c.shape) <= c.axis < len(c.shape):
        return None
    if c.axis is None and c.opset < 13 and len(c.shape) < 2:
        return None
    return g.node(c.op, g.free(c.shape), axis=c.axis)
