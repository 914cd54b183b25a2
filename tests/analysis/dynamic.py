"""Graphs with dynamic axes and computed shapes."""

from __future__ import annotations

from graphs import Case

DYNAMIC: dict[str, Case] = {
    "flatten_by_shape_and_slice": Case(
        "float[n,4,6,6] x | float[8,4,1,1] w1, int64[1] m = {-1}, int64[1] zero = {0}, "
        "int64[1] one = {1}, float[288,5] w2 |"
        "a = Conv(x, w1); s = Shape(a); i = Slice(s, zero, one, zero); "
        "t = Concat<axis=0>(i, m); b = Reshape(a, t); y = Gemm(b, w2)",
        groups=(8,),
    ),
    "view_with_height_and_width": Case(
        "float[n,4,h,w] x | float[8,4,1,1] w1, int64 zero = {0}, int64 one = {1}, "
        "int64 two = {2}, int64 three = {3}, int64[1] z = {0}, float[8,5] w2 |"
        "a = Conv(x, w1); s = Shape(a); n = Gather(s, zero); c = Gather(s, one); "
        "h = Gather(s, two); w = Gather(s, three); hw = Mul(h, w); n1 = Unsqueeze(n, z); "
        "c1 = Unsqueeze(c, z); hw1 = Unsqueeze(hw, z);"
        "t = Concat<axis=0>(n1, c1, hw1); b = Reshape(a, t); d = Transpose<perm=[0,2,1]>(b); "
        "y = MatMul(d, w2) | float[n,p,5] y",
        groups=(8,),
    ),
    "resize_to_the_size_of_another": Case(
        "float[n,4,h,w] x | float[8,4,1,1] w1, float[8,4,1,1] w3, int64[1] two = {2}, "
        "int64[1] zero = {0}, int64[1] four = {4}, float[5,8,1,1] w2 |"
        "a = Conv(x, w1); b = Conv<strides=[2,2]>(x, w3); s = Shape(a); "
        "hw = Slice(s, two, four, zero); sb = Shape(b); nc = Slice(sb, zero, two, zero); "
        "t = Concat<axis=0>(nc, hw);"
        'r = Resize<mode="nearest">(b, , , t); c = Add(a, r); y = Conv(c, w2) | float[n,5,h,w] y',
        groups=(8,),
    ),
    "heads_of_a_dynamic_sequence": Case(
        "float[n,t,4] x | float[4,24] w1, int64[4] s = {0, 0, 4, 6}, float[24,5] w2, "
        "int64 zero = {0}, int64 one = {1}, int64[1] z = {0}, int64[1] all = {24} |"
        "a = MatMul(x, w1); b = Reshape(a, s); c = Transpose<perm=[0,2,1,3]>(b); "
        "d = Relu(c); e = Transpose<perm=[0,2,1,3]>(d); sh = Shape(x); n = Gather(sh, zero); "
        "t = Gather(sh, one);"
        "n1 = Unsqueeze(n, z); t1 = Unsqueeze(t, z); q = Concat<axis=0>(n1, t1, all); "
        "f = Reshape(e, q); y = MatMul(f, w2) | float[n,t,5] y",
        groups=(4, 6),
    ),
    "heads_merged_into_a_dynamic_batch": Case(
        "float[n,5,4] x | float[4,12] w1, int64[4] s = {0, 5, 3, 4}, int64[3] m = {-1, 5, "
        "4}, int64[4] r = {-1, 3, 5, 4}, int64[3] o = {0, 5, 12}, float[12,7] w2 | "
        "a = MatMul(x, w1); b = Reshape(a, s);"
        "c = Transpose<perm=[0,2,1,3]>(b); d = Reshape(c, m); e = Relu(d); "
        "f = Reshape(e, r); g = Transpose<perm=[0,2,1,3]>(f); h = Reshape(g, o); "
        "y = MatMul(h, w2) | float[n,5,7] y",
        groups=(3, 4),
    ),
    "flatten_batch_by_minus_one": Case(
        (
            "float[n,4,6,6] x | float[8,4,3,3] w1, int64[2] s = {-1, 128}, float[128,5] w2 | "
            "a = Conv(x, w1); b = Reshape(a, s); y = MatMul(b, w2) | float[n,5] y"
        ),
        groups=(8,),
    ),
    "zeros_like_a_computed_shape": Case(
        "float[n,4,6,6] x | float[8,4,1,1] w1, float[5,16,1,1] w2 | a = Conv(x, w1); "
        "s = Shape(a); c = ConstantOfShape(s); b = Concat<axis=1>(a, c); y = Conv(b, w2)"
    ),
    "expand_to_an_input_between": Case(  # a size from a graph input cannot be rewritten
        (
            "float[n,4] x, int64[2] s | float[4,8] w1, int64[2] least = {1, 1}, float[8,5] w2 | "
            "a = MatMul(x, w1); t = Max(s, least); b = Expand(a, t); y = MatMul(b, w2) | "
            "float[p,5] y"
        ),
        groups=(),
    ),
    # the size of Expand passes a comparison with -1; positions are counted
    "grouped_queries_of_a_dynamic_sequence": Case(
        "float[n,t,4] x | float[4,24] wq, float[4,8] wk, float[4,8] wv, int64[4] hs = {0, 0, "
        "-1, 4}, float[4] inverse, int64[1] z = {0}, int64 zero = {0}, int64 one = {1}, "
        "int64[1] i0 = {0}, int64[1] i1 = {1}, "
        "int64[1] i2 = {2}, int64[1] i3 = {3}, int64[1] three = {3}, int64[5] minus = {-1, "
        "-1, -1, -1, -1}, int64[5] ones = {1, 1, 1, 1, 1}, int64[1] six = {6}, "
        "int64[1] rest = {-1}, float[24,7] wo |"
        "sh = Shape(x); t = Gather(sh, one); t0 = Add(t, zero); r = Range(zero, t0, one); "
        "f = Cast<to=1>(r); f1 = Unsqueeze(f, i1); an = Mul(f1, inverse); cs = Cos(an); "
        "c1 = Unsqueeze(cs, z);"
        "q = MatMul(x, wq); k = MatMul(x, wk); v = MatMul(x, wv); q1 = Reshape(q, hs); "
        "q2 = Transpose<perm=[0,2,1,3]>(q1); q3 = Mul(q2, c1); k1 = Reshape(k, hs); "
        "k2 = Transpose<perm=[0,2,1,3]>(k1); k3 = Mul(k2, c1);"
        "ks = Shape(k3); b0 = Gather(ks, i0); b1 = Gather(ks, i1); b2 = Gather(ks, i2); "
        "b3 = Gather(ks, i3); es = Concat<axis=0>(b0, b1, three, b2, b3); "
        "eq = Equal(es, minus); ew = Where(eq, ones, es);"
        "rs = Concat<axis=0>(b0, six, b2, b3); k4 = Unsqueeze(k3, i2); k5 = Expand(k4, ew); "
        "k6 = Reshape(k5, rs); v1 = Reshape(v, hs); v2 = Transpose<perm=[0,2,1,3]>(v1); "
        "v3 = Unsqueeze(v2, i2); v4 = Expand(v3, ew);"
        "v5 = Reshape(v4, rs); kt = Transpose<perm=[0,1,3,2]>(k6); s = MatMul(q3, kt); "
        "p = Softmax<axis=-1>(s); o = MatMul(p, v5); o1 = Transpose<perm=[0,2,1,3]>(o);"
        "n0 = Gather(sh, i0); n1 = Gather(sh, i1); os = Concat<axis=0>(n0, n1, rest); "
        "o2 = Reshape(o1, os); y = MatMul(o2, wo) | float[n,t,7] y",
        groups=(1, 1, 2, 4, 4),
    ),
    "expand_to_an_input": Case(
        "float[2,4] x, int64[2] s | float[4,8] w1, float[8,5] w2 | a = MatMul(x, w1); "
        "b = MatMul(a, w2); y = Expand(b, s) | float[p,q] y"
    ),
    "equal_sizes_of_channels_and_positions": Case(
        (
            "float[n,4,8] x | float[8,4,1] w1, float[8,8] w2, float[8,5] w3 | a = Conv(x, w1); "
            "b = MatMul(a, w2); t = Transpose<perm=[0,2,1]>(b); y = MatMul(t, w3)"
        ),
        groups=(8,),
    ),
}
