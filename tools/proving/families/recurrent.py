"""Worlds of recurrent layers and of attention."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from proving.worlds import LENGTHS, Graph, space

_TWO = (1, 2)
_ACTIVATIONS = {
    "LSTM": ["Tanh", "Sigmoid", "Relu"],
    "GRU": ["Tanh", "Relu"],
    "RNN": ["Relu"],
}
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@space(
    "LSTM GRU RNN",
    opset=(14, 22),
    seq=_TWO,
    batch=_TWO,
    inputs=LENGTHS,
    hidden=LENGTHS,
    direction=("forward", "reverse", "bidirectional"),
    layout=(0, 1),
    extra=("", "bias", "lengths", "short", "states", "peepholes"),
    form=("", "clip", "activations", "input_forget"),
    option=(0, 1),
    outputs=("all", "sequence", "last"),
)
def recurrent(g: Graph, c: SimpleNamespace) -> list[str] | None:
    """Directions, layouts, biases, lengths, initial states, peepholes and outputs."""
    gates, both = _GATES[c.op], 2 if c.direction == "bidirectional" else 1
    lstm, gru = c.op == "LSTM", c.op == "GRU"
    if (c.extra == "peepholes" and not lstm) or (c.option and not gru):
        return None
    if c.form == "input_forget" and not lstm:
        return None
    data = (c.batch, c.seq, c.inputs) if c.layout else (c.seq, c.batch, c.inputs)
    state = (c.batch, both, c.hidden) if c.layout else (both, c.batch, c.hidden)
    scale = 1 / 8  # keeps gates away from saturation
    operands = [
        g.free(data, scale=scale),
        g.weight((both, gates * c.hidden, c.inputs), scale=scale),
        g.weight((both, gates * c.hidden, c.hidden), scale=scale),
    ]
    bias = g.weight((both, 2 * gates * c.hidden), scale=scale) if c.extra else ""
    lengths = ""
    if c.extra in ("lengths", "short"):
        shortest = c.seq if c.extra == "lengths" else 1
        lengths = g.constant([shortest, c.seq][: c.batch], np.int32)
    states = ["", ""]
    if c.extra in ("states", "peepholes"):
        states = [g.free(state, scale=scale), g.weight(state, scale=scale) if lstm else ""]
    peepholes = g.weight((both, 3 * c.hidden), scale=scale) if c.extra == "peepholes" else ""
    attributes = {
        "hidden_size": c.hidden,
        "direction": c.direction,
        "layout": c.layout or None,
        "linear_before_reset": c.option or None,
        "clip": 0.25 if c.form == "clip" else None,
        "activations": _ACTIVATIONS[c.op] * both if c.form == "activations" else None,
        "input_forget": 1 if c.form == "input_forget" else None,
    }
    inputs = (*operands, bias, lengths, *states, peepholes)
    outputs = g.node_of(3 if lstm else 2, c.op, *inputs, **attributes)
    return {"all": outputs, "sequence": outputs[:1], "last": outputs[1:]}[c.outputs]


# A cut writes the scale of the original heads, which is stored as float32.
@space(
    "Attention",
    tolerances={"Attention": 1e-6},
    opset=(23, 24),
    batch=_TWO,
    kv_heads=_TWO,
    repeats=LENGTHS,
    queries=_TWO,
    keys=_TWO,
    size=LENGTHS,
    value_size=_TWO,
    flat=(False, True),
    mask=("", "st", "1st", "11st", "hst", "b1st", "bhst", "bool"),
    causal=(0, 1),
    scale=(None, 0.5),
    softcap=(None, 2.0),
    past=(False, True),
)
def attention(g: Graph, c: SimpleNamespace) -> list[str]:
    """Heads shared by queries, separate and in one axis; masks, caps, scales, past keys."""
    heads, total = c.kv_heads * c.repeats, c.keys + (2 if c.past else 0)
    length = {"b": c.batch, "h": heads, "s": c.queries, "t": total, "1": 1}

    def operand(heads: int, count: int, size: int) -> str:
        if c.flat:
            return g.free((c.batch, count, heads * size), scale=1 / 8)
        return g.free((c.batch, heads, count, size), scale=1 / 8)

    mask, past = "", ["", ""]
    if c.mask == "bool":
        causal = np.tril(np.ones((c.queries, total)), total - c.queries)
        mask = g.constant(causal, bool)
    elif c.mask:
        mask = g.weight([length[letter] for letter in c.mask], scale=1 / 4)
    if c.past:
        past = [g.free((c.batch, c.kv_heads, 2, s), scale=1 / 8) for s in (c.size, c.value_size)]
    flat = {"q_num_heads": heads, "kv_num_heads": c.kv_heads} if c.flat else {}
    return g.node_of(
        3 if c.past else 1,
        "Attention",
        operand(heads, c.queries, c.size),
        operand(c.kv_heads, c.keys, c.size),
        operand(c.kv_heads, c.keys, c.value_size),
        mask,
        *past,
        is_causal=c.causal or None,
        scale=c.scale,
        softcap=c.softcap,
        **flat,
    )


@space(
    "MultiHeadAttention",
    runtime="onnxruntime",
    batch=_TWO,
    heads=LENGTHS,
    queries=LENGTHS,
    keys=LENGTHS,
    size=LENGTHS,
    value_size=LENGTHS,
    scale=(None, 0.5),
    bias=(False, True),
)
def multi_head_attention(g: Graph, c: SimpleNamespace) -> str:
    """Queries, keys and values of their own sizes, with and without a bias."""
    widths = (c.heads * c.size, c.heads * c.size, c.heads * c.value_size)
    counts = (c.queries, c.keys, c.keys)
    operands = [
        g.free((c.batch, count, width), scale=1 / 8)
        for count, width in zip(counts, widths, strict=True)
    ]
    bias = g.weight((sum(widths),), scale=1 / 8) if c.bias else ""
    return g.node(
        "MultiHeadAttention",
        *operands,
        bias,
        domain="com.microsoft",
        num_heads=c.heads,
        scale=c.scale,
    )


@space(
    "Attention",
    runtime="onnxruntime",
    batch=_TWO,
    seq=LENGTHS,
    inputs=LENGTHS,
    heads=LENGTHS,
    size=LENGTHS,
    scale=(None, 0.5),
    causal=(0, 1),
    mask=("", "lengths", "keys", "bias", "bias_per_head"),
    sizes=(False, True),
)
def packed_attention(g: Graph, c: SimpleNamespace) -> str:
    """One product for queries, keys and values; masks and an addend of the scores."""
    width = c.heads * c.size
    mask, addend = "", ""
    if c.mask == "lengths":
        mask = g.constant([c.seq] * c.batch, np.int32)
    elif c.mask == "keys":
        mask = g.constant(np.ones((c.batch, c.seq)), np.int32)
    elif c.mask:
        per = c.heads if c.mask == "bias_per_head" else 1
        addend = g.weight((c.batch, per, c.seq, c.seq), scale=1 / 4)
    return g.node(
        "Attention",
        g.free((c.batch, c.seq, c.inputs), scale=1 / 8),
        g.weight((c.inputs, 3 * width), scale=1 / 8),
        g.weight((3 * width,), scale=1 / 8),
        mask,
        "",
        addend,
        domain="com.microsoft",
        num_heads=c.heads,
        scale=c.scale,
        unidirectional=c.causal or None,
        qkv_hidden_sizes=[width] * 3 if c.sizes else None,
    )
