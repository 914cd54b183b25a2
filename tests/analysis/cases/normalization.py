"""Normalizations, functions of one axis and quantization."""

from __future__ import annotations

from cases.case import Case, between, tokens


def _quantized(nodes: str, extra: str = "", last: str = "w2", after: str = "t, z") -> Case:
    """Return nodes that compute `o` from the int8 outputs `q` and `r` of two convolutions."""
    return Case(
        f"float[2,4,6,6] x | float[8,4,3,3] w1, float[8,4,3,3] w3, float s = {{0.05}}, "
        f"float u = {{0.03}}, int8 z = {{3}}, float t = {{0.1}}, "
        f"float[5,8,1,1] w2{', ' + extra if extra else ''} |"
        "a = Conv(x, w1); c = Conv(x, w3); q = QuantizeLinear(a, s, z); "
        f"r = QuantizeLinear(c, u, z); {nodes}; b = DequantizeLinear(o, {after}); "
        f"y = Conv(b, {last})"
    )


CASES: dict[str, Case] = {
    "BatchNormalization": between(
        "b = BatchNormalization(a, w3, w4, w5, v)",
        "float[8] w3, float[8] w4, float[8] w5, float[8] v",
    ),
    "BatchNormalization_training": between(
        "b, m, s = BatchNormalization<training_mode=1>(a, w3, w4, w5, v)",
        "float[8] w3, float[8] w4, float[8] w5, float[8] v",
    ),
    "BatchNormalization_standardizes_weights": between(
        (
            "o = Reshape(w3, flat); p, m, s = BatchNormalization<training_mode=1>(o, w4, w5, w6, "
            "v); q = Reshape(p, back); c = Conv(a, q); b = Conv(c, w7)"
        ),
        (
            "float[8,6,1,1] w7, float[6,8,1,1] w3, int64[3] flat = {1, 6, -1}, "
            "int64[4] back = {6, 8, 1, 1}, float[6] w4, float[6] w5, float[6] w6, float[6] v"
        ),
        groups=(6, 8, 8),
    ),
    "InstanceNormalization": between(
        "b = InstanceNormalization(a, w3, w4)", "float[8] w3, float[8] w4"
    ),
    "GroupNormalization": between(
        "b = GroupNormalization<num_groups=4>(a, w3, w4)",
        "float[8] w3, float[8] w4",
        opset=21,
        groups=(4,),
    ),
    "GroupNormalization_per_group": between(
        "b = GroupNormalization<num_groups=4>(a, w3, w4)",
        "float[4] w3, float[4] w4",
        opset=18,
        groups=(4,),
    ),
    "GroupNormalization_by_reshape": between(
        (
            "r = Reshape(a, r1); i = InstanceNormalization(r, v3, w4); s = Reshape(i, r2); "
            "m = Mul(s, w5); b = Add(m, w6)"
        ),
        (
            "int64[3] r1 = {0, 4, -1}, int64[4] r2 = {2, 8, 4, 4}, float[4] v3, float[4] w4, "
            "float[8,1,1] w5, float[8,1,1] w6"
        ),
        groups=(4,),
    ),
    "LRN": between("b = LRN<size=3>(a)", groups=()),
    "LayerNormalization": tokens(
        "c = LayerNormalization<axis=-1>(a, w3, w4); b = MatMul(c, w5)",
        "float[8] w3, float[8] w4, float[8,8] w5",
    ),
    "LayerNormalization_spatial": between(
        "b = LayerNormalization<axis=2>(a, w3, w4)", "float[4,4] w3, float[4,4] w4"
    ),
    "RMSNormalization": Case(
        (
            "float[2,6,4] x | float[4,8] w1, float[8] v2, float[8,8] w3, float[8,5] w4 | "
            "a = MatMul(x, w1); n = RMSNormalization(a, v2); b = MatMul(n, w3); y = MatMul(b, w4)"
        ),
        opset=23,
        groups=(8, 8),
    ),
    "SimplifiedLayerNormalization": tokens(
        "c = SimplifiedLayerNormalization(a, w3); b = MatMul(c, w5)",
        "float[8] w3, float[8,8] w5",
        groups=(8, 8),
    ),
    "RMSNormalization_spatial": between(
        "b = RMSNormalization<axis=2>(a, v)", "float[4,4] v", opset=23
    ),
    "SimplifiedLayerNormalization_positions": tokens(
        (
            "t = Transpose<perm=[0,2,1]>(a); n = SimplifiedLayerNormalization(t, v); "
            "b = Transpose<perm=[0,2,1]>(n)"
        ),
        "float[6] v",
    ),
    "LpNormalization": between("b = LpNormalization<axis=1, p=2>(a)"),
    "LpNormalization_spatial": between("b = LpNormalization<axis=2, p=1>(a)"),
    "MeanVarianceNormalization": between("b = MeanVarianceNormalization<axes=[0,2,3]>(a)"),
    "Softmax_spatial": between("b = Softmax<axis=2>(a)"),
    "Softmax_old": Case(
        (
            "float[2,4,3] x | float[8,4] w1, float[5,8] w2 | a = MatMul(w1, x); "
            "b = Softmax<axis=2>(a); y = MatMul(w2, b)"
        ),
        opset=11,
        groups=(8,),
    ),
    "LogSoftmax_spatial": between("b = LogSoftmax<axis=-1>(a)"),
    "Hardmax_spatial": between("b = Hardmax<axis=3>(a)"),
    "Softmax_channels": between("s = Softmax<axis=1>(a); b = Conv(s, w3)", "float[8,8,1,1] w3"),
    "CumSum": tokens("b = CumSum(a, one)", "int64 one = {1}"),
    "ArgMax": between("i = ArgMax<axis=2, keepdims=1>(a); b = Cast<to=1>(i)"),
    "ArgMin": tokens("i = ArgMin<axis=1, keepdims=1>(a); b = Cast<to=1>(i)"),
    "DequantizeLinear": between(
        "q = QuantizeLinear(a, s, z); b = DequantizeLinear(q, s, z)",
        "float s = {0.02}, uint8 z = {120}",
    ),
    "QuantizeLinear": between(
        "q = QuantizeLinear<axis=1>(a, v3, z); b = DequantizeLinear<axis=1>(q, v3, z)",
        "float[8] v3, int8[8] z = {1,2,3,4,5,6,7,8}",
    ),
    "DequantizeLinear_weights": Case(
        "float[2,4,6,6] x | int8[8,4,3,3] k1, float[8] v1, int8[8] z1 = {0,0,0,0,0,0,0,0}, "
        "int8[5,8,1,1] k2, float s = {0.02}, int8 z = {0}, float[8] b1 |"
        "w1 = DequantizeLinear<axis=0>(k1, v1, z1); a = Conv(x, w1, b1); "
        "t = QuantizeLinear(a, v, z); d = DequantizeLinear(t, v, z); "
        "w2 = DequantizeLinear(k2, s, z); y = Conv(d, w2)".replace(
            "float s", "float v = {1.5}, float s"
        ),
        groups=(8,),
    ),
    **{
        f"QLinear{op}": _quantized(f"o = com.microsoft.QLinear{op}(q, s, z, r, u, z, t, z)")
        for op in ("Add", "Mul")
    },
    "QLinearAdd_constant": _quantized(
        "o = com.microsoft.QLinearAdd(q, s, z, k, u, z, t, z)", "int8[8,1,1] k"
    ),
    "QLinearWhere": _quantized(
        "g = Greater(a, c); o = com.microsoft.QLinearWhere(g, q, s, z, r, u, z, t, z)"
    ),
    "QLinearConcat": _quantized(
        "o = com.microsoft.QLinearConcat<axis=1>(t, z, q, s, z, r, u, z)",
        "float[5,16,1,1] w4",
        last="w4",
    ),
    "QLinearLeakyRelu": _quantized("o = com.microsoft.QLinearLeakyRelu<alpha=0.2>(q, s, z, t, z)"),
    "QLinearSigmoid": _quantized("o = com.microsoft.QLinearSigmoid(q, s, z, t, z)"),
    "QLinearAveragePool": _quantized(
        "o = com.microsoft.QLinearAveragePool<kernel_shape=[2,2], strides=[2,2]>(q, s, z, t, z)"
    ),
    "QLinearGlobalAveragePool": _quantized(
        "o = com.microsoft.QLinearGlobalAveragePool(q, s, z, t, z)"
    ),
    "QLinearSoftmax": _quantized(
        "o = com.microsoft.QLinearSoftmax<axis=3, opset=13>(q, s, z, p, n)",
        "float p = {0.00390625}, int8 n = {-128}",
        after="p, n",
    ),
    "QLinearSoftmax_old": Case(  # up to opset 12, the axis and all after it
        "float[2,3,4] x | float[4,8] w1, float s = {0.05}, int8 z = {0}, "
        "float p = {0.00390625}, int8 n = {-128}, float[8,5] w2, float[5,6] w3 | "
        "a = MatMul(x, w1); b = MatMul(a, w2);"
        "q = QuantizeLinear(b, s, z); o = com.microsoft.QLinearSoftmax<axis=1, opset=11>(q, "
        "s, z, p, n); d = DequantizeLinear(o, p, n); y = MatMul(d, w3)",
        groups=(8,),
    ),
    "QGemm": Case(
        "float[3,4] x | float[4,8] w1, int8[8,6] k, int8 z = {2}, int8[6] kz = {0, 0, 0, 0, "
        "0, 0}, float s = {0.05}, float[6] vs, int32[6] kb, float t = {0.5}, float[6,5] w2 |"
        "a = MatMul(x, w1); q = QuantizeLinear(a, s, z); "
        "i = com.microsoft.QGemm(q, s, z, k, vs, kz, kb, t, z); "
        "b = DequantizeLinear(i, t, z); y = MatMul(b, w2)",
        groups=(6, 8),
    ),
    "QGemm_to_float": Case(
        "float[3,4] x | float[4,8] w1, int8[6,8] k, int8 z = {2}, int8 kz = {0}, "
        "float s = {0.05}, float[6,5] w2 |"
        "a = MatMul(x, w1); q = QuantizeLinear(a, s, z); "
        "b = com.microsoft.QGemm<transB=1>(q, s, z, k, s, kz); y = MatMul(b, w2)",
        groups=(6, 8),
    ),
    "DynamicQuantizeMatMul": Case(
        "float[3,4] x | float[4,8] w1, int8[8,6] k, float[6] vs, int8[6] kz = {0, 0, 0, 0, "
        "0, 0}, float[6] b1, float[6,5] w2 |"
        "a = MatMul(x, w1); b = com.microsoft.DynamicQuantizeMatMul(a, k, vs, kz, b1); "
        "y = MatMul(b, w2)",
        groups=(6, 8),
    ),
    "MatMulIntegerToFloat": Case(
        "float[3,4] x | float[4,8] w1, int8[8,6] k, uint8 z = {120}, int8 kz = {0}, "
        "float s = {0.05}, float u = {0.1}, float[6] b1, float[6,5] w2 |"
        "a = MatMul(x, w1); q = QuantizeLinear(a, s, z); "
        "b = com.microsoft.MatMulIntegerToFloat(q, k, s, u, z, kz, b1); y = MatMul(b, w2)",
        groups=(6, 8),
    ),
    "QuantizeLinear_blocked": between(
        "q = QuantizeLinear<axis=1, block_size=2>(a, v3, z); "
        "b = DequantizeLinear<axis=1, block_size=2>(q, v3, z)",
        "float[2,4,4,4] v3, int8[2,4,4,4] z",
        opset=21,
        groups=(4,),
    ),
    "QuantizeLinear_uneven_blocks": between(
        "q = QuantizeLinear<axis=1, block_size=3>(a, v3); "
        "b = DequantizeLinear<axis=1, block_size=3>(q, v3)",
        "float[2,3,4,4] v3",
        opset=21,
        groups=(),
    ),
    "DequantizeLinear_blocked": Case(
        (
            "float[3,8] x | float[8,8] w1, int8[8,6] k, float[4,6] v, float[6,5] w2 | "
            "a = MatMul(x, w1); d = DequantizeLinear<axis=0, block_size=2>(k, v); "
            "b = MatMul(a, d); y = MatMul(b, w2)"
        ),
        opset=21,
    ),
}
