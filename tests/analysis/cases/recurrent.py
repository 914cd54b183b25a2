"""Recurrent layers and fused attention."""

from __future__ import annotations

from cases.case import Case, tokens


def recurrent(
    op: str,
    gates: int,
    direction: str,
    inputs: str = "",
    more: str = "",
    out: str = "o",
    attributes: str = "",
) -> Case:
    """Return a recurrent layer of 6 hidden units over 5 steps, followed by a projection."""
    d = 2 if direction == "bidirectional" else 1
    weights = (
        f"float[{d},{gates * 6},4] w1, float[{d},{gates * 6},6] w2, float[{d},{gates * 12}] w3"
    )
    text = (
        f"float[5,2,4] x | {weights}, {more}int64[3] s = {{5, 2, {6 * d}}}, "
        f"float[{6 * d},7] w9 | {out} = {op}<hidden_size=6, "
        f'direction="{direction}"{attributes}>(x, w1, w2, w3{inputs});'
    )
    return Case(
        text + "t = Transpose<perm=[0,2,1,3]>(o); r = Reshape(t, s); y = MatMul(r, w9)", groups=(6,)
    )


CASES: dict[str, Case] = {
    f"{op}_{direction}": recurrent(op, gates, direction)
    for op, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1))
    for direction in ("forward", "reverse", "bidirectional")
}
CASES |= {
    "LSTM_peepholes": recurrent(
        "LSTM",
        4,
        "bidirectional",
        ", , w5, w6, w7",
        "float[2,2,6] w5, float[2,2,6] w6, float[2,18] w7, ",
    ),
    "LSTM_states": Case(
        "float[5,2,4] x | float[1,24,4] w1, float[1,24,6] w2, float[6,7] w3, float[6,7] w4, "
        "float[6,7] w5, int64[1] one = {1}, int64[1] zero = {0} | "
        "o, h, c = LSTM<hidden_size=6>(x, w1, w2);"
        "a = Squeeze(o, one); d = MatMul(a, w3); e = Squeeze(h, zero); f = MatMul(e, w4); "
        "g = Squeeze(c, zero); i = MatMul(g, w5); j = Add(d, f); y = Add(j, i)",
        groups=(6,),
    ),
    "LSTM_stacked": Case(
        "float[5,2,4] x | float[1,24,4] w1, float[1,24,6] w2, float[1,32,6] w3, "
        "float[1,32,8] w4, float[8,7] w5, int64[1] one = {1}, int32[2] lengths = {5, 3} |"
        "o = LSTM<hidden_size=6>(x, w1, w2, , lengths); a = Squeeze(o, one); "
        "p = LSTM<hidden_size=8>(a, w3, w4); b = Squeeze(p, one); y = MatMul(b, w5)",
        groups=(6, 8),
    ),
    "LSTM_quantized": Case(
        "float[5,2,4] x | int8[1,24,4] k1, int8[1,24,6] k2, float s = {0.05}, float[6,7] w3, "
        "int64[1] one = {1} |"
        "w1 = DequantizeLinear(k1, s); w2 = DequantizeLinear(k2, s); "
        "o = LSTM<hidden_size=6>(x, w1, w2); a = Squeeze(o, one); y = MatMul(a, w3)",
        groups=(6,),
    ),
    "GRU_linear_before_reset": recurrent(
        "GRU",
        3,
        "bidirectional",
        ", , w5",
        "float[2,2,6] w5, ",
        attributes=", linear_before_reset=1",
    ),
    "GRU_state_from_graph": Case(
        "float[5,2,4] x, float[2,4] h | float[4,6] w0, int64[1] zero = {0}, "
        "float[1,18,4] w1, float[1,18,6] w2, float[6,7] w3, int64[1] one = {1} |"
        "i = MatMul(h, w0); j = Unsqueeze(i, zero); "
        "o = GRU<hidden_size=6>(x, w1, w2, , , j); a = Squeeze(o, one); y = MatMul(a, w3)",
        groups=(6,),
    ),
}

_HEADS = (
    "float[2,6,16] x | float[16,32] wq, float[16,{k}] wk, float[16,{v}] wv, float[{o},5] wo | "
    "q = MatMul(x, wq); k = MatMul(x, wk); v = MatMul(x, wv); {node}; y = MatMul(a, wo)"
)
CASES |= {
    "Attention": Case(
        _HEADS.format(
            k=32,
            v=24,
            o=24,
            node="a = Attention<q_num_heads=4, kv_num_heads=4, scale=0.3>(q, k, v)",
        ),
        23,
        (4, 6, 8),
    ),
    "Attention_shared_keys": Case(
        _HEADS.format(
            k=16,
            v=16,
            o=32,
            node="a = Attention<q_num_heads=4, kv_num_heads=2, scale=0.3>(q, k, v)",
        ),
        23,
        (2, 2, 8, 8),
    ),
    "Attention_own_scale": Case(
        _HEADS.format(
            k=32, v=32, o=32, node="a = Attention<q_num_heads=4, kv_num_heads=4>(q, k, v)"
        ),
        23,
        (4, 8, 8),
    ),
    "MultiHeadAttention": Case(
        _HEADS.format(
            k=32,
            v=32,
            o=32,
            node="a = com.microsoft.MultiHeadAttention<num_heads=4, scale=0.3>(q, k, v)",
        ),
        17,
        (4, 8, 8),
    ),
    "SkipLayerNormalization": tokens(
        (
            "t = Transpose<perm=[0,2,1]>(a); n = com.microsoft.SkipLayerNormalization(t, t, w3, "
            "w4); b = Transpose<perm=[0,2,1]>(n)"
        ),
        "float[6] w3, float[6] w4",
    ),
    "SkipSimplifiedLayerNormalization": tokens(
        (
            "t = Transpose<perm=[0,2,1]>(a); n = "
            "com.microsoft.SkipSimplifiedLayerNormalization(t, t, w3); "
            "b = Transpose<perm=[0,2,1]>(n)"
        ),
        "float[6] w3",
    ),
}
