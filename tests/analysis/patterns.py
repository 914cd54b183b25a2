"""Couplings as exporters write them: blocks of known networks, and what other pruners break on."""

from __future__ import annotations

from graphs import Case

_QKV = "q = MatMul(x, wq); k = MatMul(x, wk); v = MatMul(x, wv)"
_HEADS = (
    "q1 = Reshape(q, hs); q2 = Transpose<perm=[0,2,1,3]>(q1); k1 = Reshape(k, hs); "
    "k2 = Transpose<perm=[0,2,3,1]>(k1); v1 = Reshape(v, hs); "
    "v2 = Transpose<perm=[0,2,1,3]>(v1);"
    "s = MatMul(q2, k2); t = Mul(s, scale); p = Softmax<axis=-1>(t); o = MatMul(p, v2); "
    "o1 = Transpose<perm=[0,2,1,3]>(o); o2 = Reshape(o1, os)"
)
_BIASED = (  # softmax of attention with a relative position bias
    "g = Gather(table, index); g1 = Reshape(g, bs); g2 = Transpose<perm=[2,0,1]>(g1); "
    "u = Add(t, g2); p = Softmax<axis=-1>(u)"
)

PATTERNS: dict[str, Case] = {
    "channel_shuffle": Case(
        "float[2,4,6,6] x | float[12,4,1,1] w1, int64[5] s = {2, 3, 4, 6, 6}, "
        "int64[4] t = {2, 12, 6, 6}, float[12,1,3,3] w2, float[5,12,1,1] w3 |"
        "a = Conv(x, w1); b = Reshape(a, s); c = Transpose<perm=[0,2,1,3,4]>(b); "
        "d = Reshape(c, t); e = Conv<group=12>(d, w2); y = Conv(e, w3)",
        groups=(12,),
    ),
    "channel_shuffle_minus_one": Case(
        "float[2,4,6,6] x | float[12,4,1,1] w1, int64[5] s = {-1, 3, 4, 6, 6}, "
        "int64[4] t = {2, -1, 6, 6}, float[5,12,1,1] w3 |"
        "a = Conv(x, w1); b = Reshape(a, s); c = Transpose<perm=[0,2,1,3,4]>(b); "
        "d = Reshape(c, t); y = Conv(d, w3)",
        groups=(12,),
    ),
    "channel_shuffle_dynamic_batch": Case(
        "float[n,4,6,6] x | float[12,4,1,1] w1, int64[5] s = {0, 3, 4, 6, 6}, "
        "int64[4] t = {0, -1, 6, 6}, float[5,12,1,1] w3 |"
        "a = Conv(x, w1); b = Reshape(a, s); c = Transpose<perm=[0,2,1,3,4]>(b); "
        "d = Reshape(c, t); y = Conv(d, w3)",
        groups=(12,),
    ),
    "shuffle_block": Case(
        "float[2,4,6,6] x | float[16,4,1,1] w0, float[8,8,1,1] w1, float[8,1,3,3] w2, "
        "float[8,8,1,1] w3, float[5,16,1,1] w4, int64[5] s = {2, 2, 8, 6, 6}, "
        "int64[4] t = {2, -1, 6, 6} |"
        "x0 = Conv(x, w0); a, b = Split<axis=1>(x0); c = Conv(b, w1); r = Relu(c); "
        "d = Conv<group=8, pads=[1,1,1,1]>(r, w2); e = Conv(d, w3); f = Concat<axis=1>(a, e);"
        "g = Reshape(f, s); h = Transpose<perm=[0,2,1,3,4]>(g); i = Reshape(h, t); y = Conv(i, w4)"
    ),
    "grouped_then_shuffle": Case(
        "float[2,4,6,6] x | float[12,4,1,1] w1, float[12,4,1,1] w2, float[12,4,3,3] w3, "
        "float[5,12,1,1] w4, int64[5] s = {2, 3, 4, 6, 6}, int64[4] t = {2, 12, 6, 6} |"
        "a = Conv(x, w1); b = Conv<group=3>(a, w2); c = Reshape(b, s); "
        "d = Transpose<perm=[0,2,1,3,4]>(c); e = Reshape(d, t); f = Conv<group=3>(e, w3); "
        "y = Conv(f, w4)"
    ),
    "grouped_shuffled_grouped": Case(
        "float[2,4,6,6] x | float[8,4,1,1] w1, float[8,4,1,1] w2, float[8,4,3,3] w3, "
        "float[5,8,1,1] w4, int64[5] s = {2, 2, 4, 6, 6}, int64[4] t = {2, 8, 6, 6} |"
        "a = Conv(x, w1); b = Conv<group=2>(a, w2); c = Reshape(b, s); "
        "d = Transpose<perm=[0,2,1,3,4]>(c); e = Reshape(d, t); f = Conv<group=2>(e, w3); "
        "y = Conv(f, w4)",
        groups=(2, 2, 2, 4, 4),
    ),
    "pixel_shuffle": Case(
        "float[2,4,3,3] x | float[12,4,1,1] w1, int64[6] s = {2, 3, 2, 2, 3, 3}, "
        "int64[4] t = {2, 3, 6, 6}, float[5,3,1,1] w2 |"
        "a = Conv(x, w1); b = Reshape(a, s); c = Transpose<perm=[0,1,4,2,5,3]>(b); "
        "d = Reshape(c, t); y = Conv(d, w2)",
        groups=(3,),
    ),
    "pixel_unshuffle": Case(
        "float[2,4,6,6] x | float[8,4,1,1] w1, int64[6] s = {2, 8, 3, 2, 3, 2}, "
        "int64[4] t = {2, 32, 3, 3}, float[5,32,1,1] w2 |"
        "a = Conv(x, w1); b = Reshape(a, s); c = Transpose<perm=[0,1,3,5,2,4]>(b); "
        "d = Reshape(c, t); y = Conv(d, w2)",
        groups=(8,),
    ),
    "maxout_by_view": Case(
        (
            "float[2,4,6,6] x | float[12,4,1,1] w1, int64[5] s = {2, 6, 2, 6, 6}, "
            "float[5,6,1,1] w2 | a = Conv(x, w1); b = Reshape(a, s); "
            "m = ReduceMax<axes=[2], keepdims=0>(b); y = Conv(m, w2)"
        ),
        groups=(6,),
    ),
    "maxout_by_split": Case(
        (
            "float[2,4,6,6] x | float[12,4,1,1] w1, float[5,6,1,1] w2 | a = Conv(x, w1); "
            "p, q = Split<axis=1>(a); m = Max(p, q); y = Conv(m, w2)"
        ),
        opset=13,
        groups=(6,),
    ),
    "gated_linear_unit": Case(
        (
            "float[2,3,4] x | float[4,16] w1, float[8,5] w2 | a = MatMul(x, w1); "
            "p, q = Split<axis=-1>(a); r = Sigmoid(q); s = Mul(p, r); y = MatMul(s, w2)"
        ),
        opset=13,
        groups=(8,),
    ),
    "repeat_interleave": Case(
        "float[2,4,6,6] x | float[8,4,1,1] w1, int64[1] two = {2}, int64[5] s = {2, 8, 3, 6, "
        "6}, int64[4] t = {2, 24, 6, 6}, float[5,24,1,1] w2 |"
        "a = Conv(x, w1); u = Unsqueeze(a, two); e = Expand(u, s); b = Reshape(e, t); "
        "y = Conv(b, w2)"
    ),
    "repeat_interleave_twice": Case(
        "float[2,3,4,4] x | float[3,3,3,3] w1, int64[1] two = {2}, int64[5] s = {1, 1, 2, 1, "
        "1}, int64[4] t = {0, 6, 4, 4}, int64[4] u = {0, 12, 4, 4}, float[5,12,1,1] w2 |"
        "a = Conv<pads=[1,1,1,1]>(x, w1); b = Unsqueeze(a, two); c = Expand(b, s); "
        "d = Reshape(c, t); e = Unsqueeze(d, two); f = Expand(e, s); g = Reshape(f, u); "
        "y = Conv(g, w2)",
        groups=(2, 2, 3),
    ),
    "factors_of_equal_length": Case(
        (
            "float[2,3,4] x | float[4,16] w1, int64[4] s = {2, 3, 4, 4}, int64[3] t = {2, 3, "
            "16}, float[16,5] w2 | a = MatMul(x, w1); b = Reshape(a, s); r = Relu(b); "
            "c = Reshape(r, t); y = MatMul(c, w2)"
        ),
        groups=(4, 4),
    ),
    "halves_that_swap": Case(
        (
            "float[2,4,6,6] x | float[8,4,1,1] w1, float[5,8,1,1] w2 | a = Conv(x, w1); "
            "p, q = Split<axis=1>(a); r = Relu(q); c = Concat<axis=1>(r, p); y = Conv(c, w2)"
        ),
        opset=13,
        groups=(4, 4),
    ),
    "chunk_and_concat": Case(
        "float[2,4,6,6] x | float[16,4,1,1] w1, float[8,8,3,3] w2, float[8,8,3,3] w3, "
        "float[5,32,1,1] w4 |"
        "a = Conv(x, w1); p, q = Split<axis=1>(a); r = Conv<pads=[1,1,1,1]>(q, w2); "
        "s = Conv<pads=[1,1,1,1]>(r, w3); t = Add(q, s); c = Concat<axis=1>(p, q, r, t); "
        "y = Conv(c, w4)",
        opset=13,
        groups=(8, 8, 8),
    ),
    "pad_in_residual": Case(
        "float[2,4,6,6] x | float[8,4,1,1] w1, float[12,8,3,3] w2, int64[8] p = {0, 2, 0, 0, "
        "0, 2, 0, 0}, float[5,12,1,1] w3 |"
        "a = Conv(x, w1); b = Conv<strides=[2,2], pads=[1,1,1,1]>(a, w2); "
        "c = AveragePool<kernel_shape=[2,2], strides=[2,2]>(a); d = Pad(c, p); "
        "e = Add(b, d); y = Conv(e, w3)"
    ),
    "selective_kernels": Case(
        "float[2,4,6,6] x | float[8,4,3,3] w1, float[8,4,1,1] w2, float[4,8,1,1] w3, "
        "float[16,4,1,1] w4, int64[5] s = {2, 1, 8, 6, 6}, int64[5] t = {2, 2, 8, 1, 1}, "
        "int64[1] one = {1}, float[5,8,1,1] w5 |"
        "a = Conv<pads=[1,1,1,1]>(x, w1); b = Conv(x, w2); c = Add(a, b); "
        "g = GlobalAveragePool(c); h = Conv(g, w3); r = Relu(h); i = Conv(r, w4); "
        "j = Reshape(i, t); p = Softmax<axis=1>(j);"
        "a1 = Reshape(a, s); b1 = Reshape(b, s); ab = Concat<axis=1>(a1, b1); "
        "m = Mul(ab, p); k = ReduceSum<keepdims=0>(m, one); y = Conv(k, w5)",
        opset=13,
        groups=(4, 8),
    ),
    "selection_by_index": Case(
        "float[2,4,6,6] x | float[8,4,3,3] w1, float[8,4,1,1] w2, float[4,8,1,1] w3, "
        "float[16,4,1,1] w4, int64[5] t = {2, 2, 8, 1, 1}, int64 zero = {0}, "
        "int64 one = {1}, float[5,8,1,1] w5 |"
        "a = Conv<pads=[1,1,1,1]>(x, w1); b = Conv(x, w2); c = Add(a, b); "
        "g = GlobalAveragePool(c); h = Conv(g, w3); r = Relu(h); i = Conv(r, w4); "
        "j = Reshape(i, t); p = Softmax<axis=1>(j);"
        "p0 = Gather<axis=1>(p, zero); p1 = Gather<axis=1>(p, one); m = Mul(a, p0); "
        "n = Mul(b, p1); k = Add(m, n); y = Conv(k, w5)",
        opset=13,
        groups=(4, 8),
    ),
    "half_used_slice": Case(
        (
            "float[2,4,6,6] x | float[8,4,1,1] w1, int64[1] zero = {0}, int64[1] half = {4}, "
            "int64[1] one = {1}, float[5,4,1,1] w2 | a = Conv(x, w1); "
            "b = Slice(a, zero, half, one); r = Relu(b); y = Conv(r, w2)"
        ),
        groups=(4, 4),
    ),
    "squeeze_excite": Case(
        "float[2,4,6,6] x | float[8,4,1,1] w1, float[3,8,1,1] w2, float[8,3,1,1] w3, "
        "float[5,8,1,1] w4 |"
        "a = Conv(x, w1); g = ReduceMean<axes=[2,3]>(a); s = Conv(g, w2); r = Relu(s); "
        "e = Conv(r, w3); f = Sigmoid(e); m = Mul(a, f); y = Conv(m, w4)",
        groups=(3, 8),
    ),
    "attention": Case(
        "float[2,5,4] x | float[4,12] wq, float[4,12] wk, float[4,12] wv, int64[4] hs = {0, "
        "0, 3, 4}, int64[3] os = {0, 0, 12}, float scale = {0.5}, float[12,7] wo |"
        f"{_QKV}; {_HEADS}; y = MatMul(o2, wo)",
        groups=(3, 4, 4),
    ),
    "attention_minus_one": Case(
        "float[n,5,4] x | float[4,12] wq, float[4,12] wk, float[4,12] wv, int64[4] hs = {0, "
        "-1, 3, 4}, int64[3] os = {0, -1, 12}, float scale = {0.5}, float[12,7] wo |"
        f"{_QKV}; {_HEADS}; y = MatMul(o2, wo)",
        groups=(3, 4, 4),
    ),
    "attention_dynamic_sequence": Case(
        "float[n,s,4] x | float[4,12] wq, float[4,12] wk, float[4,12] wv, int64[4] hs = {0, "
        "0, 3, 4}, int64[3] os = {0, 0, -1}, float scale = {0.5}, float[12,7] wo |"
        f"{_QKV}; {_HEADS}; y = MatMul(o2, wo) | float[n,s,7] y",
        groups=(3, 4, 4),
    ),
    # queries and keys of another width than the values, and a convolution of the values
    "attention_over_positions": Case(
        "float[2,4,3,3] x | float[8,4,1,1] w1, float[16,8,1,1] w2, int64[4] s = {2, 2, 8, "
        "9}, int64[3] parts = {2, 2, 4}, float scale = {0.7}, int64[4] back = {2, 8, 3, 3}, "
        "float[8,1,3,3] w3, float[8,8,1,1] w4, float[5,8,1,1] w5 |"
        "a = Conv(x, w1); q1 = Conv(a, w2); q2 = Reshape(q1, s); "
        "q, k, v = Split<axis=2>(q2, parts); qt = Transpose<perm=[0,1,3,2]>(q); "
        "m = MatMul(qt, k); t = Mul(m, scale); p = Softmax<axis=-1>(t);"
        "pt = Transpose<perm=[0,1,3,2]>(p); o = MatMul(v, pt); o1 = Reshape(o, back); "
        "v1 = Reshape(v, back); e = Conv<group=8, pads=[1,1,1,1]>(v1, w3); f = Add(o1, e); "
        "g = Conv(f, w4); h = Add(a, g); y = Conv(h, w5)",
        groups=(2, 2, 4, 8),
    ),
    "attention_fused": Case(
        "float[2,5,4] x | float[4,36] w1, float[36] b1, int64[5] s = {2, 5, 3, 3, 4}, "
        "int64 zero = {0}, int64 one = {1}, int64 two = {2}, int64[3] os = {2, 5, 12}, "
        "float scale = {0.5}, float[12,7] wo |"
        "a = MatMul(x, w1); b = Add(a, b1); c = Reshape(b, s); "
        "d = Transpose<perm=[2,0,3,1,4]>(c); q2 = Gather<axis=0>(d, zero); "
        "k = Gather<axis=0>(d, one); v2 = Gather<axis=0>(d, two);"
        "k2 = Transpose<perm=[0,1,3,2]>(k); s1 = MatMul(q2, k2); t = Mul(s1, scale); "
        "p = Softmax<axis=-1>(t); o = MatMul(p, v2); o1 = Transpose<perm=[0,2,1,3]>(o); "
        "o2 = Reshape(o1, os); y = MatMul(o2, wo)",
        groups=(3, 4, 4),
    ),
    "attention_grouped_queries": Case(
        "float[2,5,4] x | float[4,24] wq, float[4,8] wk, float[4,8] wv, int64[4] qs = {2, 5, "
        "6, 4}, int64[4] ks = {2, 5, 2, 4}, int64[1] two = {2}, int64[5] es = {2, 2, 3, 5, "
        "4}, int64[4] rs = {2, 6, 5, 4}, int64[3] os = {2, 5, 24}, float[24,7] wo |"
        "q = MatMul(x, wq); k = MatMul(x, wk); v = MatMul(x, wv); q1 = Reshape(q, qs); "
        "q2 = Transpose<perm=[0,2,1,3]>(q1); k1 = Reshape(k, ks); "
        "k2 = Transpose<perm=[0,2,1,3]>(k1);"
        "v1 = Reshape(v, ks); v2 = Transpose<perm=[0,2,1,3]>(v1); k3 = Unsqueeze(k2, two); "
        "k4 = Expand(k3, es); k5 = Reshape(k4, rs); k6 = Transpose<perm=[0,1,3,2]>(k5);"
        "v3 = Unsqueeze(v2, two); v4 = Expand(v3, es); v5 = Reshape(v4, rs); "
        "s = MatMul(q2, k6); p = Softmax<axis=-1>(s); o = MatMul(p, v5); "
        "o1 = Transpose<perm=[0,2,1,3]>(o); o2 = Reshape(o1, os); y = MatMul(o2, wo)"
    ),
    "attention_rotary": Case(
        "float[2,5,4] x | float[4,12] wq, float[4,12] wk, int64[4] hs = {2, 5, 3, 4}, "
        "float[5,1,4] cs, float[5,1,4] sn, int64[1] zero = {0}, int64[1] half = {2}, "
        "int64[1] end = {9223372036854775807}, int64[1] three = {3}, float[5,7] wo |"
        "q = MatMul(x, wq); k = MatMul(x, wk); q1 = Reshape(q, hs); "
        "a = Slice(q1, zero, half, three); b = Slice(q1, half, end, three); nb = Neg(b); "
        "r = Concat<axis=-1>(nb, a); c = Mul(q1, cs); d = Mul(r, sn); e = Add(c, d);"
        "q2 = Transpose<perm=[0,2,1,3]>(e); k1 = Reshape(k, hs); "
        "k2 = Transpose<perm=[0,2,3,1]>(k1); s = MatMul(q2, k2); p = Softmax<axis=-1>(s); "
        "m = ReduceSum<keepdims=0>(p, one); y = MatMul(m, wo)".replace(
            "float[5,7] wo", "int64[1] one = {1}, float[5,7] wo"
        )
    ),
    "relative_position_table": Case(
        "float[2,5,4] x | float[4,12] wq, float[4,12] wk, float[4,12] wv, int64[4] hs = {0, "
        "0, 3, 4}, int64[3] os = {0, 0, 12}, float scale = {0.5}, float[12,7] wo,"
        "float[9,3] table, int64[25] index = "
        "{4,3,2,1,0,5,4,3,2,1,6,5,4,3,2,7,6,5,4,3,8,7,6,5,4}, int64[3] bs = {5, 5, 3} |"
        f"{_QKV}; {_HEADS.replace('p = Softmax<axis=-1>(t)', _BIASED)}; y = MatMul(o2, wo)",
        groups=(3, 4, 4),
    ),
    "window_partition": Case(
        "float[2,8,8,3] x | float[3,12] w1, int64[6] s = {2, 2, 4, 2, 4, 12}, "
        "int64[4] t = {8, 4, 4, 12}, int64[3] u = {-1, 16, 12}, float[12,12] w2, "
        "int64[6] r = {2, 2, 2, 4, 4, 12}, int64[4] q = {2, 8, 8, 12}, float[12,5] w3 |"
        "a = MatMul(x, w1); b = Reshape(a, s); c = Transpose<perm=[0,1,3,2,4,5]>(b); "
        "d = Reshape(c, t); e = Reshape(d, u); f = MatMul(e, w2); g = Reshape(f, r); "
        "h = Transpose<perm=[0,1,3,2,4,5]>(g); i = Reshape(h, q); j = Add(a, i); "
        "y = MatMul(j, w3)",
        groups=(12,),
    ),
    "class_token": Case(
        "float[2,3,8,8] x | float[8,3,4,4] w1, int64[3] s = {0, 8, -1}, float[1,1,8] token, "
        "float[1,5,8] position, int64[3] ts = {2, 1, 8}, float[8,8] w2, int64 zero = {0}, "
        "float[8,5] w3 |"
        "a = Conv<strides=[4,4]>(x, w1); b = Reshape(a, s); c = Transpose<perm=[0,2,1]>(b); "
        "t = Expand(token, ts); d = Concat<axis=1>(t, c); e = Add(d, position); "
        "f = MatMul(e, w2); g = Gather<axis=1>(f, zero); y = MatMul(g, w3)",
        groups=(8, 8),
    ),
    "detector_head": Case(
        "float[2,4,6,6] x | float[8,4,3,3] w1, float[8,8,3,3] w2, float[18,8,1,1] w3, "
        "int64[5] s = {2, 3, 6, 4, 4}, int64[3] t = {2, -1, 6} |"
        "a = Conv(x, w1); b = Conv<pads=[1,1,1,1]>(a, w2); c = Conv(b, w3); "
        "d = Reshape(c, s); e = Transpose<perm=[0,1,3,4,2]>(d); f = Sigmoid(e); "
        "y = Reshape(f, t)",
        groups=(8, 8),
    ),
    "distribution_focal": Case(
        "float[2,4,3,3] x | float[8,4,1,1] w1, float[64,8,1,1] w2, int64[4] s = {2, 4, 16, "
        "9}, float[1,16,1,1] w3, int64[3] t = {2, 4, 9} |"
        "a = Conv(x, w1); b = Conv(a, w2); c = Reshape(b, s); "
        "d = Transpose<perm=[0,2,1,3]>(c); p = Softmax<axis=1>(d); e = Conv(p, w3); "
        "y = Reshape(e, t)",
        groups=(8,),
    ),
    "feature_pyramid": Case(
        "float[1,4,8,8] x | float[8,4,3,3] w1, float[12,8,3,3] w2, float[6,12,1,1] w3, "
        "float[6,8,1,1] w4, float[5,12,1,1] w5, float[4] sc = {1, 1, 2, 2} |"
        "a = Conv<pads=[1,1,1,1]>(x, w1); b = Conv<strides=[2,2], pads=[1,1,1,1]>(a, w2); "
        'c = Conv(b, w3); u = Resize<mode="nearest">(c, , sc); d = Conv(a, w4); '
        "e = Concat<axis=1>(u, d); y = Conv(e, w5)",
        groups=(6, 6, 8, 12),
    ),
    "unet": Case(
        "float[1,4,8,8] x | float[8,4,3,3] w1, float[12,8,3,3] w2, float[12,8,2,2] w3, "
        "float[5,16,1,1] w4 |"
        "a = Conv<pads=[1,1,1,1]>(x, w1); m = MaxPool<kernel_shape=[2,2], strides=[2,2]>(a); "
        "b = Conv<pads=[1,1,1,1]>(m, w2); u = ConvTranspose<strides=[2,2]>(b, w3); "
        "c = Concat<axis=1>(u, a); y = Conv(c, w4)",
        groups=(8, 8, 12),
    ),
    "capsules_by_norm": Case(
        (
            "float[2,4,6,6] x | float[24,4,1,1] w1, int64[5] s = {2, 6, 4, 6, 6}, "
            "float[5,6,1,1] w2 | a = Conv(x, w1); b = Reshape(a, s); "
            "n = ReduceL2<axes=[2], keepdims=0>(b); y = Conv(n, w2)"
        ),
        groups=(4, 6),
    ),
    "bilinear": Case(
        "float[2,4] x | float[4,6] w1, float[4,8] w2, int64[1] one = {1}, "
        "int64[1] two = {2}, int64[2] s = {2, 48}, float[48,5] w3 |"
        "a = MatMul(x, w1); b = MatMul(x, w2); c = Unsqueeze(a, two); d = Unsqueeze(b, one); "
        "e = Mul(c, d); f = Reshape(e, s); y = MatMul(f, w3)",
        groups=(6, 8),
    ),
    "gram_matrix": Case(
        "float[2,4,6,6] x | float[8,4,1,1] w1, int64[3] s = {2, 8, 36}, int64[1] one = {1}, "
        "float[8,5] w2 |"
        "a = Conv(x, w1); b = Reshape(a, s); c = Transpose<perm=[0,2,1]>(b); "
        "g = MatMul(b, c); h = MatMul(g, w2); y = ReduceSum<keepdims=0>(h, one)",
        groups=(8,),
    ),
    "tied_embedding": Case(
        "int64[2,5] t | float[10,8] w1, float[8,8] w2 | a = Gather(w1, t); "
        "b = MatMul(a, w2); c = Add(a, b); d = Transpose<perm=[1,0]>(w1); y = MatMul(c, d)"
    ),
    "mixer_token_mixing": Case(
        (
            "float[2,6,4] x | float[4,8] w1, float[6,10] w2, float[10,6] w3, float[8,5] w4 | "
            "a = MatMul(x, w1); t = Transpose<perm=[0,2,1]>(a); b = MatMul(t, w2); r = Relu(b); "
            "c = MatMul(r, w3); u = Transpose<perm=[0,2,1]>(c); d = Add(a, u); y = MatMul(d, w4)"
        ),
        groups=(8, 10),
    ),
    "flatten_after_pool": Case(
        (
            "float[2,4,6,6] x | float[8,4,3,3] w1, float[32,6] w2, float[6,5] w3 | "
            "a = Conv(x, w1); p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(a); f = Flatten(p); "
            "g = Gemm(f, w2); y = Gemm(g, w3)"
        ),
        groups=(6, 8),
    ),
    "squeeze_net_fire": Case(
        (
            "float[2,4,6,6] x | float[3,4,1,1] w1, float[6,3,1,1] w2, float[8,3,3,3] w3, "
            "float[5,14,1,1] w4 | s = Conv(x, w1); a = Conv(s, w2); "
            "b = Conv<pads=[1,1,1,1]>(s, w3); c = Concat<axis=1>(a, b); r = Relu(c); "
            "y = Conv(r, w4)"
        ),
        groups=(3, 6, 8),
    ),
    "channel_attention_by_convolution": Case(
        "float[2,4,6,6] x | float[8,4,1,1] w1, float[1,1,3] w2, int64[1] m1 = {-1}, "
        "int64[1] m2 = {-1}, float[5,8,1,1] w3 | a = Conv(x, w1); g = GlobalAveragePool(a); "
        "s = Squeeze(g, m1); t = Transpose<perm=[0,2,1]>(s); c = Conv<pads=[1,1]>(t, w2); "
        "u = Transpose<perm=[0,2,1]>(c);"
        "v = Unsqueeze(u, m2); p = Sigmoid(v); m = Mul(a, p); y = Conv(m, w3)",
        groups=(),
    ),
    "split_attention": Case(
        "float[2,4,6,6] x | float[16,4,1,1] w1, int64[5] s = {2, 2, 8, 6, 6}, "
        "int64[1] one = {1}, float[4,8,1,1] w2, float[16,4,1,1] w3, int64[4] t = {2, 1, 2, "
        "8}, int64[2] u = {2, 16}, int64[5] z = {2, 2, 8, 1, 1}, float[5,8,1,1] w4 |"
        "a = Conv(x, w1); b = Reshape(a, s); c = ReduceSum<keepdims=0>(b, one); "
        "g = GlobalAveragePool(c); h = Conv(g, w2); i = Conv(h, w3); j = Reshape(i, t); "
        "k = Transpose<perm=[0,2,1,3]>(j); p = Softmax<axis=1>(k); q = Reshape(p, u);"
        "r = Reshape(q, z); m = Mul(b, r); o = ReduceSum<keepdims=0>(m, one); y = Conv(o, w4)",
        opset=13,
    ),
}
