"""Worlds of attention with caches, rotations and causal convolutions."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from proving.worlds import LENGTHS, Graph, shapes, space

_TWO = (1, 2)
_DOMAIN = "com.microsoft"
SCALE = 1 / 8  # keeps scores small
_KERNEL_WIDTH = 8  # heads of GroupQueryAttention are multiples of it


@space(
    "RotaryEmbedding",
    opset=(23,),
    contrib=(False, True),
    batch=_TWO,
    steps=LENGTHS,
    heads=LENGTHS,
    angles=LENGTHS,
    rest=(0, 1, 2),
    flat=(False, True),
    interleaved=(0, 1),
)
def rotary_embedding(g: Graph, c: SimpleNamespace) -> str | None:
    """Heads in an axis of their own and in that of the channels, rotated in full and in part."""
    size = 2 * c.angles + c.rest
    if (c.rest and c.contrib) or size % 2:
        return None
    shape = (c.batch, c.steps, c.heads * size) if c.flat else (c.batch, c.heads, c.steps, size)
    caches = [g.weight((c.steps, c.angles), scale=SCALE) for _ in range(2)]
    positions = g.constant([range(c.steps)] * c.batch, np.int64)
    rotated = 2 * c.angles if c.rest else None
    attributes = {
        "interleaved": c.interleaved,
        "rotary_embedding_dim": rotated,
        "num_heads": c.heads if c.flat or rotated else None,
    }
    if c.contrib:
        operands = (g.free(shape), positions, *caches)
        return g.node("RotaryEmbedding", *operands, domain=_DOMAIN, **attributes)
    return g.node("RotaryEmbedding", g.free(shape), *caches, positions, **attributes)


@space(
    "GroupQueryAttention",
    runtime="onnxruntime",
    batch=_TWO,
    kv_heads=LENGTHS,
    repeats=LENGTHS,
    steps=_TWO,
    scale=(None, 0.5),
    softcap=(None, 2.0),
    extra=("", "past", "rotary", "bias", "bias_per_head", "sink"),
)
def group_query_attention(g: Graph, c: SimpleNamespace) -> list[str] | None:
    """Query heads that share key heads; caches, rotations, biases and sinks."""
    size, heads = _KERNEL_WIDTH, c.kv_heads * c.repeats
    past = 2 if c.extra == "past" else 0
    if past and c.steps > 1:
        return None
    total = c.steps + past
    widths = (heads * size, c.kv_heads * size, c.kv_heads * size)
    data = [g.free((c.batch, c.steps, w), scale=SCALE) for w in widths]
    cache = ["", ""]
    if past:
        cache = [g.free((c.batch, c.kv_heads, past, size), scale=SCALE) for _ in range(2)]
    lengths = g.constant([total - 1] * c.batch, np.int32)
    operands = [*data, *cache, lengths, g.constant(total, np.int32)]
    operands += [""] * 5
    if c.extra == "rotary":
        operands[7:9] = [g.weight((9, size), scale=SCALE) for _ in range(2)]
    if c.extra.startswith("bias"):
        per = heads if c.extra == "bias_per_head" else 1
        operands[10] = g.weight((1, per, c.steps, total), scale=1 / 4)
    if c.extra == "sink":
        operands[11] = g.weight((heads,), scale=1 / 4)
    return g.node_of(
        3 if past else 1,
        "GroupQueryAttention",
        *operands,
        domain=_DOMAIN,
        num_heads=heads,
        kv_num_heads=c.kv_heads,
        scale=c.scale,
        softcap=c.softcap,
        do_rotary=1 if c.extra == "rotary" else None,
    )


@space(
    "DecoderMaskedMultiHeadAttention",
    runtime="onnxruntime",
    batch=_TWO,
    heads=LENGTHS,
    size=LENGTHS,
    scale=(None, 0.5),
    extra=("", "mask", "cross"),
)
def decoder_masked_attention(g: Graph, c: SimpleNamespace) -> str:
    """One position; masks, and keys and values of other tokens."""
    width = c.heads * c.size
    query = g.free((c.batch, 1, width), scale=SCALE)
    if c.extra == "cross":
        shape: tuple[int, ...] = (c.batch, c.heads, 3, c.size)
    else:
        shape = (c.batch, 1, width)
    others = [g.free(shape, scale=SCALE) for _ in range(2)]
    length = 3 if c.extra == "cross" else 1
    mask = g.constant(np.ones((c.batch, length)), np.int32) if c.extra == "mask" else ""
    return g.node(
        "DecoderMaskedMultiHeadAttention",
        query,
        *others,
        mask,
        domain=_DOMAIN,
        num_heads=c.heads,
        scale=c.scale,
    )


@space(
    "LinearAttention",
    opset=(27,),
    batch=_TWO,
    kv_heads=_TWO,
    repeats=LENGTHS,
    steps=_TWO,
    size=LENGTHS,
    value_size=LENGTHS,
    rule=("linear", "gated", "gated_heads", "delta", "gated_delta"),
    scale=(None, 0.5),
    state=(False, True),
)
def linear_attention(g: Graph, c: SimpleNamespace) -> list[str]:
    """All rules of the update, decays per head and channel, with and without a state."""
    heads = c.kv_heads * c.repeats
    tokens = (c.batch, c.steps)
    widths = (heads * c.size, c.kv_heads * c.size, c.kv_heads * c.value_size)
    data = [g.free((*tokens, w), scale=SCALE) for w in widths]
    state = decay = beta = ""
    if c.state:
        state = g.free((c.batch, c.kv_heads, c.size, c.value_size), scale=SCALE)
    if "gated" in c.rule:
        per_head = c.rule == "gated_heads"
        decay = g.free((*tokens, c.kv_heads * (1 if per_head else c.size)), -4, 0, SCALE)
    if "delta" in c.rule:
        beta = g.free((*tokens, c.kv_heads), 1, 4, SCALE)
    return g.node_of(
        2,
        "LinearAttention",
        *data,
        state,
        decay,
        beta,
        q_num_heads=heads,
        kv_num_heads=c.kv_heads,
        update_rule="gated" if c.rule == "gated_heads" else c.rule,
        scale=c.scale,
    )


@space(
    "CausalConvWithState",
    opset=(27,),
    contrib=(False, True),
    batch=_TWO,
    channels=LENGTHS,
    steps=LENGTHS,
    kernel=LENGTHS,
    bias=(False, True),
    past=(False, True),
    activation=(None, "silu"),
)
def causal_conv(g: Graph, c: SimpleNamespace) -> list[str] | None:
    """A kernel per channel, with and without a bias, past positions and an activation."""
    if c.past and c.kernel < 2:
        return None
    past = g.free((c.batch, c.channels, c.kernel - 1)) if c.past else ""
    return g.node_of(
        2,
        "CausalConvWithState",
        g.free((c.batch, c.channels, c.steps)),
        g.weight((c.channels, 1, c.kernel)),
        g.weight((c.channels,)) if c.bias else "",
        past,
        domain=_DOMAIN if c.contrib else "",
        activation=c.activation,
    )


@space("SwiGLU", opset=(28,), alpha=(None, 1.5), second=("free", "weight"), shape=shapes(1, 2, 3))
def swiglu(g: Graph, c: SimpleNamespace) -> str:
    """One tensor gated by another."""
    gate = g.free(c.shape) if c.second == "free" else g.weight(c.shape)
    return g.node("SwiGLU", g.free(c.shape), gate, alpha=c.alpha)
