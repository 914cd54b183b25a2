"""Products of matrices."""

from __future__ import annotations

from cases.case import Case

CASES: dict[str, Case] = {
    "Gemm": Case(
        (
            "float[3,4] x | float[4,8] w1, float[8] b1, float[8,5] w2, float[5] b2 | "
            "a = Gemm(x, w1, b1); r = Relu(a); y = Gemm(r, w2, b2)"
        ),
        groups=(8,),
    ),
    "Gemm_transB": Case(
        (
            "float[3,4] x | float[8,4] w1, float[8] b1, float[5,8] w2 | "
            "a = Gemm<transB=1, alpha=0.5, beta=2.0>(x, w1, b1); r = Relu(a); "
            "y = Gemm<transB=1>(r, w2)"
        ),
        groups=(8,),
    ),
    "Gemm_transA": Case(
        (
            "float[4,3] x | float[4,8] w1, float[8,3] w2, float[6,8] w3, float[5,6] w4 | "
            "a = Gemm<transA=1>(x, w1); b = Gemm(w3, a); c = Transpose<perm=[1,0]>(b); "
            "y = MatMul(c, w4)"
        )
        .replace("float[6,8] w3", "float[6,3] w3")
        .replace("float[8,3] w2, ", "")
        .replace("float[5,6] w4", "float[6,5] w4")
        .replace("Gemm(w3, a)", "Gemm(w3, a, w5)")
        .replace("float[6,3] w3", "float[6,3] w3, float[6,8] w5")
        .replace("c = Transpose<perm=[1,0]>(b); y = MatMul(c, w4)", "y = Gemm<transA=1>(b, w4)"),
        groups=(6,),
    ),
    "Gemm_bias_matrix": Case(
        (
            "float[3,4] x | float[4,8] w1, float[3,8] w2, float[1,8] w3, float[8,5] w4 | "
            "a = Gemm(x, w1, w2); b = Gemm(a, w5, w3); y = MatMul(b, w4)"
        ).replace("float[8,5] w4", "float[8,5] w4, float[8,8] w5"),
        groups=(8, 8),
    ),
    "Gemm_bias_scalar": Case(
        (
            "float[3,4] x | float[4,8] w1, float s = {0.5}, float[8,5] w2 | a = Gemm(x, w1, s); "
            "y = MatMul(a, w2)"
        ),
        groups=(8,),
    ),
    "MatMul": Case(
        (
            "float[2,3,4] x | float[4,8] w1, float[8] b1, float[8,5] w2 | a = MatMul(x, w1); "
            "b = Add(a, b1); r = Relu(b); y = MatMul(r, w2)"
        ),
        groups=(8,),
    ),
    "MatMul_vector_right": Case(
        "float[2,3,4] x | float[4,8] w1, float[8] w2 | a = MatMul(x, w1); y = MatMul(a, w2)",
        groups=(8,),
    ),
    "MatMul_vector_left": Case(
        (
            "float[4] x | float[4,8] w1, float[8,5] w2 | a = MatMul(x, w1); r = Relu(a); "
            "y = MatMul(r, w2)"
        ),
        groups=(8,),
    ),
    "MatMul_vectors": Case(
        "float[4] x | float[4,8] w1, float[8] w2 | a = MatMul(x, w1); y = MatMul(a, w2)",
        groups=(8,),
    ),
    "MatMul_batch_broadcast": Case(
        "float[2,1,3,4] x | float[6,4,8] w1, float[6,8,5] w2, float[5,7] w3 | "
        "a = MatMul(x, w1); b = MatMul(a, w2); y = MatMul(b, w3)"
    ),
    "MatMul_weight_left": Case(
        (
            "float[2,4,3] x | float[8,4] w1, float[5,8] w2 | a = MatMul(w1, x); r = Relu(a); "
            "y = MatMul(w2, r)"
        ),
        groups=(8,),
    ),
    "MatMulInteger": Case(
        "float[3,4] x | float[4,8] w1, uint8[8,6] k, uint8 xz = {3}, uint8[6] kz = {1, 2, 3, "
        "4, 5, 6}, float s = {0.05}, float[6,5] w2 |"
        "a = MatMul(x, w1); q = QuantizeLinear(a, s, xz); i = MatMulInteger(q, k, xz, kz); "
        "f = Cast<to=1>(i); b = Mul(f, s); y = MatMul(b, w2)",
        groups=(6, 8),
    ),
    "MatMulInteger_per_tensor": Case(
        "float[3,4] x | float[4,8] w1, uint8[8,6] k, uint8 xz = {3}, uint8 kz = {1}, "
        "float s = {0.05}, float[6,5] w2 |"
        "a = MatMul(x, w1); q = QuantizeLinear(a, s, xz); i = MatMulInteger(q, k, xz, kz); "
        "f = Cast<to=1>(i); b = Mul(f, s); y = MatMul(b, w2)",
        groups=(6, 8),
    ),
    "DynamicQuantizeLinear": Case(
        "float[3,4] x | float[4,8] w1, uint8[8,6] k, uint8 kz = {1}, float s = {0.05}, "
        "float[6,5] w2 |"
        "a = MatMul(x, w1); q, qs, qz = DynamicQuantizeLinear(a); "
        "i = MatMulInteger(q, k, qz, kz); f = Cast<to=1>(i); d = Mul(f, s); b = Mul(d, qs); "
        "y = MatMul(b, w2)",
        groups=(6, 8),
    ),
    "QLinearMatMul": Case(
        "float[3,4] x | float[4,8] w1, int8[8,6] k, int8 zero = {1}, int8 kz = {0}, "
        "float s = {0.02}, float t = {0.5}, float[6,5] w2 |"
        "a = MatMul(x, w1); q = QuantizeLinear(a, s, zero); "
        "i = QLinearMatMul(q, s, zero, k, s, kz, t, zero); b = DequantizeLinear(i, t, zero); "
        "y = MatMul(b, w2)",
        groups=(6, 8),
    ),
    "Einsum": Case(
        (
            "float[2,3,4] x | float[4,8] w1, float[8,5] w2 | "
            'a = Einsum<equation="bnc,cd->bnd">(x, w1); r = Relu(a); '
            'y = Einsum<equation="bnd,de->bne">(r, w2)'
        ),
        groups=(8,),
    ),
    "Einsum_ellipsis": Case(
        (
            "float[2,3,4] x | float[4,8] w1, float[8,5] w2 | "
            'a = Einsum<equation="...c,...cd->...d">(x, w1); y = MatMul(a, w2)'
        )
        .replace("float[4,8]", "float[2,1,4,8]")
        .replace("y = MatMul(a, w2)", "y = MatMul(a, w2)"),
        groups=(8,),
    ),
    "Einsum_heads": Case(
        "float[2,5,4] x | float[4,3,6] w1, float[4,3,6] w2, float[4,3,6] w3, "
        'float[3,6,7] w4 | q = Einsum<equation="bnc,chd->bhnd">(x, w1); '
        'k = Einsum<equation="bnc,chd->bhnd">(x, w2);'
        'v = Einsum<equation="bnc,chd->bhnd">(x, w3); '
        's = Einsum<equation="bhid,bhjd->bhij">(q, k); p = Softmax<axis=-1>(s); '
        'o = Einsum<equation="bhij,bhjd->bihd">(p, v);'
        'y = Einsum<equation="bihd,hdc->bic">(o, w4)',
        groups=(3, 6, 6),
    ),
    "Einsum_outer": Case(
        (
            "float[2,4] x | float[4,6] w1, float[4,8] w2, float[6,8,5] w3 | a = MatMul(x, w1); "
            'b = MatMul(x, w2); c = Einsum<equation="bi,bj->bij">(a, b); '
            'y = Einsum<equation="bij,ijk->bk">(c, w3)'
        ),
        groups=(6, 8),
    ),
    "Einsum_reduce": Case(
        (
            "float[2,4] x | float[3,4,6] w1, float[6,5] w2 | "
            'a = Einsum<equation="bc,kcd->bkd">(x, w1); c = Einsum<equation="bkd->bd">(a); '
            "y = MatMul(c, w2)"
        ),
        groups=(3, 6),
    ),
}
