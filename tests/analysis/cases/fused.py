"""Operators that onnxruntime's optimizer and quantizers write, and that run on its CPU provider."""

from __future__ import annotations

from cases.case import Case, tokens

_CONV = (
    "float[2,4,6,6] x | float[8,4,3,3] w1, float[8] b1, {extra}float[5,{c},1,1] w2 | {nodes}; "
    "y = Conv(b, w2)"
)
_MATRICES = "float[3,4] x | float[4,8] w1, float[8,6] w2, float[6] b2, float[6,5] w3 | {nodes}"
_NBITS = (
    "float[2,3,4] x | float[4,{k}] w1, uint8[6,{q},{z}] w2, float[{scales}] v2, {extra}"
    "float[6,5] w3 | a = MatMul(x, w1); b = com.microsoft.MatMulNBits<K={k}, N=6, bits={bits}, "
    "block_size={block}>(a, w2, v2{inputs}); y = MatMul(b, w3)"
)
_HEADS = (
    "float[2,5,4] x | float[4,12] wq, float[4,12] wk, float[4,{v}] wv, {extra}float[{v},7] wo | "
    "q = MatMul(x, wq); k = MatMul(x, wk); v = MatMul(x, wv); "
    "a{outputs} = com.microsoft.MultiHeadAttention<num_heads=3{more}>(q, k, v{inputs}); "
    "y = MatMul(a, wo)"
)
_QUANTIZED = (
    "float[2,5,4] x | float[4,6] w0, float s = {{0.05}}, uint8 z = {{120}}, uint8[6,18] k, "
    "float[18] b1, {extra}float[18] vs, uint8 kz = {{3}}, float[6,7] w2 | a = MatMul(x, w0); "
    "q = QuantizeLinear(a, s, z); "
    "b = com.microsoft.QAttention<num_heads=2{more}>(q, k, b1, s, {scale}, {mask}, z, kz); "
    "y = MatMul(b, w2)"
)


def nbits(
    k: int = 64,
    block: int = 16,
    bits: int = 4,
    flat: bool = False,
    extra: str = "",
    inputs: str = "",
    groups: tuple[int, ...] = (4, 6),
) -> Case:
    """Return a product with a weight in blocks; 6 outputs."""
    blocks = -(-k // block)
    scales = f"{6 * blocks}" if flat else f"6,{blocks}"
    text = _NBITS.format(
        k=k,
        q=blocks,
        z=block * bits // 8,
        bits=bits,
        block=block,
        scales=scales,
        extra=extra,
        inputs=inputs,
    )
    return Case(text, groups=groups)


def heads(
    more: str = "",
    inputs: str = "",
    extra: str = "",
    v: int = 12,
    outputs: str = "",
    groups: tuple[int, ...] = (3, 4, 4),
) -> Case:
    """Return attention of three heads."""
    return Case(
        _HEADS.format(more=more, inputs=inputs, extra=extra, v=v, outputs=outputs), groups=groups
    )


def gathered(data: str, more: str, scales: str, extra: str = "", inputs: str = "") -> Case:
    """Return a table that is quantized in blocks of 16 columns."""
    return Case(
        f"int64[2,3] x, float[2,3,4] u | {data}, float[{scales}] v1, {extra}float[4,64] w0, "
        "float[64,5] w2 | p = MatMul(u, w0); "
        f"a = com.microsoft.GatherBlockQuantized<block_size=16{more}>(w1, x, v1{inputs}); "
        "b = Add(p, a); y = MatMul(b, w2)",
        21,
        (4,),
    )


def integers(more: str, scale: str = "s", mask: str = "", extra: str = "") -> Case:
    """Return attention of two heads on quantized operands."""
    text = _QUANTIZED.format(more=more, scale=scale, mask=mask, extra=extra)
    return Case(text, groups=(2, 3, 6))


def quantized_lstm(
    directions: int = 1,
    extra: str = "",
    inputs: str = ", , , ",
    per_column: bool = False,
    kind: str = "int8",
    attributes: str = "",
    groups: tuple[int, ...] = (6, 8),
) -> Case:
    """Return an LSTM with integer weights between two layers: 8 inputs, 6 units.

    Parameters
    ----------
    inputs
        Lengths, initial states and peepholes.
    per_column
        Whether scales and zero points are per column of the weights.
    """
    d, columns = directions, directions * (24 if per_column else 1)
    shape = f"[{d},24]" if per_column else f"[{d}]"
    scales = ",".join(f"0.0{1 + i % 4}" for i in range(columns))
    # onnxruntime takes only zeros per column
    zeros = ",".join("0" if per_column else str(2 + i) for i in range(columns))
    both = ', direction="bidirectional"' if d > 1 else ""
    return Case(
        f"float[5,2,4] x | float[4,8] w1, {kind}[{d},8,24] k, {kind}[{d},6,24] r, "
        f"float{shape} s = {{{scales}}}, {kind}{shape} z = {{{zeros}}}, float[{d},48] c, {extra}"
        f"int64[3] t = {{5,2,{6 * d}}}, float[{6 * d},7] w2 | a = MatMul(x, w1); "
        f"b, h, e = com.microsoft.DynamicQuantizeLSTM<hidden_size=6{both}{attributes}>"
        f"(a, k, r, c, {inputs}, s, z, s, z); m = Transpose<perm=[0,2,1,3]>(b); "
        "f = Reshape(m, t); y = MatMul(f, w2)",
        groups=groups,
    )


CASES: dict[str, Case] = {
    "FusedConv": Case(
        _CONV.format(
            c=6,
            extra="float[6,8,3,3] k, float[6] b2, ",
            nodes='a = com.microsoft.FusedConv<activation="Relu">(x, w1, b1); '
            'b = com.microsoft.FusedConv<activation="LeakyRelu", activation_params=[0.1], '
            "pads=[1,1,1,1]>(a, k, b2)",
        ),
        groups=(6, 8),
    ),
    "FusedConv_residual": Case(
        _CONV.format(
            c=8,
            extra="float[8,1,3,3] k, ",
            nodes='a = Conv(x, w1, b1); b = com.microsoft.FusedConv<activation="Relu", group=8, '
            "pads=[1,1,1,1]>(a, k, b1, a)",
        ),
        groups=(8,),
    ),
    "ConvTransposeWithDynamicPads": Case(
        "float[2,4,6,6] x | float[8,4,3,3] w1, float[8,6,3,3] k, int64[4] p = {1,1,1,1}, "
        "float[6] b2, float[5,6,1,1] w2 | a = Conv(x, w1); "
        "b = com.microsoft.ConvTransposeWithDynamicPads<strides=[2,2]>(a, k, p, b2); "
        "y = Conv(b, w2) | float[2,5,7,7] y",
        groups=(6, 8),
    ),
    "FusedGemm": Case(
        _MATRICES.format(
            nodes='a = com.microsoft.FusedGemm<activation="Relu">(x, w1); b = '
            'com.microsoft.FusedGemm<activation="LeakyRelu", activation_alpha=0.2>(a, w2, b2); '
            "y = MatMul(b, w3)"
        ),
        groups=(6, 8),
    ),
    "FusedMatMul": tokens(
        "t = com.microsoft.FusedMatMul<transB=1, alpha=0.5>(a, k); s = Softmax(t); "
        "b = com.microsoft.FusedMatMul<transA=1>(s, v)",
        "float[2,6,8] k, float[2,6,8] v",
        groups=(8, 8),
    ),
    "FusedMatMul_transA": Case(
        "float[2,4,3] x | float[4,8] w1, float[8,5] w2, float[4,4] w0 | "
        "z = MatMul(w0, x); a = com.microsoft.FusedMatMul<transA=1>(z, w1); y = MatMul(a, w2)",
        groups=(4, 8),
    ),
    "FusedMatMul_batches": Case(
        "float[2,3,4] x | float[4,8] w1, float[4,8] w2 | a = MatMul(x, w1); k = MatMul(x, w2); "
        "p = Transpose<perm=[1,0,2]>(a); r = Transpose<perm=[1,0,2]>(k); "
        "y = com.microsoft.FusedMatMul<transBatchA=1, transBatchB=1, transB=1>(p, r)",
        groups=(8,),
    ),
    "FusedMatMul_batch_and_rows": Case(
        "float[2,3,4] x | float[4,8] w1, float[4,6] w2, float[8,5] w3 | a = MatMul(x, w1); "
        "k = MatMul(x, w2); r = Transpose<perm=[1,0,2]>(k); "
        "b = com.microsoft.FusedMatMul<transA=1, transBatchB=1>(a, r); "
        "c = Transpose<perm=[0,2,1]>(b); y = MatMul(c, w3)",
        groups=(8,),
    ),
    "FusedMatMul_vector": tokens(
        "t = com.microsoft.FusedMatMul<transB=1>(a, k); u = Unsqueeze(t, i); b = Mul(u, a)",
        "float[8] k, int64[1] i = {-1}",
    ),
    "TransposeMatMul": Case(
        "float[2,3,4] x | float[4,8] w1, float[5,8] w2 | "
        "a = MatMul(x, w1); "
        "y = com.microsoft.TransposeMatMul<transB=1>(a, w2)",
        groups=(8,),
    ),
    "MatMulNBits": nbits(),
    "MatMulNBits_flat": nbits(flat=True, extra="uint8[12] z2, ", inputs=", z2", groups=(6,)),
    "MatMulNBits_zero_points_in_bytes": nbits(
        bits=8, extra="uint8[6,4] z2, float[6] b2, ", inputs=", z2, , b2"
    ),
    "MatMulNBits_float_zero_points": nbits(extra="float[6,4] z2, ", inputs=", z2"),
    "MatMulNBits_last_block_partial": nbits(k=40, groups=(6,)),
    "GatherBlockQuantized": gathered("int4[9,64] w1", "", "9,4"),
    "GatherBlockQuantized_bytes": gathered("uint8[9,32] w1", "", "9,4"),
    "ScaledSiLU": tokens("b = com.microsoft.ScaledSiLU<alpha=0.7>(a)"),
    "DynamicQuantizeLSTM": quantized_lstm(),
    "DynamicQuantizeLSTM_reverse": quantized_lstm(attributes=', direction="reverse"'),
    "DynamicQuantizeLSTM_bidirectional": quantized_lstm(
        2, "int32[2] l = {5,3}, float[2,2,6] h0, float[2,2,6] c0, float[2,18] p, ", "l, h0, c0, p"
    ),
    "DynamicQuantizeLSTM_per_column": quantized_lstm(2, per_column=True),
    "DynamicQuantizeLSTM_unsigned": quantized_lstm(kind="uint8"),
    "DynamicQuantizeLSTM_options": quantized_lstm(
        attributes=', clip=0.9, input_forget=1, activations=["HardSigmoid", "Relu", "Softsign"]'
    ),
    "DynamicQuantizeLSTM_cell_of_zero": quantized_lstm(
        attributes=', activations=["Sigmoid", "Sigmoid", "Tanh"]', groups=(8,)
    ),
    "DynamicQuantizeLSTM_state_from_graph": Case(
        "float[5,2,4] x, float[2,4] g | float[4,6] w0, float[4,6] w1, int64[1] zero = {0}, "
        "int8[1,4,24] k, int8[1,6,24] r, float[1] s = {0.01}, int8[1] z = {0}, float[6,7] w2 | "
        "i = MatMul(g, w0); h0 = Unsqueeze(i, zero); j = MatMul(g, w1); c0 = Unsqueeze(j, zero); "
        "o, h, c = com.microsoft.DynamicQuantizeLSTM<hidden_size=6>"
        "(x, k, r, , , h0, c0, , s, z, s, z); y = MatMul(c, w2)",
        groups=(6,),
    ),
    "EmbedLayerNormalization": Case(
        "int32[2,3] x, int32[2,3] t | float[9,8] w1, float[4,8] w2, float[2,8] w3, float[8] v, "
        "float[8] c, float[8,5] w4 | "
        "a, m, e = com.microsoft.EmbedLayerNormalization(x, t, w1, w2, w3, v, c); "
        "y = MatMul(a, w4)",
        groups=(),
    ),
    "QEmbedLayerNormalization": Case(
        "int32[2,3] x | uint8[9,8] w1, uint8[4,8] w2, uint8[8] c, float s = {0.1}, "
        "uint8 z = {4}, float[8,5] w4 | a, m = com.microsoft.QEmbedLayerNormalization"
        "(x, , w1, w2, , c, c, , s, s, , s, s, z, z, , z, z); y = MatMul(a, w4)",
        groups=(),
    ),
    "NhwcMaxPool": Case(
        "uint8[2,4,6,6] x | float s = {0.1}, uint8 z = {3}, float[8,4,3,3] w1, float[5,8,1,1] w2 | "
        "d = DequantizeLinear(x, s, z); a = Conv(d, w1); q = QuantizeLinear(a, s, z); "
        "l = Transpose<perm=[0,2,3,1]>(q); p = com.microsoft.NhwcMaxPool<kernel_shape=[2,2]>(l); "
        "f = Transpose<perm=[0,3,1,2]>(p); b = DequantizeLinear(f, s, z); y = Conv(b, w2)",
        groups=(8,),
    ),
    "MultiHeadAttention_own_scale": heads(),
    "MultiHeadAttention_bias": heads(inputs=", c", extra="float[36] c, ", groups=(3, 4)),
    "MultiHeadAttention_other_values": heads(v=6, groups=(2, 3, 4)),
    "MultiHeadAttention_mask": heads(
        ", scale=0.3", ", , m, t", "int32[2,5] m = {1,1,1,0,0,1,1,1,1,1}, float[1,3,5,5] t, "
    ),
    "MultiHeadAttention_past": heads(
        inputs=", , , , p, r",
        extra="float[2,3,2,4] p, float[2,3,2,4] r, ",
        outputs=", o, l",
        groups=(3, 4),
    ),
    "MultiHeadAttention_by_head": Case(
        "float[2,5,4] x | float[4,12] wq, float[4,12] wk, float[4,12] wv, int64[4] s = {2,5,3,4}, "
        "float[12,7] wo | q = MatMul(x, wq); k = MatMul(x, wk); v = MatMul(x, wv); "
        "kr = Reshape(k, s); kt = Transpose<perm=[0,2,1,3]>(kr); vr = Reshape(v, s); "
        "vt = Transpose<perm=[0,2,1,3]>(vr); "
        "a = com.microsoft.MultiHeadAttention<num_heads=3>(q, kt, vt); y = MatMul(a, wo)",
        groups=(3, 4),
    ),
    "packed_attention_past": Case(
        "float[2,5,4] x | float[4,6] w0, float[6,36] w1, float[36] b1, float[2,2,3,2,4] p, "
        "float[12,7] w2 | a = MatMul(x, w0); "
        "b, r = com.microsoft.Attention<num_heads=3>(a, w1, b1, , p); y = MatMul(b, w2)",
        groups=(3, 4, 6),
    ),
    "QAttention": integers(", unidirectional=1"),
    "QAttention_scale_per_column": integers(", scale=0.4", "vs", "m", "int32[2] m = {3, 5}, "),
}
