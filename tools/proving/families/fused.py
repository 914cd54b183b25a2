"""Worlds of what onnxruntime's optimizers and quantizers write."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from proving.families.quantized import quantized, scales
from proving.worlds import LENGTHS, Graph, shapes, space

_TWO = (1, 2)
_DOMAIN = "com.microsoft"
_BLOCK = 16  # values of a quantized weight with one scale; the least that onnxruntime takes
SCALE = 1 / 8


def _operand(g: Graph, shape: tuple[int, ...], kind: str) -> str:
    """Return a computed tensor or a weight."""
    return g.free(shape) if kind == "free" else g.weight(shape)


@space(
    "FusedConv",
    exact=True,
    runtime="onnxruntime",
    g=LENGTHS,
    c=LENGTHS,
    o=LENGTHS,
    h=LENGTHS,
    k=_TWO,
    pad=(0, 1),
    activation=("Relu", "LeakyRelu", "HardSigmoid"),
    bias=(False, True),
    residual=("", "free", "weight"),
)
def conv(g: Graph, c: SimpleNamespace) -> str | None:
    """Groups, a residual and an activation."""
    if c.h + 2 * c.pad < c.k or (c.residual and not c.bias):
        return None
    out = (1, c.g * c.o, c.h + 2 * c.pad - c.k + 1, 2)
    given = {"LeakyRelu": [0.5], "HardSigmoid": [0.25, 0.5]}.get(c.activation)
    return g.node(
        "FusedConv",
        g.free((1, c.g * c.c, c.h, 2)),
        g.weight((c.g * c.o, c.c, c.k, 1)),
        g.weight((c.g * c.o,)) if c.bias else "",
        _operand(g, out, c.residual) if c.residual else "",
        domain=_DOMAIN,
        group=c.g,
        pads=[c.pad, 0, c.pad, 0],
        activation=c.activation,
        activation_params=given,
    )


@space(
    "ConvTransposeWithDynamicPads",
    exact=True,
    runtime="onnxruntime",
    g=LENGTHS,
    c=LENGTHS,
    o=LENGTHS,
    h=LENGTHS,
    pad=(0, 1),
    bias=(False, True),
)
def conv_transpose(g: Graph, c: SimpleNamespace) -> str | None:
    """Pads as an operand."""
    if c.h + 1 - 2 * c.pad < 1:
        return None
    return g.node(
        "ConvTransposeWithDynamicPads",
        g.free((1, c.g * c.c, c.h, c.h)),
        g.weight((c.g * c.c, c.o, 2, 2)),
        g.integers(*[c.pad] * 4),
        g.weight((c.g * c.o,)) if c.bias else "",
        domain=_DOMAIN,
        group=c.g,
    )


@space(
    "FusedGemm",
    exact=True,
    runtime="onnxruntime",
    m=LENGTHS,
    k=LENGTHS,
    n=LENGTHS,
    transposed=((0, 0), (0, 1), (1, 0), (1, 1)),
    bias=("", "n", "mn"),
    activation=("Relu", "LeakyRelu"),
)
def gemm(g: Graph, c: SimpleNamespace) -> str:
    """All orders of axes, with an activation."""
    length = {"m": c.m, "n": c.n}
    return g.node(
        "FusedGemm",
        g.free((c.k, c.m) if c.transposed[0] else (c.m, c.k)),
        g.weight((c.n, c.k) if c.transposed[1] else (c.k, c.n)),
        g.weight([length[letter] for letter in c.bias]) if c.bias else "",
        domain=_DOMAIN,
        transA=c.transposed[0],
        transB=c.transposed[1],
        activation=c.activation,
        activation_alpha=0.5 if c.activation == "LeakyRelu" else None,
    )


@space(
    "FusedMatMul TransposeMatMul",
    exact=True,
    runtime="onnxruntime",
    batch=shapes(0, 1, 2),
    m=LENGTHS,
    k=LENGTHS,
    n=LENGTHS,
    transposed=((0, 0), (0, 1), (1, 0), (1, 1)),
    batches=((0, 0), (0, 1), (1, 0), (1, 1)),
    second=("free", "weight"),
    alpha=(None, 0.5),
)
def matmul(g: Graph, c: SimpleNamespace) -> str | None:
    """Rows, columns and batches in all orders."""
    if any(c.batches) and (not c.batch or c.op == "TransposeMatMul"):
        return None
    operands = []
    for (row, column), turned, batch_last in zip(
        ((c.m, c.k), (c.k, c.n)), c.transposed, c.batches, strict=True
    ):
        first, last = (column, row) if turned else (row, column)
        shape = (first, *c.batch, last) if batch_last else (*c.batch, first, last)
        operands.append(shape)
    given = {"transA": c.transposed[0], "transB": c.transposed[1], "alpha": c.alpha}
    if any(c.batches):
        given |= {"transBatchA": c.batches[0], "transBatchB": c.batches[1]}
    data, other = g.free(operands[0]), _operand(g, operands[1], c.second)
    return g.node(c.op, data, other, domain=_DOMAIN, **given)


@space(
    "MatMulNBits",
    runtime="onnxruntime",
    m=LENGTHS,
    n=LENGTHS,
    blocks=LENGTHS,
    bits=(4, 8),
    rest=(0, 8),
    zero=("", "bytes", "float"),
    flat=(False, True),
    bias=(False, True),
)
def matmul_nbits(g: Graph, c: SimpleNamespace) -> str | None:
    """Blocks of the weight with their scales and zero points, the last one in part."""
    if c.rest and c.blocks < 2:
        return None
    inner = c.blocks * _BLOCK - c.rest
    stored = _BLOCK * c.bits // 8
    zero = ""
    if c.zero == "bytes":
        width = -(-c.blocks * c.bits // 8)
        zero = g.weight((c.n * width,) if c.flat else (c.n, width), 0, 256, dtype=np.uint8)
    elif c.zero:
        zero = g.weight((c.n * c.blocks,) if c.flat else (c.n, c.blocks), 1, 9)
    return g.node(
        "MatMulNBits",
        g.free((c.m, inner)),
        g.weight((c.n, c.blocks, stored), 0, 256, dtype=np.uint8),
        scales(g, (c.n * c.blocks,) if c.flat else (c.n, c.blocks)),
        zero,
        "",
        g.weight((c.n,)) if c.bias else "",
        domain=_DOMAIN,
        K=inner,
        N=c.n,
        bits=c.bits,
        block_size=_BLOCK,
    )


@space(
    "GatherBlockQuantized",
    runtime="onnxruntime",
    rows=LENGTHS,
    blocks=LENGTHS,
    indices=shapes(1, 2),
    zero=(False, True),
)
def gather_block_quantized(g: Graph, c: SimpleNamespace) -> str:
    """Rows of a table of bytes that hold two values each."""
    width = c.blocks * _BLOCK
    picked = g.constant(g.rng.integers(0, c.rows, c.indices), np.int64)
    zero_width = -(-c.blocks // 2)
    zero = g.weight((c.rows, zero_width), 0, 256, dtype=np.uint8) if c.zero else ""
    return g.node(
        "GatherBlockQuantized",
        g.weight((c.rows, width // 2), 0, 256, dtype=np.uint8),
        picked,
        scales(g, (c.rows, c.blocks)),
        zero,
        domain=_DOMAIN,
        bits=4,
        block_size=_BLOCK,
        gather_axis=0,
        quantize_axis=1,
    )


@space(
    "DynamicQuantizeLSTM",
    runtime="onnxruntime",
    seq=_TWO,
    batch=_TWO,
    inputs=LENGTHS,
    hidden=LENGTHS,
    both=_TWO,
    per_channel=(False, True),
    bias=(False, True),
    states=(False, True),
    peepholes=(False, True),
)
def lstm(g: Graph, c: SimpleNamespace) -> list[str]:
    """Integer weights in one and in both directions, from given states."""
    width = 4 * c.hidden
    per = (c.both, width) if c.per_channel else (c.both,)
    weights = [g.weight((c.both, n, width), -8, 8, dtype=np.int8) for n in (c.inputs, c.hidden)]
    zeros = [g.constant(np.zeros(per), np.int8) for _ in weights]
    scaled = [scales(g, per) for _ in weights]
    state = (c.both, c.batch, c.hidden)
    states = [g.weight(state, scale=SCALE) if c.states else "" for _ in range(2)]
    return g.node_of(
        3,
        "DynamicQuantizeLSTM",
        g.free((c.seq, c.batch, c.inputs), scale=SCALE),
        *weights,
        g.weight((c.both, 2 * width), scale=SCALE) if c.bias else "",
        "",
        *states,
        g.weight((c.both, 3 * c.hidden), scale=SCALE) if c.peepholes else "",
        scaled[0],
        zeros[0],
        scaled[1],
        zeros[1],
        domain=_DOMAIN,
        hidden_size=c.hidden,
        direction="bidirectional" if c.both > 1 else None,
    )


@space(
    "QAttention",
    runtime="onnxruntime",
    batch=_TWO,
    seq=LENGTHS,
    inputs=LENGTHS,
    heads=LENGTHS,
    size=LENGTHS,
    per_channel=(False, True),
    causal=(0, 1),
    scale=(None, 0.5),
)
def attention(g: Graph, c: SimpleNamespace) -> str:
    """One integer product for queries, keys and values."""
    width = 3 * c.heads * c.size
    data, scale, zero = quantized(g, (c.batch, c.seq, c.inputs), np.uint8)
    per = (width,) if c.per_channel else ()
    return g.node(
        "QAttention",
        data,
        g.weight((c.inputs, width), -8, 8, dtype=np.int8),
        g.weight((width,), scale=SCALE),
        scale,
        g.constant(np.full(per, 1 / 64), np.float32),
        "",
        zero,
        g.constant(np.zeros(per), np.int8),
        domain=_DOMAIN,
        num_heads=c.heads,
        unidirectional=c.causal or None,
        scale=c.scale,
    )


@space(
    "EmbedLayerNormalization",
    runtime="onnxruntime",
    batch=_TWO,
    seq=LENGTHS,
    size=LENGTHS,
    segments=(False, True),
    outputs=(2, 3),
)
def embeddings(g: Graph, c: SimpleNamespace) -> list[str]:
    """Tables of words, positions and segments."""
    ids = [g.constant(g.rng.integers(0, 3, (c.batch, c.seq)), np.int32) for _ in range(2)]
    outputs = g.node_of(
        c.outputs,
        "EmbedLayerNormalization",
        ids[0],
        ids[1] if c.segments else "",
        g.weight((5, c.size)),
        g.weight((3, c.size)),
        g.weight((3, c.size)) if c.segments else "",
        g.weight((c.size,)),
        g.weight((c.size,)),
        domain=_DOMAIN,
    )
    return [outputs[0], *outputs[2:]]


@space("QEmbedLayerNormalization", runtime="onnxruntime", batch=_TWO, seq=LENGTHS, size=LENGTHS)
def quantized_embeddings(g: Graph, c: SimpleNamespace) -> str:
    """Quantized tables of words and positions."""
    words = g.constant(g.rng.integers(0, 3, (c.batch, c.seq)), np.int32)
    tables = [g.weight((n, c.size), 0, 9, dtype=np.uint8) for n in (5, 3)]
    affine = g.weight((c.size,), 0, 9, dtype=np.uint8)
    scale, zero = g.constant(SCALE, np.float32), g.constant(4, np.uint8)
    numbers = [scale, scale, "", scale, scale, zero, zero, "", zero, zero]
    operands = [words, "", *tables, "", affine, affine, "", *numbers]
    return g.node_of(2, "QEmbedLayerNormalization", *operands, domain=_DOMAIN)[0]


@space("ScaledSiLU", runtime="onnxruntime", alpha=(None, 0.5), shape=shapes(1, 2, 3))
def scaled_silu(g: Graph, c: SimpleNamespace) -> str:
    """An activation with a scale."""
    return g.node("ScaledSiLU", g.free(c.shape), domain=_DOMAIN, alpha=c.alpha)


@space(
    "NhwcMaxPool",
    exact=True,
    runtime="onnxruntime",
    kernel=_TWO,
    dtype=(np.uint8, np.int8),
    shape=shapes(4),
)
def max_pool(g: Graph, c: SimpleNamespace) -> str | None:
    """Channels last."""
    if min(c.shape[1:3]) < c.kernel:
        return None
    data, scale, zero = quantized(g, c.shape, c.dtype)
    pooled = g.node("NhwcMaxPool", data, domain=_DOMAIN, kernel_shape=[c.kernel] * 2)
    return g.node("DequantizeLinear", pooled, scale, zero, name="")
