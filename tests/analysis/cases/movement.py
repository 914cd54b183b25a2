"""Operators that move positions."""

from __future__ import annotations

from cases.case import Case, between

CASES: dict[str, Case] = {
    "Transpose": between(
        (
            "t = Transpose<perm=[0,2,3,1]>(a); r = Relu(t); m = MatMul(r, w3); "
            "b = Transpose<perm=[0,3,1,2]>(m)"
        ),
        "float[8,8] w3",
        groups=(8, 8),
    ),
    "Concat": Case(
        (
            "float[2,4,6,6] x | float[8,4,1,1] w1, float[6,4,1,1] w2, float[5,18,1,1] w3 | "
            "a = Conv(x, w1); b = Conv(x, w2); c = Concat<axis=1>(a, x, b); y = Conv(c, w3)"
        ),
        groups=(6, 8),
    ),
    "Concat_spatial": Case(
        (
            "float[2,4,6,6] x | float[8,4,1,1] w1, float[8,4,1,1] w2, float[5,8,1,1] w3 | "
            "a = Conv(x, w1); b = Conv(x, w2); c = Concat<axis=-1>(a, b); y = Conv(c, w3)"
        ),
        groups=(8,),
    ),
    "Concat_dense_block": Case(
        "float[2,4,6,6] x | float[8,4,1,1] w1, float[6,8,1,1] w2, float[5,14,1,1] w3, "
        "float[7,19,1,1] w4, float[14] b1, float[14] b2, float[14] b3, float[14] v |"
        "a = Conv(x, w1); b = Conv(a, w2); c = Concat<axis=1>(a, b); "
        "n = BatchNormalization(c, b1, b2, b3, v); d = Conv(n, w3); "
        "e = Concat<axis=1>(c, d); y = Conv(e, w4)",
        groups=(5, 6, 8),
    ),
    "Concat_into_grouped": Case(
        "float[2,4,6,6] x | float[8,4,1,1] w1, float[4,4,1,1] w2, float[8,3,1,1] w3, "
        "float[5,8,1,1] w4 | a = Conv(x, w1); b = Conv(x, w2); c = Concat<axis=1>(a, b); "
        "d = Conv<group=4>(c, w3); y = Conv(d, w4)"
    ),
    "Split_equal": between(
        "p, q = Split<axis=1>(a); r = Sigmoid(p); s = Mul(q, r); b = Concat<axis=1>(s, s)",
        opset=13,
        groups=(4,),
    ),
    "Split": Case(
        (
            "float[2,4,6,6] x | float[8,4,1,1] w1, int64[2] s = {5, 3}, float[6,3,1,1] w2, "
            "float[7,11,1,1] w3 | a = Conv(x, w1); p, q = Split<axis=1>(a, s); r = Conv(q, w2); "
            "c = Concat<axis=1>(p, r); y = Conv(c, w3)"
        ),
        groups=(3, 5, 6),
    ),
    "Split_attribute": Case(
        (
            "float[2,4,6,6] x | float[8,4,1,1] w1, float[5,5,1,1] w2, float[5,3,1,1] w3 | "
            "a = Conv(x, w1); p, q = Split<axis=1, split=[5,3]>(a); c = Conv(p, w2); "
            "d = Conv(q, w3); y = Add(c, d)"
        ),
        opset=11,
        groups=(3, 5),
    ),
    "Split_num_outputs": Case(
        "float[2,4,6,6] x | float[8,4,1,1] w1, float[5,3,1,1] w2, float[5,2,1,1] w3, "
        "float[5,3,1,1] w4 |"
        "a = Conv(x, w1); p, q, r = Split<axis=1, num_outputs=3>(a); c = Conv(p, w2); "
        "d = Conv(r, w3); e = Conv(q, w4); f = Add(c, d); y = Add(e, f)",
        opset=18,
        groups=(2, 3, 3),
    ),
    "Split_half_used": Case(
        "float[2,4,6,6] x | float[8,4,1,1] w1, int64[2] s = {5, 3}, float[6,3,1,1] w2 | "
        "a = Conv(x, w1); p, q = Split<axis=1>(a, s); y = Conv(q, w2)"
    ),
    "Split_swapped": between(
        "p, q = Split<axis=1>(a, s); r = Relu(p); b = Concat<axis=1>(q, r)",
        "int64[2] s = {5, 3}",
        groups=None,
    ),
    "Slice": Case(
        (
            "float[2,4,6,6] x | float[8,4,1,1] w1, int64[1] zero = {0}, int64[1] three = {3}, "
            "int64[1] one = {1}, float[5,3,1,1] w2 | a = Conv(x, w1); "
            "b = Slice(a, zero, three, one); y = Conv(b, w2)"
        ),
        groups=(3, 5),
    ),
    "Slice_negative": Case(
        "float[2,4,6,6] x | float[8,4,1,1] w1, int64[1] s = {-3}, "
        "int64[1] e = {9223372036854775807}, int64[1] one = {1}, float[5,3,1,1] w2, "
        "float[5,8,1,1] w3 |"
        "a = Conv(x, w1); b = Slice(a, s, e, one); c = Conv(b, w2); d = Conv(a, w3); y = Add(c, d)",
        groups=(3, 5),
    ),
    "Slice_negative_end": Case(
        "float[2,4,6,6] x | float[8,4,1,1] w1, int64[3] s = {0, -7, 1}, int64[3] e = {5, -2, "
        "3}, int64[3] axes = {3, 1, 2}, float[5,5,1,1] w2, float[5,8,5,5] w3 |"
        "a = Conv(x, w1); b = Slice(a, s, e, axes); c = Conv(b, w2); d = Conv(a, w3); "
        "y = Add(c, d)".replace("w3, ", "w3 ").replace("float[5,8,5,5]", "float[5,8,6,6]")
    ),
    "Slice_stepped": Case(
        "float[2,4,6,6] x | float[8,4,1,1] w1, int64[1] s = {1}, int64[1] e = {8}, "
        "int64[1] axes = {1}, int64[1] two = {2}, float[5,4,1,1] w2, float[5,8,1,1] w3 |"
        "a = Conv(x, w1); b = Slice(a, s, e, axes, two); c = Conv(b, w2); d = Conv(a, w3); "
        "y = Add(c, d)",
        groups=(4, 4),
    ),
    "Slice_reversed": Case(
        "float[2,4,6,6] x | float[8,4,1,1] w1, int64[1] s = {-1}, "
        "int64[1] e = {-9223372036854775808}, int64[1] axes = {1}, int64[1] back = {-1}, "
        "float[5,8,1,1] w2 |"
        "a = Conv(x, w1); b = Slice(a, s, e, axes, back); c = Sub(a, b); y = Conv(c, w2)"
    ),
    "Slice_attributes": Case(
        (
            "float[2,4,6,6] x | float[8,4,1,1] w1, float[5,4,1,1] w2 | a = Conv(x, w1); "
            "b = Slice<axes=[1,2], starts=[-6,0], ends=[-2,9]>(a); y = Conv(b, w2)"
        ),
        opset=9,
        groups=(4, 4),
    ),
    "Slice_spatial_steps": between(
        "b = Slice(a, s, e, axes, t)",
        "int64[2] s = {0, 1}, int64[2] e = {4, 4}, int64[2] axes = {2, 3}, int64[2] t = {2, 2}",
    ),
    "Gather": Case(
        "float[2,4,6,6] x | float[8,4,1,1] w1, int64[5] i = {7, -7, 3, 3, 0}, "
        "float[5,5,1,1] w2, float[5,8,1,1] w3 | a = Conv(x, w1); b = Gather<axis=1>(a, i); "
        "c = Conv(b, w2); d = Conv(a, w3); y = Add(c, d)"
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
        "float[2,4,6,6] x | float[8,4,1,1] w1, float[12,8,1,1] w2, int64[8] p = {0, 1, 0, 0, "
        "0, 3, 0, 0}, float[5,12,1,1] w3 | a = Conv(x, w1); b = Conv(a, w2); c = Pad(a, p); "
        "d = Add(b, c); r = Relu(d); y = Conv(r, w3)"
    ),
    "Pad_axes": Case(
        (
            "float[2,4,6,6] x | float[8,4,1,1] w1, int64[2] p = {1, 3}, float v = {0.5}, "
            "int64[1] one = {-3}, float[5,12,1,1] w3 | a = Conv(x, w1); c = Pad(a, p, v, one); "
            "y = Conv(c, w3)"
        ),
        opset=18,
        groups=(4, 8),
    ),
    "Pad_attribute": Case(
        (
            "float[2,4,6,6] x | float[8,4,1,1] w1, float[5,12,1,1] w3 | a = Conv(x, w1); "
            "c = Pad<pads=[0, 4, 0, 0, 0, 0, 0, 0]>(a); y = Conv(c, w3)"
        ),
        opset=10,
        groups=(4, 8),
    ),
    "Squeeze": Case(
        (
            "float[2,4,6,6] x | float[8,4,1,1] w1, int64[2] axes = {2, -1}, float[8,5] w2 | "
            "a = Conv(x, w1); g = GlobalAveragePool(a); b = Squeeze(g, axes); y = MatMul(b, w2)"
        ),
        groups=(8,),
    ),
    "Squeeze_attribute": Case(
        (
            "float[2,4,6,6] x | float[8,4,1,1] w1, float[8,5] w2 | a = Conv(x, w1); "
            "g = GlobalAveragePool(a); b = Squeeze<axes=[2,3]>(g); y = MatMul(b, w2)"
        ),
        opset=11,
        groups=(8,),
    ),
    "Squeeze_all": Case(
        (
            "float[2,4,6,6] x | float[8,4,1,1] w1, float[8,5] w2 | a = Conv(x, w1); "
            "g = GlobalAveragePool(a); b = Squeeze(g); y = MatMul(b, w2)"
        ),
        groups=(8,),
    ),
    "Unsqueeze": Case(
        (
            "float[2,4] x | float[8,4] w1, int64[2] axes = {-1, 2}, float[5,8,1,1] w2 | "
            "a = Gemm<transB=1>(x, w1); b = Unsqueeze(a, axes); y = Conv(b, w2)"
        ),
        groups=(8,),
    ),
    "Unsqueeze_attribute": Case(
        (
            "float[2,4] x | float[8,4] w1, float[5,8,1,1] w2 | a = Gemm<transB=1>(x, w1); "
            "b = Unsqueeze<axes=[2,3]>(a); y = Conv(b, w2)"
        ),
        opset=11,
        groups=(8,),
    ),
    "Flatten": Case(
        (
            "float[2,4,6,6] x | float[8,4,3,3] w1, float[128,5] w2 | a = Conv(x, w1); "
            "b = Flatten(a); y = Gemm(b, w2)"
        ),
        groups=(8,),
    ),
    "Flatten_last": Case(
        (
            "float[2,3,4] x | float[4,8] w1, float[8,5] w2 | a = MatMul(x, w1); "
            "b = Flatten<axis=-1>(a); y = Gemm(b, w2)"
        ),
        groups=(8,),
    ),
    "Expand": Case(
        (
            "float[2,4] x | float[4,8] w1, int64[3] s = {2, 5, 8}, int64[1] one = {1}, "
            "float[8,5] w2 | a = MatMul(x, w1); u = Unsqueeze(a, one); b = Expand(u, s); "
            "y = MatMul(b, w2)"
        ),
        groups=(8,),
    ),
    "Expand_to_a_shorter_shape": Case(
        "float[1,3,4,5] x | float[5,8] w1, int64[1] s = {8}, float[8,6] w2 | "
        "a = MatMul(x, w1); b = Expand(a, s); y = MatMul(b, w2)",
        groups=(8,),
    ),
    "Expand_to_channels": between(
        "m = ReduceSum(a, one); e = Expand(m, s); b = Mul(a, e)",
        "int64[1] one = {1}, int64[4] s = {1, 8, 1, 1}",
    ),
    "Expand_token": Case(
        (
            "float[2,6,4] x | float[4,8] w1, float[1,1,8] w2, int64[3] s = {2, 1, -1}, "
            "float[8,5] w3 | a = MatMul(x, w1); t = Expand(w2, s); c = Concat<axis=1>(t, a); "
            "y = MatMul(c, w3)"
        ).replace("-1}", "1}"),
        groups=(8,),
    ),
    "Tile": Case(
        (
            "float[2,4,6,6] x | float[8,4,1,1] w1, int64[4] r = {1, 3, 1, 2}, "
            "float[5,24,1,1] w2 | a = Conv(x, w1); b = Tile(a, r); y = Conv(b, w2)"
        ),
        groups=(8,),
    ),
    "Tile_single": between(
        "m = ReduceSum(a, one); t = Tile(m, r); b = Mul(a, t)",
        "int64[1] one = {1}, int64[4] r = {1, 8, 1, 1}",
    ),
    "ConstantOfShape": Case(
        "float[n,4,6,6] x | float[8,4,1,1] w1, int64[3] rest = {8, 6, 6}, "
        "int64[1] zero = {0}, int64[1] one = {1}, float[5,8,1,1] w2 |"
        "a = Conv(x, w1); h = Shape(x); i = Slice(h, zero, one, zero); "
        "s = Concat<axis=0>(i, rest); c = ConstantOfShape<value=float[1] {0.5}>(s); "
        "b = Sub(a, c); y = Conv(b, w2)",
        groups=(8,),
    ),
    "Shape": Case(
        (
            "float[n,4,6,6] x | float[8,4,1,1] w1, float[8] w2, float[5,8,1,1] w3, "
            "float[1,8,1,1] w5 | a = Conv(x, w1); s = Shape(a); e = Expand(w5, s); "
            "b = Mul(a, e); y = Conv(b, w3)"
        ),
        groups=(8,),
    ),
    "Shape_slice": Case(
        (
            "float[n,4,6,6] x | float[8,4,1,1] w1, int64[1] minus = {-1}, float[288,5] w2 | "
            "a = Conv(x, w1); s = Shape<end=1>(a); t = Concat<axis=0>(s, minus); "
            "b = Reshape(a, t); y = MatMul(b, w2)"
        ),
        groups=(8,),
    ),
    "Reshape_zero": Case(
        (
            "float[2,4,6,6] x | float[8,4,3,3] w1, int64[3] s = {0, 0, -1}, float[5,8] w2 | "
            "a = Conv(x, w1); b = Reshape(a, s); y = MatMul(w2, b)"
        ),
        groups=(8,),
    ),
    "Reshape": Case(
        (
            "float[2,4,6,6] x | float[8,4,3,3] w1, int64[2] s = {2, 128}, float[128,5] w2 | "
            "a = Conv(x, w1); b = Reshape(a, s); y = MatMul(b, w2)"
        ),
        groups=(8,),
    ),
    "Reshape_attention": Case(
        (
            "float[2,6,4] x | float[4,24] w1, int64[4] s = {0, 6, 4, -1}, int64[3] t = {0, 0, "
            "24}, float[24,5] w2 | a = MatMul(x, w1); b = Reshape(a, s); c = Softmax<axis=1>(b); "
            "d = Reshape(c, t); y = MatMul(d, w2)"
        ),
        groups=(4, 6),
    ),
    "Reshape_allowzero": Case(
        (
            "float[2,4,6,6] x | float[8,4,3,3] w1, int64[2] s = {2, 128}, float[128,5] w2 | "
            "a = Conv(x, w1); b = Reshape<allowzero=1>(a, s); y = MatMul(b, w2)"
        ),
        groups=(8,),
    ),
    "Reshape_dynamic_batch": Case(
        (
            "float[n,4,6,6] x | float[8,4,3,3] w1, int64[2] s = {-1, 128}, float[128,5] w2 | "
            "a = Conv(x, w1); b = Reshape(a, s); y = MatMul(b, w2) | float[n,5] y"
        ),
        groups=(8,),
    ),
    "DepthToSpace": Case(
        (
            "float[2,4,3,3] x | float[12,4,1,1] w1, float[5,3,1,1] w2 | a = Conv(x, w1); "
            "b = DepthToSpace<blocksize=2>(a); y = Conv(b, w2)"
        ),
        groups=(3,),
    ),
    "DepthToSpace_CRD": Case(
        (
            "float[2,4,3,3] x | float[12,4,1,1] w1, float[5,3,1,1] w2 | a = Conv(x, w1); "
            'b = DepthToSpace<blocksize=2, mode="CRD">(a); y = Conv(b, w2)'
        ),
        groups=(3,),
    ),
    "SpaceToDepth": Case(
        (
            "float[2,4,6,6] x | float[8,4,1,1] w1, float[5,32,1,1] w2 | a = Conv(x, w1); "
            "b = SpaceToDepth<blocksize=2>(a); y = Conv(b, w2)"
        ),
        groups=(8,),
    ),
}
