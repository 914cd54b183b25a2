"""A graph for every row of the rule table and every movement op, the op between layers that can be cut.

`Case.groups`: sizes of the groups in ascending order, where that is worth stating. To add an op: add a line here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """text: see graph_text.net; allow: ops opened by allow_mixing."""

    text: str
    opset: int = 17
    groups: tuple[int, ...] | None = None
    allow: tuple[str, ...] = ()
    ir_version: int = 10


HEAD = "float[2,4,6,6] x | float[8,4,3,3] w1, float[8] b1, float[5,8,1,1] w2, {extra} | a = Conv(x, w1, b1); {nodes}; y = Conv(b, w2)"


def between(
    nodes: str,
    extra: str = "",
    opset: int = 17,
    groups: tuple[int, ...] | None = (8,),
    allow: tuple[str, ...] = (),
) -> Case:
    """Nodes that make `b` of `a`, eight channels of a convolution in front of another."""
    return Case(HEAD.format(nodes=nodes, extra=extra).replace(",  |", " |"), opset, groups, allow)


_IN_UNIT = "c = Sigmoid(a)"
_INTEGERS = "c = Cast<to=7>(a)"
_UNARY = {
    "Abs": "a",
    "Acos": "c",
    "Acosh": "d",
    "Asin": "c",
    "Asinh": "a",
    "Atan": "a",
    "Atanh": "c",
    "Ceil": "a",
    "Celu": "a",
    "Cos": "a",
    "Cosh": "a",
    "Elu": "a",
    "Erf": "a",
    "Exp": "a",
    "Floor": "a",
    "HardSigmoid": "a",
    "Identity": "a",
    "LeakyRelu": "a",
    "Log": "c",
    "Neg": "a",
    "Reciprocal": "d",
    "Relu": "a",
    "Round": "a",
    "Selu": "a",
    "Shrink": "a",
    "Sigmoid": "a",
    "Sign": "a",
    "Sin": "a",
    "Sinh": "a",
    "Softplus": "a",
    "Softsign": "a",
    "Sqrt": "c",
    "Tan": "c",
    "Tanh": "a",
    "ThresholdedRelu": "a",
    "HardSwish": "a",
    "Mish": "a",
    "Gelu": "a",
    "Swish": "a",
}
_OPSET = {"Mish": 18, "Gelu": 20, "Swish": 24}
_BINARY = ["Add", "Div", "Max", "Mean", "Min", "Mul", "Pow", "Sub", "Sum"]
_COMPARE = ["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"]


def _quantized(nodes: str, extra: str = "", last: str = "w2", after: str = "t, z") -> Case:
    """Nodes that make `o` of the int8 tensors `q` and `r`, two convolutions of one input."""
    return Case(
        f"float[2,4,6,6] x | float[8,4,3,3] w1, float[8,4,3,3] w3, float s = {{0.05}}, float u = {{0.03}}, int8 z = {{3}}, float t = {{0.1}}, float[5,8,1,1] w2{', ' + extra if extra else ''} |"
        f"a = Conv(x, w1); c = Conv(x, w3); q = QuantizeLinear(a, s, z); r = QuantizeLinear(c, u, z); {nodes}; b = DequantizeLinear(o, {after}); y = Conv(b, {last})"
    )


CASES: dict[str, Case] = {}
CASES |= {
    op: between(f"{_IN_UNIT}; e = Exp(c); d = Add(e, c); b = {op}({x})", opset=_OPSET.get(op, 17))
    for op, x in _UNARY.items()
}
CASES |= {
    op: between(
        f"{_IN_UNIT}; d = Conv(x, w3); e = Softplus(d); b = {op}(c, e)", "float[8,4,3,3] w3"
    )
    for op in _BINARY
}
CASES |= {
    f"{op}_constant": between(f"{_IN_UNIT}; b = {op}(c, v)", "float[8,1,1] v") for op in _BINARY
}
CASES |= {
    f"{op}_scalar": between(f"b = {op}(a, s)", "float s = {2}") for op in ("Add", "Mul", "Pow")
}
CASES |= {
    op: between(f"d = Round(a); z = {op}(d, zero); b = Cast<to=1>(z)", "float[1] zero = {0}")
    for op in _COMPARE
}
CASES |= {
    op: between(
        f"p = Greater(a, w3); q = Less(a, w4); z = {op}(p, q); b = Cast<to=1>(z)",
        "float[8,1,1] w3, float[1] w4",
    )
    for op in ("And", "Or", "Xor")
}
CASES |= {
    f"Bitwise{op}": between(
        f"{_INTEGERS}; z = Bitwise{op}(c, m); b = Cast<to=1>(z)", "int64[1] m = {5}", opset=18
    )
    for op in ("And", "Or", "Xor")
}
CASES |= {
    f"com.microsoft.{op}": between(f"b = com.microsoft.{op}(a{more})", extra)
    for op, more, extra in (("QuickGelu", "", ""), ("FastGelu", "", ""), ("Gelu", "", ""))
}
CASES |= {
    "BitwiseNot": between(f"{_INTEGERS}; z = BitwiseNot(c); b = Cast<to=1>(z)", opset=18),
    "BitShift": between(
        'p = Abs(a); c = Cast<to=13>(p); z = BitShift<direction="LEFT">(c, m); b = Cast<to=1>(z)',
        "uint64[1] m = {2}",
    ),
    "Mod": between(f"{_INTEGERS}; z = Mod(c, m); b = Cast<to=1>(z)", "int64[1] m = {3}"),
    "Not": between("p = Greater(a, w3); z = Not(p); b = Cast<to=1>(z)", "float[8,1,1] w3"),
    "IsNaN": between("p = Log(a); q = IsNaN(p); b = Cast<to=1>(q)"),
    "IsInf": between("p = Relu(a); r = Log(p); q = IsInf(r); b = Cast<to=1>(q)"),
    "Cast": between("c = Cast<to=11>(a); b = Cast<to=1>(c)"),
    "CastLike": between("c = Cast<to=11>(a); b = CastLike(c, x)"),
    "Clip": between("b = Clip(a, lo, hi)", "float lo = {-0.3}, float hi = {0.9}"),
    "Clip_attributes": between("b = Clip<min=-0.3, max=0.9>(a)", opset=8),
    "Clip_no_minimum": between("b = Clip(a, , hi)", "float hi = {0.5}"),
    "PRelu": between("b = PRelu(a, w3)", "float[8,1,1] w3"),
    "Where": between(
        "p = Greater(a, w3); d = Conv(x, w4); b = Where(p, a, d)",
        "float[8,1,1] w3, float[8,4,3,3] w4",
    ),
    "Dropout": between("b, m = Dropout(a)"),
    "BiasGelu": Case(
        "float[2,3,4] x | float[4,8] w1, float[8] w2, float[8,5] w3 | a = MatMul(x, w1); b = com.microsoft.BiasGelu(a, w2); y = MatMul(b, w3)",
        groups=(8,),
    ),
}

# ---------------------------------------------------------------- convolutions

CASES |= {
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
        "float[2,4,6,6] x | float[8,4,3,3] w1, float[24,1,3,3] w2, float[24] b2, float[5,24,1,1] w3 | a = Conv(x, w1); b = Conv<group=8>(a, w2, b2); y = Conv(b, w3)",
        groups=(3, 8),
    ),
    "Conv_grouped": Case(
        "float[2,4,6,6] x | float[8,4,3,3] w1, float[12,2,3,3] w2, float[12] b2, float[5,12,1,1] w3 | a = Conv(x, w1); b = Conv<group=4>(a, w2, b2); y = Conv(b, w3)",
        groups=(2, 3, 4),
    ),
    "Conv_grouped_twice": Case(
        "float[2,4,6,6] x | float[12,4,1,1] w1, float[12,4,3,3] w2, float[12,2,1,1] w3, float[5,12,1,1] w4 |"
        "a = Conv(x, w1); b = Conv<group=3>(a, w2); r = Relu(b); c = Conv<group=6>(r, w3); y = Conv(c, w4)"
    ),
    "Conv_1d": Case(
        "float[2,4,9] x | float[8,4,3] w1, float[8,1,3] w2, float[5,8,1] w3 | a = Conv(x, w1); b = Conv<group=8>(a, w2); y = Conv(b, w3)",
        groups=(8,),
    ),
    "Conv_3d": Case(
        "float[1,3,4,5,6] x | float[8,3,2,2,2] w1, float[6,4,1,2,3] w2, float[5,6,1,1,1] w3 | a = Conv(x, w1); b = Conv<group=2>(a, w2); y = Conv(b, w3)",
        groups=(2, 3, 4),
    ),
    "Conv_residual": Case(
        "float[2,4,6,6] x | float[8,4,1,1] w1, float[6,8,3,3] w2, float[8,6,1,1] w3, float[5,8,1,1] w4 |"
        "a = Conv(x, w1); b = Conv<pads=[1,1,1,1]>(a, w2); r = Relu(b); c = Conv(r, w3); d = Add(a, c); e = Relu(d); y = Conv(e, w4)",
        groups=(6, 8),
    ),
    "ConvTranspose": between(
        "b = ConvTranspose<strides=[2,2]>(a, w3, b3)",
        "float[8,8,3,3] w3, float[8] b3",
        groups=(8, 8),
    ),
    "ConvTranspose_grouped": Case(
        "float[2,4,6,6] x | float[8,4,3,3] w1, float[8,3,3,3] w2, float[12] b2, float[5,12,1,1] w3 |"
        "a = Conv(x, w1); b = ConvTranspose<group=4, strides=[2,2], pads=[1,1,1,1], output_padding=[1,1]>(a, w2, b2); y = Conv(b, w3)",
        groups=(2, 3, 4),
    ),
    "ConvTranspose_depthwise": between(
        "b = ConvTranspose<group=8, strides=[2,2]>(a, w3)", "float[8,1,2,2] w3"
    ),
    "ConvInteger": Case(
        "float[2,4,6,6] x | float[8,4,3,3] w1, uint8[6,8,3,3] k, uint8 xz = {3}, uint8 kz = {1}, float s = {0.1}, float[5,6,1,1] w2 |"
        "a = Conv(x, w1); q = QuantizeLinear(a, s, xz); i = ConvInteger(q, k, xz, kz); f = Cast<to=1>(i); b = Mul(f, s); y = Conv(b, w2)",
        groups=(6, 8),
    ),
    "QLinearConv": Case(
        "float[2,4,6,6] x | float[8,4,3,3] w1, int8[6,4,3,3] k, int8 zero = {0}, int8[6] kz = {0, 0, 0, 0, 0, 0}, float s = {0.05}, float[6] vs, float t = {2}, int32[6] kb, float[5,6,1,1] w2 |"
        "a = Conv(x, w1); q = QuantizeLinear(a, s, zero); i = QLinearConv<group=2>(q, s, zero, k, vs, kz, t, zero, kb); b = DequantizeLinear(i, t, zero); y = Conv(b, w2)",
        groups=(2, 3, 4),
    ),
    "QLinearConv_per_tensor": Case(
        "float[2,4,6,6] x | float[8,4,3,3] w1, int8[6,8,3,3] k, int8 zero = {2}, int8 kz = {0}, float s = {0.05}, float t = {2}, float[5,6,1,1] w2 |"
        "a = Conv(x, w1); q = QuantizeLinear(a, s, zero); i = QLinearConv(q, s, zero, k, s, kz, t, zero); b = DequantizeLinear(i, t, zero); y = Conv(b, w2)",
        groups=(6, 8),
    ),
    "DeformConv": Case(
        "float[1,4,6,6] x, float[1,18,4,4] o | float[8,4,1,1] w1, float[6,8,3,3] w2, float[6] b2, float[5,6,1,1] w3 | a = Conv(x, w1); b = DeformConv(a, w2, o, b2); y = Conv(b, w3)",
        opset=19,
        groups=(6, 8),
    ),
}

# ---------------------------------------------------------------- products of matrices

CASES |= {
    "Gemm": Case(
        "float[3,4] x | float[4,8] w1, float[8] b1, float[8,5] w2, float[5] b2 | a = Gemm(x, w1, b1); r = Relu(a); y = Gemm(r, w2, b2)",
        groups=(8,),
    ),
    "Gemm_transB": Case(
        "float[3,4] x | float[8,4] w1, float[8] b1, float[5,8] w2 | a = Gemm<transB=1, alpha=0.5, beta=2.0>(x, w1, b1); r = Relu(a); y = Gemm<transB=1>(r, w2)",
        groups=(8,),
    ),
    "Gemm_transA": Case(
        "float[4,3] x | float[4,8] w1, float[8,3] w2, float[6,8] w3, float[5,6] w4 | a = Gemm<transA=1>(x, w1); b = Gemm(w3, a); c = Transpose<perm=[1,0]>(b); y = MatMul(c, w4)".replace(
            "float[6,8] w3", "float[6,3] w3"
        )
        .replace("float[8,3] w2, ", "")
        .replace("float[5,6] w4", "float[6,5] w4")
        .replace("Gemm(w3, a)", "Gemm(w3, a, w5)")
        .replace("float[6,3] w3", "float[6,3] w3, float[6,8] w5")
        .replace("c = Transpose<perm=[1,0]>(b); y = MatMul(c, w4)", "y = Gemm<transA=1>(b, w4)"),
        groups=(6,),
    ),
    "Gemm_bias_matrix": Case(
        "float[3,4] x | float[4,8] w1, float[3,8] w2, float[1,8] w3, float[8,5] w4 | a = Gemm(x, w1, w2); b = Gemm(a, w5, w3); y = MatMul(b, w4)".replace(
            "float[8,5] w4", "float[8,5] w4, float[8,8] w5"
        ),
        groups=(8, 8),
    ),
    "Gemm_bias_scalar": Case(
        "float[3,4] x | float[4,8] w1, float s = {0.5}, float[8,5] w2 | a = Gemm(x, w1, s); y = MatMul(a, w2)",
        groups=(8,),
    ),
    "MatMul": Case(
        "float[2,3,4] x | float[4,8] w1, float[8] b1, float[8,5] w2 | a = MatMul(x, w1); b = Add(a, b1); r = Relu(b); y = MatMul(r, w2)",
        groups=(8,),
    ),
    "MatMul_vector_right": Case(
        "float[2,3,4] x | float[4,8] w1, float[8] w2 | a = MatMul(x, w1); y = MatMul(a, w2)",
        groups=(8,),
    ),
    "MatMul_vector_left": Case(
        "float[4] x | float[4,8] w1, float[8,5] w2 | a = MatMul(x, w1); r = Relu(a); y = MatMul(r, w2)",
        groups=(8,),
    ),
    "MatMul_vectors": Case(
        "float[4] x | float[4,8] w1, float[8] w2 | a = MatMul(x, w1); y = MatMul(a, w2)",
        groups=(8,),
    ),
    "MatMul_batch_broadcast": Case(
        "float[2,1,3,4] x | float[6,4,8] w1, float[6,8,5] w2, float[5,7] w3 | a = MatMul(x, w1); b = MatMul(a, w2); y = MatMul(b, w3)"
    ),
    "MatMul_weight_left": Case(
        "float[2,4,3] x | float[8,4] w1, float[5,8] w2 | a = MatMul(w1, x); r = Relu(a); y = MatMul(w2, r)",
        groups=(8,),
    ),
    "MatMulInteger": Case(
        "float[3,4] x | float[4,8] w1, uint8[8,6] k, uint8 xz = {3}, uint8[6] kz = {1, 2, 3, 4, 5, 6}, float s = {0.05}, float[6,5] w2 |"
        "a = MatMul(x, w1); q = QuantizeLinear(a, s, xz); i = MatMulInteger(q, k, xz, kz); f = Cast<to=1>(i); b = Mul(f, s); y = MatMul(b, w2)",
        groups=(6, 8),
    ),
    "MatMulInteger_per_tensor": Case(
        "float[3,4] x | float[4,8] w1, uint8[8,6] k, uint8 xz = {3}, uint8 kz = {1}, float s = {0.05}, float[6,5] w2 |"
        "a = MatMul(x, w1); q = QuantizeLinear(a, s, xz); i = MatMulInteger(q, k, xz, kz); f = Cast<to=1>(i); b = Mul(f, s); y = MatMul(b, w2)",
        groups=(6, 8),
    ),
    "DynamicQuantizeLinear": Case(
        "float[3,4] x | float[4,8] w1, uint8[8,6] k, uint8 kz = {1}, float s = {0.05}, float[6,5] w2 |"
        "a = MatMul(x, w1); q, qs, qz = DynamicQuantizeLinear(a); i = MatMulInteger(q, k, qz, kz); f = Cast<to=1>(i); d = Mul(f, s); b = Mul(d, qs); y = MatMul(b, w2)",
        groups=(6, 8),
    ),
    "QLinearMatMul": Case(
        "float[3,4] x | float[4,8] w1, int8[8,6] k, int8 zero = {1}, int8 kz = {0}, float s = {0.02}, float t = {0.5}, float[6,5] w2 |"
        "a = MatMul(x, w1); q = QuantizeLinear(a, s, zero); i = QLinearMatMul(q, s, zero, k, s, kz, t, zero); b = DequantizeLinear(i, t, zero); y = MatMul(b, w2)",
        groups=(6, 8),
    ),
    "Einsum": Case(
        'float[2,3,4] x | float[4,8] w1, float[8,5] w2 | a = Einsum<equation="bnc,cd->bnd">(x, w1); r = Relu(a); y = Einsum<equation="bnd,de->bne">(r, w2)',
        groups=(8,),
    ),
    "Einsum_ellipsis": Case(
        'float[2,3,4] x | float[4,8] w1, float[8,5] w2 | a = Einsum<equation="...c,...cd->...d">(x, w1); y = MatMul(a, w2)'.replace(
            "float[4,8]", "float[2,1,4,8]"
        ).replace("y = MatMul(a, w2)", "y = MatMul(a, w2)"),
        groups=(8,),
    ),
    "Einsum_heads": Case(
        'float[2,5,4] x | float[4,3,6] w1, float[4,3,6] w2, float[4,3,6] w3, float[3,6,7] w4 | q = Einsum<equation="bnc,chd->bhnd">(x, w1); k = Einsum<equation="bnc,chd->bhnd">(x, w2);'
        'v = Einsum<equation="bnc,chd->bhnd">(x, w3); s = Einsum<equation="bhid,bhjd->bhij">(q, k); p = Softmax<axis=-1>(s); o = Einsum<equation="bhij,bhjd->bihd">(p, v);'
        'y = Einsum<equation="bihd,hdc->bic">(o, w4)',
        groups=(3, 6, 6),
    ),
    "Einsum_outer": Case(
        'float[2,4] x | float[4,6] w1, float[4,8] w2, float[6,8,5] w3 | a = MatMul(x, w1); b = MatMul(x, w2); c = Einsum<equation="bi,bj->bij">(a, b); y = Einsum<equation="bij,ijk->bk">(c, w3)',
        groups=(6, 8),
    ),
    "Einsum_reduce": Case(
        'float[2,4] x | float[3,4,6] w1, float[6,5] w2 | a = Einsum<equation="bc,kcd->bkd">(x, w1); c = Einsum<equation="bkd->bd">(a); y = MatMul(c, w2)',
        groups=(3, 6),
    ),
}

# ---------------------------------------------------------------- normalization, activation along an axis

_TOKENS = "float[2,6,4] x | float[4,8] w1, float[8,5] w2, {extra} | a = MatMul(x, w1); {nodes}; y = MatMul(b, w2)"


def tokens(
    nodes: str,
    extra: str = "",
    opset: int = 17,
    groups: tuple[int, ...] | None = (8,),
    allow: tuple[str, ...] = (),
) -> Case:
    """Nodes that make `b` of `a`, (batch, position, eight channels)."""
    return Case(
        _TOKENS.format(nodes=nodes, extra=extra).replace(",  |", " |"), opset, groups, allow
    )


CASES |= {
    "BatchNormalization": between(
        "b = BatchNormalization(a, w3, w4, w5, v)",
        "float[8] w3, float[8] w4, float[8] w5, float[8] v",
    ),
    "BatchNormalization_training": between(
        "b, m, s = BatchNormalization<training_mode=1>(a, w3, w4, w5, v)",
        "float[8] w3, float[8] w4, float[8] w5, float[8] v",
    ),
    "BatchNormalization_standardizes_weights": between(
        "o = Reshape(w3, flat); p, m, s = BatchNormalization<training_mode=1>(o, w4, w5, w6, v); q = Reshape(p, back); c = Conv(a, q); b = Conv(c, w7)",
        "float[8,6,1,1] w7, float[6,8,1,1] w3, int64[3] flat = {1, 6, -1}, int64[4] back = {6, 8, 1, 1}, float[6] w4, float[6] w5, float[6] w6, float[6] v",
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
        "r = Reshape(a, r1); i = InstanceNormalization(r, v3, w4); s = Reshape(i, r2); m = Mul(s, w5); b = Add(m, w6)",
        "int64[3] r1 = {0, 4, -1}, int64[4] r2 = {2, 8, 4, 4}, float[4] v3, float[4] w4, float[8,1,1] w5, float[8,1,1] w6",
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
        "float[2,6,4] x | float[4,8] w1, float[8] v2, float[8,8] w3, float[8,5] w4 | a = MatMul(x, w1); n = RMSNormalization(a, v2); b = MatMul(n, w3); y = MatMul(b, w4)",
        opset=23,
        groups=(8,),
    ),
    "SimplifiedLayerNormalization": tokens(
        "c = SimplifiedLayerNormalization(a, w3); b = MatMul(c, w5)", "float[8] w3, float[8,8] w5"
    ),
    "RMSNormalization_spatial": between(
        "b = RMSNormalization<axis=2>(a, v)", "float[4,4] v", opset=23
    ),
    "SimplifiedLayerNormalization_positions": tokens(
        "t = Transpose<perm=[0,2,1]>(a); n = SimplifiedLayerNormalization(t, v); b = Transpose<perm=[0,2,1]>(n)",
        "float[6] v",
    ),
    "LpNormalization": between("b = LpNormalization<axis=1, p=2>(a)"),
    "LpNormalization_spatial": between("b = LpNormalization<axis=2, p=1>(a)"),
    "MeanVarianceNormalization": between("b = MeanVarianceNormalization<axes=[0,2,3]>(a)"),
    "Softmax_spatial": between("b = Softmax<axis=2>(a)"),
    "Softmax_old": Case(
        "float[2,4,3] x | float[8,4] w1, float[5,8] w2 | a = MatMul(w1, x); b = Softmax<axis=2>(a); y = MatMul(w2, b)",
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
        "float[2,4,6,6] x | int8[8,4,3,3] k1, float[8] v1, int8[8] z1 = {0,0,0,0,0,0,0,0}, int8[5,8,1,1] k2, float s = {0.02}, int8 z = {0}, float[8] b1 |"
        "w1 = DequantizeLinear<axis=0>(k1, v1, z1); a = Conv(x, w1, b1); t = QuantizeLinear(a, v, z); d = DequantizeLinear(t, v, z); w2 = DequantizeLinear(k2, s, z); y = Conv(d, w2)".replace(
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
    "QLinearSoftmax_old": Case(  # up to opset 12 the axis and all behind it
        "float[2,3,4] x | float[4,8] w1, float s = {0.05}, int8 z = {0}, float p = {0.00390625}, int8 n = {-128}, float[8,5] w2, float[5,6] w3 | a = MatMul(x, w1); b = MatMul(a, w2);"
        "q = QuantizeLinear(b, s, z); o = com.microsoft.QLinearSoftmax<axis=1, opset=11>(q, s, z, p, n); d = DequantizeLinear(o, p, n); y = MatMul(d, w3)",
        groups=(8,),
    ),
    "QGemm": Case(
        "float[3,4] x | float[4,8] w1, int8[8,6] k, int8 z = {2}, int8[6] kz = {0, 0, 0, 0, 0, 0}, float s = {0.05}, float[6] vs, int32[6] kb, float t = {0.5}, float[6,5] w2 |"
        "a = MatMul(x, w1); q = QuantizeLinear(a, s, z); i = com.microsoft.QGemm(q, s, z, k, vs, kz, kb, t, z); b = DequantizeLinear(i, t, z); y = MatMul(b, w2)",
        groups=(6, 8),
    ),
    "QGemm_to_float": Case(
        "float[3,4] x | float[4,8] w1, int8[6,8] k, int8 z = {2}, int8 kz = {0}, float s = {0.05}, float[6,5] w2 |"
        "a = MatMul(x, w1); q = QuantizeLinear(a, s, z); b = com.microsoft.QGemm<transB=1>(q, s, z, k, s, kz); y = MatMul(b, w2)",
        groups=(6, 8),
    ),
    "DynamicQuantizeMatMul": Case(
        "float[3,4] x | float[4,8] w1, int8[8,6] k, float[6] vs, int8[6] kz = {0, 0, 0, 0, 0, 0}, float[6] b1, float[6,5] w2 |"
        "a = MatMul(x, w1); b = com.microsoft.DynamicQuantizeMatMul(a, k, vs, kz, b1); y = MatMul(b, w2)",
        groups=(6, 8),
    ),
    "MatMulIntegerToFloat": Case(
        "float[3,4] x | float[4,8] w1, int8[8,6] k, uint8 z = {120}, int8 kz = {0}, float s = {0.05}, float u = {0.1}, float[6] b1, float[6,5] w2 |"
        "a = MatMul(x, w1); q = QuantizeLinear(a, s, z); b = com.microsoft.MatMulIntegerToFloat(q, k, s, u, z, kz, b1); y = MatMul(b, w2)",
        groups=(6, 8),
    ),
    "DequantizeLinear_blocked": Case(
        "float[3,8] x | float[8,8] w1, int8[8,6] k, float[4,6] v, float[6,5] w2 | a = MatMul(x, w1); d = DequantizeLinear<axis=0, block_size=2>(k, v); b = MatMul(a, d); y = MatMul(b, w2)",
        opset=21,
    ),
}

# ---------------------------------------------------------------- pooling, reductions, sampling

_POOLS = {
    "AveragePool": "<kernel_shape=[2,2], strides=[2,2]>",
    "MaxPool": "<kernel_shape=[3,3], pads=[1,1,1,1]>",
    "LpPool": "<kernel_shape=[2,2]>",
    "GlobalAveragePool": "",
    "GlobalMaxPool": "",
    "GlobalLpPool": "",
}
_REDUCTIONS = [
    "ReduceSum",
    "ReduceL1",
    "ReduceL2",
    "ReduceSumSquare",
    "ReduceMean",
    "ReduceMax",
    "ReduceMin",
    "ReduceProd",
    "ReduceLogSum",
    "ReduceLogSumExp",
]
CASES |= {op: between(f"b = {op}{attributes}(a)") for op, attributes in _POOLS.items()}
_NEAR_ONE = "s = Sigmoid(a); c = Add(s, s)"
CASES |= {
    op: between(f"{_NEAR_ONE}; b = {op}(c, two)", "int64[2] two = {-2, -1}", opset=18)
    for op in _REDUCTIONS
}
CASES |= {
    f"{op}_attribute": between(f"{_NEAR_ONE}; b = {op}<axes=[2,3]>(c)", opset=12)
    for op in _REDUCTIONS
}
CASES |= {
    f"{op}_channels": between(
        f"r = {op}<keepdims=1>(a, one); b = Mul(r, a)", "int64[1] one = {1}", opset=18
    )
    for op in ("ReduceSum", "ReduceL2", "ReduceL1", "ReduceSumSquare")
}
CASES |= {
    "ReduceMean_no_keepdims": Case(
        "float[2,4,6,6] x | float[8,4,3,3] w1, float[8,5] w2 | a = Conv(x, w1); b = ReduceMean<axes=[2,3], keepdims=0>(a); y = MatMul(b, w2)",
        groups=(8,),
    ),
    "ReduceMean_channels": between("r = ReduceMean<axes=[1]>(a); b = Mul(r, a)"),
    "ReduceMax_noop": between("e = ReduceMax<noop_with_empty_axes=1>(a); b = Add(a, e)", opset=18),
    "Resize_scales": between('b = Resize<mode="nearest">(a, , s)', "float[4] s = {1, 1, 2, 2}"),
    "Resize_sizes": between('b = Resize<mode="linear">(a, , , s)', "int64[4] s = {2, 8, 7, 9}"),
    "Resize_axes": between(
        'b = Resize<mode="nearest", axes=[2,3]>(a, , s)', "float[2] s = {2, 3}", opset=18
    ),
    "Resize": between(
        'b = Resize<mode="linear", axes=[3,2]>(a, , , s)', "int64[2] s = {7, 9}", opset=18
    ),
    "Resize_old": between(
        'b = Resize<mode="nearest">(a, s)', "float[4] s = {1, 1, 2, 2}", opset=10
    ),
    "Upsample": between('b = Upsample<mode="nearest">(a, s)', "float[4] s = {1, 1, 2, 2}", opset=9),
    "Upsample_attribute": between(
        'b = Upsample<mode="nearest", scales=[1.0, 1.0, 2.0, 2.0]>(a)', opset=8
    ),
    "GridSample": Case(
        "float[2,4,6,6] x, float[2,5,5,2] g | float[8,4,3,3] w1, float[5,8,1,1] w2 | a = Conv(x, w1); b = GridSample(a, g); y = Conv(b, w2)",
        groups=(8,),
    ),
    "RoiAlign": Case(
        "float[2,4,6,6] x | float[8,4,3,3] w1, float[3,4] r = {0,0,3,3,1,1,3,2,0,1,2,3}, int64[3] n = {0,1,0}, float[5,8,1,1] w2 | a = Conv(x, w1); b = RoiAlign<output_height=2, output_width=2>(a, r, n); y = Conv(b, w2)",
        groups=(8,),
    ),
}

# ---------------------------------------------------------------- movement

CASES |= {
    "Transpose": between(
        "t = Transpose<perm=[0,2,3,1]>(a); r = Relu(t); m = MatMul(r, w3); b = Transpose<perm=[0,3,1,2]>(m)",
        "float[8,8] w3",
        groups=(8, 8),
    ),
    "Concat": Case(
        "float[2,4,6,6] x | float[8,4,1,1] w1, float[6,4,1,1] w2, float[5,18,1,1] w3 | a = Conv(x, w1); b = Conv(x, w2); c = Concat<axis=1>(a, x, b); y = Conv(c, w3)",
        groups=(6, 8),
    ),
    "Concat_spatial": Case(
        "float[2,4,6,6] x | float[8,4,1,1] w1, float[8,4,1,1] w2, float[5,8,1,1] w3 | a = Conv(x, w1); b = Conv(x, w2); c = Concat<axis=-1>(a, b); y = Conv(c, w3)",
        groups=(8,),
    ),
    "Concat_dense_block": Case(
        "float[2,4,6,6] x | float[8,4,1,1] w1, float[6,8,1,1] w2, float[5,14,1,1] w3, float[7,19,1,1] w4, float[14] b1, float[14] b2, float[14] b3, float[14] v |"
        "a = Conv(x, w1); b = Conv(a, w2); c = Concat<axis=1>(a, b); n = BatchNormalization(c, b1, b2, b3, v); d = Conv(n, w3); e = Concat<axis=1>(c, d); y = Conv(e, w4)",
        groups=(5, 6, 8),
    ),
    "Concat_into_grouped": Case(
        "float[2,4,6,6] x | float[8,4,1,1] w1, float[4,4,1,1] w2, float[8,3,1,1] w3, float[5,8,1,1] w4 | a = Conv(x, w1); b = Conv(x, w2); c = Concat<axis=1>(a, b); d = Conv<group=4>(c, w3); y = Conv(d, w4)"
    ),
    "Split_equal": between(
        "p, q = Split<axis=1>(a); r = Sigmoid(p); s = Mul(q, r); b = Concat<axis=1>(s, s)",
        opset=13,
        groups=(4,),
    ),
    "Split": Case(
        "float[2,4,6,6] x | float[8,4,1,1] w1, int64[2] s = {5, 3}, float[6,3,1,1] w2, float[7,11,1,1] w3 | a = Conv(x, w1); p, q = Split<axis=1>(a, s); r = Conv(q, w2); c = Concat<axis=1>(p, r); y = Conv(c, w3)",
        groups=(3, 5, 6),
    ),
    "Split_attribute": Case(
        "float[2,4,6,6] x | float[8,4,1,1] w1, float[5,5,1,1] w2, float[5,3,1,1] w3 | a = Conv(x, w1); p, q = Split<axis=1, split=[5,3]>(a); c = Conv(p, w2); d = Conv(q, w3); y = Add(c, d)",
        opset=11,
        groups=(3, 5),
    ),
    "Split_num_outputs": Case(
        "float[2,4,6,6] x | float[8,4,1,1] w1, float[5,3,1,1] w2, float[5,2,1,1] w3, float[5,3,1,1] w4 |"
        "a = Conv(x, w1); p, q, r = Split<axis=1, num_outputs=3>(a); c = Conv(p, w2); d = Conv(r, w3); e = Conv(q, w4); f = Add(c, d); y = Add(e, f)",
        opset=18,
        groups=(2, 3, 3),
    ),
    "Split_half_used": Case(
        "float[2,4,6,6] x | float[8,4,1,1] w1, int64[2] s = {5, 3}, float[6,3,1,1] w2 | a = Conv(x, w1); p, q = Split<axis=1>(a, s); y = Conv(q, w2)"
    ),
    "Split_swapped": between(
        "p, q = Split<axis=1>(a, s); r = Relu(p); b = Concat<axis=1>(q, r)",
        "int64[2] s = {5, 3}",
        groups=None,
    ),
    "Slice": Case(
        "float[2,4,6,6] x | float[8,4,1,1] w1, int64[1] zero = {0}, int64[1] three = {3}, int64[1] one = {1}, float[5,3,1,1] w2 | a = Conv(x, w1); b = Slice(a, zero, three, one); y = Conv(b, w2)",
        groups=(3, 5),
    ),
    "Slice_negative": Case(
        "float[2,4,6,6] x | float[8,4,1,1] w1, int64[1] s = {-3}, int64[1] e = {9223372036854775807}, int64[1] one = {1}, float[5,3,1,1] w2, float[5,8,1,1] w3 |"
        "a = Conv(x, w1); b = Slice(a, s, e, one); c = Conv(b, w2); d = Conv(a, w3); y = Add(c, d)",
        groups=(3, 5),
    ),
    "Slice_negative_end": Case(
        "float[2,4,6,6] x | float[8,4,1,1] w1, int64[3] s = {0, -7, 1}, int64[3] e = {5, -2, 3}, int64[3] axes = {3, 1, 2}, float[5,5,1,1] w2, float[5,8,5,5] w3 |"
        "a = Conv(x, w1); b = Slice(a, s, e, axes); c = Conv(b, w2); d = Conv(a, w3); y = Add(c, d)".replace(
            "w3, ", "w3 "
        ).replace("float[5,8,5,5]", "float[5,8,6,6]")
    ),
    "Slice_stepped": Case(
        "float[2,4,6,6] x | float[8,4,1,1] w1, int64[1] s = {1}, int64[1] e = {8}, int64[1] axes = {1}, int64[1] two = {2}, float[5,4,1,1] w2, float[5,8,1,1] w3 |"
        "a = Conv(x, w1); b = Slice(a, s, e, axes, two); c = Conv(b, w2); d = Conv(a, w3); y = Add(c, d)",
        groups=(4, 4),
    ),
    "Slice_reversed": Case(
        "float[2,4,6,6] x | float[8,4,1,1] w1, int64[1] s = {-1}, int64[1] e = {-9223372036854775808}, int64[1] axes = {1}, int64[1] back = {-1}, float[5,8,1,1] w2 |"
        "a = Conv(x, w1); b = Slice(a, s, e, axes, back); c = Sub(a, b); y = Conv(c, w2)"
    ),
    "Slice_attributes": Case(
        "float[2,4,6,6] x | float[8,4,1,1] w1, float[5,4,1,1] w2 | a = Conv(x, w1); b = Slice<axes=[1,2], starts=[-6,0], ends=[-2,9]>(a); y = Conv(b, w2)",
        opset=9,
        groups=(4, 4),
    ),
    "Slice_spatial_steps": between(
        "b = Slice(a, s, e, axes, t)",
        "int64[2] s = {0, 1}, int64[2] e = {4, 4}, int64[2] axes = {2, 3}, int64[2] t = {2, 2}",
    ),
    "Gather": Case(
        "float[2,4,6,6] x | float[8,4,1,1] w1, int64[5] i = {7, -7, 3, 3, 0}, float[5,5,1,1] w2, float[5,8,1,1] w3 | a = Conv(x, w1); b = Gather<axis=1>(a, i); c = Conv(b, w2); d = Conv(a, w3); y = Add(c, d)"
    ),
    "Gather_embedding": Case(
        "int64[2,5] t | float[10,8] w1, float[8,5] w2 | a = Gather(w1, t); y = MatMul(a, w2)",
        groups=(8,),
    ),
    "Gather_single": between(
        "g = Gather<axis=2>(a, zero); b = Unsqueeze(g, two)", "int64 zero = {0}, int64[1] two = {2}"
    ),
    "Pad_spatial": between("b = Pad(a, p)", "int64[8] p = {0, 0, 1, 1, 0, 0, 2, 1}"),
    "Pad_reflect": between(
        'b = Pad<mode="reflect">(a, p)', "int64[8] p = {0, 0, 1, 1, 0, 0, 2, 1}"
    ),
    "Pad": Case(
        "float[2,4,6,6] x | float[8,4,1,1] w1, float[12,8,1,1] w2, int64[8] p = {0, 1, 0, 0, 0, 3, 0, 0}, float[5,12,1,1] w3 | a = Conv(x, w1); b = Conv(a, w2); c = Pad(a, p); d = Add(b, c); r = Relu(d); y = Conv(r, w3)"
    ),
    "Pad_axes": Case(
        "float[2,4,6,6] x | float[8,4,1,1] w1, int64[2] p = {1, 3}, float v = {0.5}, int64[1] one = {-3}, float[5,12,1,1] w3 | a = Conv(x, w1); c = Pad(a, p, v, one); y = Conv(c, w3)",
        opset=18,
        groups=(4, 8),
    ),
    "Pad_attribute": Case(
        "float[2,4,6,6] x | float[8,4,1,1] w1, float[5,12,1,1] w3 | a = Conv(x, w1); c = Pad<pads=[0, 4, 0, 0, 0, 0, 0, 0]>(a); y = Conv(c, w3)",
        opset=10,
        groups=(4, 8),
    ),
    "Squeeze": Case(
        "float[2,4,6,6] x | float[8,4,1,1] w1, int64[2] axes = {2, -1}, float[8,5] w2 | a = Conv(x, w1); g = GlobalAveragePool(a); b = Squeeze(g, axes); y = MatMul(b, w2)",
        groups=(8,),
    ),
    "Squeeze_attribute": Case(
        "float[2,4,6,6] x | float[8,4,1,1] w1, float[8,5] w2 | a = Conv(x, w1); g = GlobalAveragePool(a); b = Squeeze<axes=[2,3]>(g); y = MatMul(b, w2)",
        opset=11,
        groups=(8,),
    ),
    "Squeeze_all": Case(
        "float[2,4,6,6] x | float[8,4,1,1] w1, float[8,5] w2 | a = Conv(x, w1); g = GlobalAveragePool(a); b = Squeeze(g); y = MatMul(b, w2)",
        groups=(8,),
    ),
    "Unsqueeze": Case(
        "float[2,4] x | float[8,4] w1, int64[2] axes = {-1, 2}, float[5,8,1,1] w2 | a = Gemm<transB=1>(x, w1); b = Unsqueeze(a, axes); y = Conv(b, w2)",
        groups=(8,),
    ),
    "Unsqueeze_attribute": Case(
        "float[2,4] x | float[8,4] w1, float[5,8,1,1] w2 | a = Gemm<transB=1>(x, w1); b = Unsqueeze<axes=[2,3]>(a); y = Conv(b, w2)",
        opset=11,
        groups=(8,),
    ),
    "Flatten": Case(
        "float[2,4,6,6] x | float[8,4,3,3] w1, float[128,5] w2 | a = Conv(x, w1); b = Flatten(a); y = Gemm(b, w2)",
        groups=(8,),
    ),
    "Flatten_last": Case(
        "float[2,3,4] x | float[4,8] w1, float[8,5] w2 | a = MatMul(x, w1); b = Flatten<axis=-1>(a); y = Gemm(b, w2)",
        groups=(8,),
    ),
    "Expand": Case(
        "float[2,4] x | float[4,8] w1, int64[3] s = {2, 5, 8}, int64[1] one = {1}, float[8,5] w2 | a = MatMul(x, w1); u = Unsqueeze(a, one); b = Expand(u, s); y = MatMul(b, w2)",
        groups=(8,),
    ),
    "Expand_to_channels": between(
        "m = ReduceSum(a, one); e = Expand(m, s); b = Mul(a, e)",
        "int64[1] one = {1}, int64[4] s = {1, 8, 1, 1}",
    ),
    "Expand_token": Case(
        "float[2,6,4] x | float[4,8] w1, float[1,1,8] w2, int64[3] s = {2, 1, -1}, float[8,5] w3 | a = MatMul(x, w1); t = Expand(w2, s); c = Concat<axis=1>(t, a); y = MatMul(c, w3)".replace(
            "-1}", "1}"
        ),
        groups=(8,),
    ),
    "Tile": Case(
        "float[2,4,6,6] x | float[8,4,1,1] w1, int64[4] r = {1, 3, 1, 2}, float[5,24,1,1] w2 | a = Conv(x, w1); b = Tile(a, r); y = Conv(b, w2)",
        groups=(8,),
    ),
    "Tile_single": between(
        "m = ReduceSum(a, one); t = Tile(m, r); b = Mul(a, t)",
        "int64[1] one = {1}, int64[4] r = {1, 8, 1, 1}",
    ),
    "ConstantOfShape": Case(
        "float[n,4,6,6] x | float[8,4,1,1] w1, int64[3] rest = {8, 6, 6}, int64[1] zero = {0}, int64[1] one = {1}, float[5,8,1,1] w2 |"
        "a = Conv(x, w1); h = Shape(x); i = Slice(h, zero, one, zero); s = Concat<axis=0>(i, rest); c = ConstantOfShape<value=float[1] {0.5}>(s); b = Sub(a, c); y = Conv(b, w2)",
        groups=(8,),
    ),
    "Shape": Case(
        "float[n,4,6,6] x | float[8,4,1,1] w1, float[8] w2, float[5,8,1,1] w3, float[1,8,1,1] w5 | a = Conv(x, w1); s = Shape(a); e = Expand(w5, s); b = Mul(a, e); y = Conv(b, w3)",
        groups=(8,),
    ),
    "Shape_slice": Case(
        "float[n,4,6,6] x | float[8,4,1,1] w1, int64[1] minus = {-1}, float[288,5] w2 | a = Conv(x, w1); s = Shape<end=1>(a); t = Concat<axis=0>(s, minus); b = Reshape(a, t); y = MatMul(b, w2)",
        groups=(8,),
    ),
    "Reshape_zero": Case(
        "float[2,4,6,6] x | float[8,4,3,3] w1, int64[3] s = {0, 0, -1}, float[5,8] w2 | a = Conv(x, w1); b = Reshape(a, s); y = MatMul(w2, b)",
        groups=(8,),
    ),
    "Reshape": Case(
        "float[2,4,6,6] x | float[8,4,3,3] w1, int64[2] s = {2, 128}, float[128,5] w2 | a = Conv(x, w1); b = Reshape(a, s); y = MatMul(b, w2)",
        groups=(8,),
    ),
    "Reshape_attention": Case(
        "float[2,6,4] x | float[4,24] w1, int64[4] s = {0, 6, 4, -1}, int64[3] t = {0, 0, 24}, float[24,5] w2 | a = MatMul(x, w1); b = Reshape(a, s); c = Softmax<axis=1>(b); d = Reshape(c, t); y = MatMul(d, w2)",
        groups=(4, 6),
    ),
    "Reshape_allowzero": Case(
        "float[2,4,6,6] x | float[8,4,3,3] w1, int64[2] s = {2, 128}, float[128,5] w2 | a = Conv(x, w1); b = Reshape<allowzero=1>(a, s); y = MatMul(b, w2)",
        groups=(8,),
    ),
    "Reshape_dynamic_batch": Case(
        "float[n,4,6,6] x | float[8,4,3,3] w1, int64[2] s = {-1, 128}, float[128,5] w2 | a = Conv(x, w1); b = Reshape(a, s); y = MatMul(b, w2) | float[n,5] y",
        groups=(8,),
    ),
    "DepthToSpace": Case(
        "float[2,4,3,3] x | float[12,4,1,1] w1, float[5,3,1,1] w2 | a = Conv(x, w1); b = DepthToSpace<blocksize=2>(a); y = Conv(b, w2)",
        groups=(3,),
    ),
    "DepthToSpace_CRD": Case(
        'float[2,4,3,3] x | float[12,4,1,1] w1, float[5,3,1,1] w2 | a = Conv(x, w1); b = DepthToSpace<blocksize=2, mode="CRD">(a); y = Conv(b, w2)',
        groups=(3,),
    ),
    "SpaceToDepth": Case(
        "float[2,4,6,6] x | float[8,4,1,1] w1, float[5,32,1,1] w2 | a = Conv(x, w1); b = SpaceToDepth<blocksize=2>(a); y = Conv(b, w2)",
        groups=(8,),
    ),
}

# ---------------------------------------------------------------- recurrent

_LSTM = "float[{d},32,4] w1, float[{d},32,8] w2, float[{d},64] w3"


def recurrent(
    op: str,
    gates: int,
    direction: str,
    inputs: str = "",
    more: str = "",
    out: str = "o",
    attributes: str = "",
) -> Case:
    """A recurrent layer of 6 hidden units over 5 steps of 4 channels, in front of a projection of all its states."""
    d = 2 if direction == "bidirectional" else 1
    weights = (
        f"float[{d},{gates * 6},4] w1, float[{d},{gates * 6},6] w2, float[{d},{gates * 12}] w3"
    )
    text = f'float[5,2,4] x | {weights}, {more}int64[3] s = {{5, 2, {6 * d}}}, float[{6 * d},7] w9 | {out} = {op}<hidden_size=6, direction="{direction}"{attributes}>(x, w1, w2, w3{inputs});'
    return Case(
        text + "t = Transpose<perm=[0,2,1,3]>(o); r = Reshape(t, s); y = MatMul(r, w9)", groups=(6,)
    )


CASES |= {
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
        "float[5,2,4] x | float[1,24,4] w1, float[1,24,6] w2, float[6,7] w3, float[6,7] w4, float[6,7] w5, int64[1] one = {1}, int64[1] zero = {0} | o, h, c = LSTM<hidden_size=6>(x, w1, w2);"
        "a = Squeeze(o, one); d = MatMul(a, w3); e = Squeeze(h, zero); f = MatMul(e, w4); g = Squeeze(c, zero); i = MatMul(g, w5); j = Add(d, f); y = Add(j, i)",
        groups=(6,),
    ),
    "LSTM_stacked": Case(
        "float[5,2,4] x | float[1,24,4] w1, float[1,24,6] w2, float[1,32,6] w3, float[1,32,8] w4, float[8,7] w5, int64[1] one = {1}, int32[2] lengths = {5, 3} |"
        "o = LSTM<hidden_size=6>(x, w1, w2, , lengths); a = Squeeze(o, one); p = LSTM<hidden_size=8>(a, w3, w4); b = Squeeze(p, one); y = MatMul(b, w5)",
        groups=(6, 8),
    ),
    "LSTM_quantized": Case(
        "float[5,2,4] x | int8[1,24,4] k1, int8[1,24,6] k2, float s = {0.05}, float[6,7] w3, int64[1] one = {1} |"
        "w1 = DequantizeLinear(k1, s); w2 = DequantizeLinear(k2, s); o = LSTM<hidden_size=6>(x, w1, w2); a = Squeeze(o, one); y = MatMul(a, w3)",
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
        "float[5,2,4] x, float[2,4] h | float[4,6] w0, int64[1] zero = {0}, float[1,18,4] w1, float[1,18,6] w2, float[6,7] w3, int64[1] one = {1} |"
        "i = MatMul(h, w0); j = Unsqueeze(i, zero); o = GRU<hidden_size=6>(x, w1, w2, , , j); a = Squeeze(o, one); y = MatMul(a, w3)",
        groups=(6,),
    ),
}

_HEADS = "float[2,6,16] x | float[16,32] wq, float[16,{k}] wk, float[16,{v}] wv, float[{o},5] wo | q = MatMul(x, wq); k = MatMul(x, wk); v = MatMul(x, wv); {node}; y = MatMul(a, wo)"
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
        (4, 8),
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
        "t = Transpose<perm=[0,2,1]>(a); n = com.microsoft.SkipLayerNormalization(t, t, w3, w4); b = Transpose<perm=[0,2,1]>(n)",
        "float[6] w3, float[6] w4",
    ),
    "SkipSimplifiedLayerNormalization": tokens(
        "t = Transpose<perm=[0,2,1]>(a); n = com.microsoft.SkipSimplifiedLayerNormalization(t, t, w3); b = Transpose<perm=[0,2,1]>(n)",
        "float[6] w3",
    ),
}
