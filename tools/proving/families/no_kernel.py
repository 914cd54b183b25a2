"""Worlds of operators of onnxruntime that have no kernel for the CPU.

The tests define them in numpy (tests/analysis/contrib_ops.py), for the reference evaluator.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from proving.families.quantized import quantized
from proving.worlds import LENGTHS, Graph, shapes, space

_TWO = (1, 2)
_DOMAIN = "com.microsoft"
SCALE = 1 / 8


@space(
    "NhwcConv NhwcFusedConv",
    exact=True,
    runtime="numpy",
    g=LENGTHS,
    c=LENGTHS,
    o=LENGTHS,
    h=_TWO,
    bias=(False, True),
    residual=(False, True),
)
def conv(g: Graph, c: SimpleNamespace) -> str | None:
    """Channels last; groups, a residual and an activation."""
    fused = c.op == "NhwcFusedConv"
    if c.residual and not fused:
        return None
    return g.node(
        c.op,
        g.free((1, c.h, 2, c.g * c.c)),
        g.weight((c.g * c.o, c.c, 1, 1)),
        g.weight((c.g * c.o,)) if c.bias else "",
        g.free((1, c.h, 2, c.g * c.o)) if c.residual else "",
        domain=_DOMAIN,
        group=c.g,
        activation="Relu" if fused else None,
    )


@space(
    "GroupNorm SkipGroupNorm",
    runtime="numpy",
    n=_TWO,
    g=LENGTHS,
    c=LENGTHS,
    h=_TWO,
    first=(False, True),
    activation=(0, 1),
    skip=("full", "channels"),
)
def group_norm(g: Graph, c: SimpleNamespace) -> list[str] | None:
    """Channels last and first; the skip of all positions or one for all."""
    width = c.g * c.c
    with_skip = c.op == "SkipGroupNorm"
    if (not with_skip and c.skip != "full") or (with_skip and c.first):
        return None
    shape = (c.n, width, c.h, 2) if c.first else (c.n, c.h, 2, width)
    operands = [g.free(shape), g.weight((width,)), g.weight((width,))]
    if with_skip:
        skip = g.free(shape) if c.skip == "full" or c.n > 1 else g.weight((1, width))
        operands += [skip, g.weight((width,))]
    return g.node_of(
        2 if with_skip else 1,
        c.op,
        *operands,
        domain=_DOMAIN,
        groups=c.g,
        activation=c.activation,
        channels_last=0 if c.first else 1,
    )


@space("BiasSplitGelu", runtime="numpy", size=LENGTHS, rest=shapes(2))
def bias_split_gelu(g: Graph, c: SimpleNamespace) -> str:
    """Halves of the last axis, one gated by the other."""
    width = 2 * c.size
    bias = g.weight((width,))
    return g.node("BiasSplitGelu", g.free((*c.rest, width), scale=SCALE), bias, domain=_DOMAIN)


@space(
    "BiasAdd BiasDropout BitmaskDropout BitmaskBiasDropout",
    exact=True,
    runtime="numpy",
    residual=("free", "weight"),
    shape=shapes(2, 3),
)
def bias(g: Graph, c: SimpleNamespace) -> str | None:
    """A bias along the last axis and a residual."""
    operands = [g.free(c.shape)]
    if c.op != "BitmaskDropout":
        operands.append(g.weight(c.shape[-1:]))
    if c.op in ("BiasAdd", "BiasDropout"):
        operands.append(g.free(c.shape) if c.residual == "free" else g.weight(c.shape))
    elif c.residual != "free":
        return None
    return g.node_of(1, c.op, *operands, domain=_DOMAIN)[0]


@space("BiasSoftmax", runtime="numpy", axis=(1, 2), shared=_TWO, shape=shapes(3))
def bias_softmax(g: Graph, c: SimpleNamespace) -> str:
    """A bias of its own and one for all of a batch."""
    bias = g.weight((1, *c.shape[1:]) if c.shared == 1 else c.shape)
    data = g.free(c.shape, scale=SCALE)
    return g.node("BiasSoftmax", data, bias, domain=_DOMAIN, axis=c.axis, is_inner_broadcast=0)


@space(
    "GemmFastGelu FusedMatMulActivation",
    runtime="numpy",
    batch=shapes(0, 1),
    m=LENGTHS,
    k=LENGTHS,
    n=LENGTHS,
    turned=(0, 1),
    # onnx's reference computes the factors of Gelu in float32
    tolerances={"GemmFastGelu": 1e-6},
)
def matmul(g: Graph, c: SimpleNamespace) -> str | None:
    """A product with an activation."""
    data = g.free((*c.batch, c.m, c.k), scale=SCALE)
    if c.op == "GemmFastGelu":
        if c.turned:
            return None
        return g.node(c.op, data, g.weight((c.k, c.n)), g.weight((c.n,)), domain=_DOMAIN)
    weight = g.weight((c.n, c.k) if c.turned else (c.k, c.n))
    return g.node(c.op, data, weight, domain=_DOMAIN, transB=c.turned, activation="Relu")


@space("QLinearReduceMean", runtime="numpy", axes=([0], [1], [2], [1, 2]), shape=shapes(3))
def reduce_mean(g: Graph, c: SimpleNamespace) -> str:
    """Means over some axes."""
    data, scale, zero = quantized(g, c.shape, np.uint8)
    mean = g.node(
        "QLinearReduceMean", data, scale, zero, scale, zero, domain=_DOMAIN, axes=c.axes, keepdims=1
    )
    return g.node("DequantizeLinear", mean, scale, zero, name="")


_ENDS = ([0, 1, 3], [0, 2, 3])  # of the tokens of two sequences


# A cut writes the scale of the original heads, which is stored as float32.
_WRITTEN_SCALE = 1e-6


@space(
    "PackedAttention",
    runtime="numpy",
    tolerances={"PackedAttention": _WRITTEN_SCALE},
    ends=_ENDS,
    inputs=LENGTHS,
    heads=LENGTHS,
    size=LENGTHS,
    scale=(None, 0.5),
)
def packed_attention(g: Graph, c: SimpleNamespace) -> str:
    """One product for queries, keys and values of tokens without padding."""
    width = 3 * c.heads * c.size
    offsets = g.constant(np.arange(4).reshape(2, 2), np.int32)
    return g.node(
        "PackedAttention",
        g.free((3, c.inputs), scale=SCALE),
        g.weight((c.inputs, width), scale=SCALE),
        g.weight((width,), scale=SCALE),
        offsets,
        g.constant(c.ends, np.int32),
        domain=_DOMAIN,
        num_heads=c.heads,
        scale=c.scale,
    )


@space(
    "PackedMultiHeadAttention",
    runtime="numpy",
    tolerances={"PackedMultiHeadAttention": _WRITTEN_SCALE},
    ends=_ENDS,
    heads=LENGTHS,
    size=LENGTHS,
    joined=(False, True),
    scale=(None, 0.5),
)
def packed_multi_head_attention(g: Graph, c: SimpleNamespace) -> str:
    """Queries, keys and values of tokens without padding, separate and in one tensor."""
    width = c.heads * c.size
    if c.joined:
        data = [g.free((3, c.heads, 3, c.size), scale=SCALE), "", ""]
    else:
        data = [g.free((3, width), scale=SCALE) for _ in range(3)]
    return g.node(
        "PackedMultiHeadAttention",
        *data,
        "" if c.joined else g.weight((3 * width,), scale=SCALE),
        g.constant(np.arange(4).reshape(2, 2), np.int32),
        g.constant(c.ends, np.int32),
        domain=_DOMAIN,
        num_heads=c.heads,
        scale=c.scale,
    )
