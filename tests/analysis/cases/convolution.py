"""Convolutions, float and quantized."""

from __future__ import annotations

from cases.case import Case, between

CASES: dict[str, Case] = {
    "Conv": between("b = Conv<pads=[1,1,1,1]>(a, w3)", "float[8,8,3,3] w3", groups=(8, 8)),
    "Conv_strided": between(
        "b = Conv<strides=[2,2], pads=[1,1,1,1]>(a, w3, b3)",
        "float[8,8,3,3] w3, float[8] b3",
        groups=(8, 8),
    ),
    "Conv_dilated": between(
        "b = Conv<dilations=[2,2], pads=[2,2,2,2]>(a, w3)", "float[8,8,3,3] w3", groups=(8, 8)
    ),
    "Conv_depthwise": between("b = Conv<group=8>(a, w3, b3)", "float[8,1,3,3] w3, float[8] b3"),
    "Conv_depthwise_multiplier": Case(
        (
            "float[2,4,6,6] x | float[8,4,3,3] w1, float[24,1,3,3] w2, float[24] b2, "
            "float[5,24,1,1] w3 | a = Conv(x, w1); b = Conv<group=8>(a, w2, b2); y = Conv(b, w3)"
        ),
        groups=(3, 8),
    ),
    "Conv_grouped": Case(
        (
            "float[2,4,6,6] x | float[8,4,3,3] w1, float[12,2,3,3] w2, float[12] b2, "
            "float[5,12,1,1] w3 | a = Conv(x, w1); b = Conv<group=4>(a, w2, b2); y = Conv(b, w3)"
        ),
        groups=(2, 3, 4),
    ),
    "Conv_grouped_twice": Case(
        "float[2,4,6,6] x | float[12,4,1,1] w1, float[12,4,3,3] w2, float[12,2,1,1] w3, "
        "float[5,12,1,1] w4 |"
        "a = Conv(x, w1); b = Conv<group=3>(a, w2); r = Relu(b); c = Conv<group=6>(r, w3); "
        "y = Conv(c, w4)"
    ),
    "Conv_1d": Case(
        (
            "float[2,4,9] x | float[8,4,3] w1, float[8,1,3] w2, float[5,8,1] w3 | "
            "a = Conv(x, w1); b = Conv<group=8>(a, w2); y = Conv(b, w3)"
        ),
        groups=(8,),
    ),
    "Conv_3d": Case(
        (
            "float[1,3,4,5,6] x | float[8,3,2,2,2] w1, float[6,4,1,2,3] w2, "
            "float[5,6,1,1,1] w3 | a = Conv(x, w1); b = Conv<group=2>(a, w2); y = Conv(b, w3)"
        ),
        groups=(2, 3, 4),
    ),
    "Conv_residual": Case(
        "float[2,4,6,6] x | float[8,4,1,1] w1, float[6,8,3,3] w2, float[8,6,1,1] w3, "
        "float[5,8,1,1] w4 |"
        "a = Conv(x, w1); b = Conv<pads=[1,1,1,1]>(a, w2); r = Relu(b); c = Conv(r, w3); "
        "d = Add(a, c); e = Relu(d); y = Conv(e, w4)",
        groups=(6, 8),
    ),
    "ConvTranspose": between(
        "b = ConvTranspose<strides=[2,2]>(a, w3, b3)",
        "float[8,8,3,3] w3, float[8] b3",
        groups=(8, 8),
    ),
    "ConvTranspose_grouped": Case(
        "float[2,4,6,6] x | float[8,4,3,3] w1, float[8,3,3,3] w2, float[12] b2, "
        "float[5,12,1,1] w3 |"
        "a = Conv(x, w1); b = ConvTranspose<group=4, strides=[2,2], pads=[1,1,1,1], "
        "output_padding=[1,1]>(a, w2, b2); y = Conv(b, w3)",
        groups=(2, 3, 4),
    ),
    "ConvTranspose_depthwise": between(
        "b = ConvTranspose<group=8, strides=[2,2]>(a, w3)", "float[8,1,2,2] w3"
    ),
    "ConvInteger": Case(
        "float[2,4,6,6] x | float[8,4,3,3] w1, uint8[6,8,3,3] k, uint8 xz = {3}, "
        "uint8 kz = {1}, float s = {0.1}, float[5,6,1,1] w2 |"
        "a = Conv(x, w1); q = QuantizeLinear(a, s, xz); i = ConvInteger(q, k, xz, kz); "
        "f = Cast<to=1>(i); b = Mul(f, s); y = Conv(b, w2)",
        groups=(6, 8),
    ),
    "QLinearConv": Case(
        "float[2,4,6,6] x | float[8,4,3,3] w1, int8[6,4,3,3] k, int8 zero = {0}, "
        "int8[6] kz = {0, 0, 0, 0, 0, 0}, float s = {0.05}, float[6] vs, float t = {2}, "
        "int32[6] kb, float[5,6,1,1] w2 |"
        "a = Conv(x, w1); q = QuantizeLinear(a, s, zero); "
        "i = QLinearConv<group=2>(q, s, zero, k, vs, kz, t, zero, kb); "
        "b = DequantizeLinear(i, t, zero); y = Conv(b, w2)",
        groups=(2, 3, 4),
    ),
    "QLinearConv_per_tensor": Case(
        "float[2,4,6,6] x | float[8,4,3,3] w1, int8[6,8,3,3] k, int8 zero = {2}, "
        "int8 kz = {0}, float s = {0.05}, float t = {2}, float[5,6,1,1] w2 |"
        "a = Conv(x, w1); q = QuantizeLinear(a, s, zero); "
        "i = QLinearConv(q, s, zero, k, s, kz, t, zero); b = DequantizeLinear(i, t, zero); "
        "y = Conv(b, w2)",
        groups=(6, 8),
    ),
    "DeformConv": Case(
        (
            "float[1,4,6,6] x, float[1,18,4,4] o | "
            "float[8,4,1,1] w1, float[6,8,3,3] w2, float[6] b2, float[5,6,1,1] w3 | "
            "a = Conv(x, w1); b = DeformConv(a, w2, o, b2); y = Conv(b, w3)"
        ),
        opset=19,
        groups=(6, 8),
    ),
}
