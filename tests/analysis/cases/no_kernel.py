"""Operators that onnxruntime writes for other devices; contrib_ops.py evaluates them."""

from __future__ import annotations

from cases.case import Case, between, tokens

_LAST = "l = Transpose<perm=[0,2,3,1]>(a); {nodes}; b = Transpose<perm=[0,3,1,2]>(r)"
_PACKED = (
    "float[5,4] x | float[4,6] w0, {weights}, int32[2,3] o = {{0,1,2,3,4,5}}, "
    "int32[3] c = {{0,3,5}}, float[12,7] w2 | a = MatMul(x, w0); {nodes}; y = MatMul(b, w2)"
)


def last(nodes: str, extra: str = "", groups: tuple[int, ...] = (8,)) -> Case:
    """Return nodes that compute `r` from `l`, the channels last."""
    return between(_LAST.format(nodes=nodes), extra, groups=groups)


CASES: dict[str, Case] = {
    "NhwcConv": last(
        "r = com.microsoft.NhwcConv<group=4, pads=[1,1,1,1]>(l, k, c)",
        "float[8,2,3,3] k, float[8] c",
        (2, 2, 4),
    ),
    "NhwcFusedConv": last(
        'r = com.microsoft.NhwcFusedConv<activation="Relu", strides=[1,1]>(l, k, , l)',
        "float[8,8,1,1] k",
    ),
    "GroupNorm": last(
        "r = com.microsoft.GroupNorm<groups=4, activation=1>(l, g, c)",
        "float[8] g, float[8] c",
        (4,),
    ),
    "GroupNorm_channels_first": between(
        "b = com.microsoft.GroupNorm<groups=4, channels_last=0, epsilon=0.001>(a, g, c)",
        "float[8] g, float[8] c",
        groups=(4,),
    ),
    "SkipGroupNorm": last(
        "s, t = com.microsoft.SkipGroupNorm<groups=4>(l, g, c, k, d); r = Add(s, t)",
        "float[8] g, float[8] c, float[2,8] k, float[8] d",
        (4,),
    ),
    "BiasSplitGelu": Case(
        "float[2,6,4] x | float[4,16] w1, float[16] c, float[8,5] w2 | a = MatMul(x, w1); "
        "b = com.microsoft.BiasSplitGelu(a, c); y = MatMul(b, w2)",
        groups=(8,),
    ),
    "BiasAdd": tokens("b = com.microsoft.BiasAdd(a, c, a)", "float[8] c"),
    "BiasDropout": tokens("b, m = com.microsoft.BiasDropout(a, c, a)", "float[8] c"),
    "BitmaskDropout": tokens("b = com.microsoft.BitmaskDropout(a)"),
    "BitmaskBiasDropout": tokens("b = com.microsoft.BitmaskBiasDropout(a, c)", "float[8] c"),
    "BiasSoftmax": tokens(
        "t = Transpose<perm=[2,0,1]>(a); s = com.microsoft.BiasSoftmax<axis=2>(t, c); "
        "b = Transpose<perm=[1,2,0]>(s)",
        "float[1,2,6] c",
    ),
    "GemmFastGelu": tokens(
        "b = com.microsoft.GemmFastGelu(a, k, c)", "float[8,8] k, float[8] c", groups=(8, 8)
    ),
    "FusedMatMulActivation": tokens(
        'b = com.microsoft.FusedMatMulActivation<transB=1, activation="Relu">(a, k)',
        "float[8,8] k",
        groups=(8, 8),
    ),
    "QLinearReduceMean": between(
        "q = QuantizeLinear(a, s, z); "
        "p = com.microsoft.QLinearReduceMean<axes=[2,3]>(q, s, z, s, z); "
        "b = DequantizeLinear(p, s, z)",
        "float s = {0.1}, uint8 z = {120}",
        opset=19,
    ),
    "PackedAttention": Case(
        _PACKED.format(
            weights="float[6,36] w1, float[36] b1",
            nodes="b = com.microsoft.PackedAttention<num_heads=3>(a, w1, b1, o, c)",
        ),
        groups=(3, 4, 6),
    ),
    "PackedMultiHeadAttention": Case(
        _PACKED.format(
            weights="float[6,12] w1, float[6,12] k1, float[6,12] v1, float[36] b1",
            nodes="q = MatMul(a, w1); k = MatMul(a, k1); v = MatMul(a, v1); "
            "b = com.microsoft.PackedMultiHeadAttention<num_heads=3>(q, k, v, b1, o, c)",
        ),
        groups=(3, 4, 6),
    ),
    "PackedMultiHeadAttention_interleaved": Case(
        _PACKED.format(
            weights="float[6,36] w1, int64[4] s = {5,3,3,4}",
            nodes="q = MatMul(a, w1); k = Reshape(q, s); "
            "b = com.microsoft.PackedMultiHeadAttention<num_heads=3>(k, , , , o, c)",
        ),
        groups=(3, 4, 6),
    ),
    "MultiHeadAttention_interleaved": Case(
        "float[2,5,4] x | float[4,36] wq, int64[5] s = {2,5,3,3,4}, float[12,7] wo | "
        "q = MatMul(x, wq); k = Reshape(q, s); "
        "a = com.microsoft.MultiHeadAttention<num_heads=3>(k); y = MatMul(a, wo)",
        groups=(3, 4),
    ),
    "MultiHeadAttention_keys_with_values": Case(
        "float[2,5,4] x | float[4,12] wq, float[4,24] wk, int64[5] s = {2,5,3,2,4}, "
        "float[12,7] wo | q = MatMul(x, wq); k = MatMul(x, wk); kv = Reshape(k, s); "
        "a = com.microsoft.MultiHeadAttention<num_heads=3>(q, kv); y = MatMul(a, wo)",
        groups=(3, 4),
    ),
}
