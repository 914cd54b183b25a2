"""Graphs of operators on sequences, of selections and of attention with caches."""

from __future__ import annotations

from graphs import Case, between, tokens

_ROTARY = (
    "float[2,5,6] x, int64[2,5] p | float[6,{n}] w1, float[9,{a}] c, float[9,{a}] s, "
    "float[{n},3] w2 | a = MatMul(x, w1); b = {op}<{more}>(a, {operands}); y = MatMul(b, w2)"
)
_ROTARY_4D = (
    "float[2,5,6] x, int64[2,5] p | float[6,{n}] w1, float[9,{a}] c, float[9,{a}] s, "
    "float[{n},3] w2, int64[4] t = {{0,0,{h},{d}}}, int64[3] u = {{0,0,-1}} | "
    "m = MatMul(x, w1); r = Reshape(m, t); a = Transpose<perm=[0,2,1,3]>(r); "
    "e = {op}<{more}>(a, {operands}); f = Transpose<perm=[0,2,1,3]>(e); b = Reshape(f, u); "
    "y = MatMul(b, w2)"
)


def rotary(
    more: str,
    channels: int,
    angles: int,
    groups: tuple[int, ...],
    contrib: bool = False,
    heads: int = 0,
) -> Case:
    """Return a rotation of `channels`, with heads as an axis of their own if `heads` is given."""
    op, operands = (
        ("com.microsoft.RotaryEmbedding", "p, c, s")
        if contrib
        else (
            "RotaryEmbedding",
            "c, s, p",
        )
    )
    text = _ROTARY_4D if heads else _ROTARY
    size = channels // heads if heads else 0
    return Case(
        text.format(
            n=channels, a=angles, op=op, more=more, operands=operands, h=heads, d=size
        ).replace("<>", ""),
        opset=23,
        groups=groups,
    )


def three(
    op: str,
    more: str,
    widths: tuple[int, int, int, int],
    inputs: str = "",
    groups: tuple[int, ...] | None = None,
    extra: str = "",
    weights: str = "",
    steps: int = 5,
    opset: int = 20,
    outputs: str = "b",
) -> Case:
    """Return attention from a product each for queries, keys and values to a fourth product."""
    q, k, v, o = widths
    return Case(
        f"float[2,{steps},6] x{extra} | float[6,{q}] wq, float[6,{k}] wk, float[6,{v}] wv, "
        f"float[{o},3] wo{weights} | q = MatMul(x, wq); k = MatMul(x, wk); v = MatMul(x, wv); "
        f"{outputs} = {op}<{more}>(q, k, v{inputs}); y = MatMul(b, wo)",
        opset=opset,
        groups=groups,
    )


def conv(
    op: str, more: str, inputs: str, weights: str, shape: str = "2,4,7", extra: str = ""
) -> Case:
    """Return a causal convolution of 8 channels between two products along axis 1."""
    rank = shape.count(",") - 1
    ones = ",1" * rank
    return Case(
        f"float[{shape}] x{extra} | float[8,4{ones}] w1, float[5,8{ones}] w2, {weights} | "
        f"a = Conv(x, w1); b, s = {op}{more}(a, {inputs}); y = Conv(b, w2)",
        opset=27,
        groups=(8,),
    )


_GQA = "com.microsoft.GroupQueryAttention"
_LENGTHS = ", int32[2] n = {4, 4}, int32 t = {5}"
_DMHA = "com.microsoft.DecoderMaskedMultiHeadAttention"
_CAUSAL, _CAUSAL_CONTRIB = "CausalConvWithState", "com.microsoft.CausalConvWithState"
_LINEAR = "q_num_heads=4, kv_num_heads=2"
_STEPS = "int64[2] l = {4, 2}"
_UNPOOL = (
    "p, i = MaxPool<kernel_shape=[2,2], strides=[2,2]{order}>(a); r = Relu(p); "
    "b = MaxUnpool<kernel_shape=[2,2], strides=[2,2]>(r, i{size})"
)

NEW_ROWS: dict[str, Case] = {
    # sequences
    "ReverseSequence": tokens(
        "t = Transpose<perm=[1,0,2]>(a); r = ReverseSequence(t, l); b = Transpose<perm=[1,0,2]>(r)",
        _STEPS,
    ),
    "ReverseSequence_batch_first": tokens(
        "b = ReverseSequence<time_axis=1, batch_axis=0>(a, l)", _STEPS
    ),
    "ReverseSequence_along_channels": tokens(
        "t = Transpose<perm=[0,2,1]>(a); r = ReverseSequence<time_axis=1, batch_axis=0>(t, l); "
        "b = Transpose<perm=[0,2,1]>(r)",
        _STEPS,
        groups=(),
    ),
    "ReverseSequence_per_channel": tokens(
        "t = Transpose<perm=[2,1,0]>(a); r = ReverseSequence<time_axis=1, batch_axis=0>(t, l); "
        "b = Transpose<perm=[2,1,0]>(r)",
        "int64[8] l = {1,2,3,4,5,6,5,4}",
    ),
    "CausalConvWithState": conv(_CAUSAL, "", "k", "float[8,1,3] k"),
    "CausalConvWithState_bias": conv(
        _CAUSAL, '<activation="silu">', "k, c", "float[8,1,3] k, float[8] c"
    ),
    "CausalConvWithState_past": conv(_CAUSAL, "", "k, , p", "float[8,1,3] k, float[2,8,2] p"),
    "CausalConvWithState_contrib": conv(
        _CAUSAL_CONTRIB, "<dilation=2>", "k, c, p", "float[8,1,3] k, float[8] c, float[2,8,4] p"
    ),
    "CausalConvWithState_channels_last": tokens(
        "b, s = com.microsoft.CausalConvWithState<channels_last=1>(a, k, c, p)",
        "float[8,1,3] k, float[8] c, float[2,2,8] p",
    ),
    "CausalConvWithState_more_channels_last": tokens(
        "r = Reshape(a, t); e, s = com.microsoft.CausalConvWithState<channels_last=1>(r, k, c); "
        "b = Reshape(e, u)",
        "float[8,1,3] k, float[8] c, int64[4] t = {0,0,2,4}, int64[3] u = {0,0,8}",
        groups=(2, 4),
    ),
    # rotations
    "RotaryEmbedding": rotary("num_heads=3", 24, 4, (3, 4)),
    "RotaryEmbedding_interleaved": rotary("num_heads=3, interleaved=1", 24, 4, (3, 4)),
    "RotaryEmbedding_part": rotary("num_heads=3, rotary_embedding_dim=4", 24, 2, (2, 3, 4)),
    "RotaryEmbedding_part_interleaved": rotary(
        "num_heads=3, interleaved=1, rotary_embedding_dim=6", 24, 3, (2, 3, 3)
    ),
    "RotaryEmbedding_4D": rotary("", 24, 4, (3, 4), heads=3),
    "RotaryEmbedding_4D_part": rotary("rotary_embedding_dim=4", 24, 2, (2, 3, 4), heads=3),
    "RotaryEmbedding_contrib": rotary("", 24, 4, (3, 4), contrib=True),
    "RotaryEmbedding_contrib_interleaved": rotary("interleaved=1", 24, 4, (3, 4), contrib=True),
    "RotaryEmbedding_contrib_part": rotary(
        "num_heads=3, rotary_embedding_dim=4", 24, 2, (2, 3, 4), contrib=True
    ),
    "RotaryEmbedding_contrib_4D": rotary("", 24, 4, (3, 4), contrib=True, heads=3),
    "RotaryEmbedding_contrib_4D_part": rotary(
        "num_heads=3, rotary_embedding_dim=4", 24, 2, (2, 3, 4), contrib=True, heads=3
    ),
    "RotaryEmbedding_angles_per_position": Case(
        "float[2,5,6] x | float[6,24] w1, float[2,5,4] c, float[2,5,4] s, float[24,3] w2 | "
        "a = MatMul(x, w1); b = RotaryEmbedding<num_heads=3>(a, c, s); y = MatMul(b, w2)",
        opset=23,
        groups=(3, 4),
    ),
    "RotaryEmbedding_of_queries_and_keys": Case(
        "float[2,5,6] x, int64[2,5] p | float[6,24] w1, float[6,24] w3, float[9,4] c, "
        "float[9,4] s, float[24,3] w2, float[24,2] w4 | q = MatMul(x, w1); k = MatMul(x, w3); "
        "a = RotaryEmbedding<num_heads=3>(q, c, s, p); "
        "b = RotaryEmbedding<num_heads=3, interleaved=1>(k, c, s, p); "
        "h = MatMul(a, w2); i = MatMul(b, w4); y = Concat<axis=2>(h, i)",
        opset=23,
        groups=(3, 3, 4, 4),
    ),
    # attention
    "GroupQueryAttention": three(
        _GQA,
        "num_heads=4, kv_num_heads=2",
        (32, 16, 16, 32),
        ", , , n, t",
        (2, 2),
        weights=_LENGTHS,
    ),
    "GroupQueryAttention_scale": three(
        _GQA,
        "num_heads=2, kv_num_heads=2, scale=0.3, softcap=2.0, smooth_softmax=1",
        (16, 16, 16, 16),
        ", , , n, t",
        (2,),
        weights=_LENGTHS,
    ),
    "GroupQueryAttention_rotary": three(
        _GQA,
        "num_heads=4, kv_num_heads=2, do_rotary=1",
        (64, 32, 32, 64),
        ", , , n, t, c, s",
        (2, 2),
        weights=_LENGTHS + ", float[9,8] c, float[9,8] s",
    ),
    "GroupQueryAttention_bias": three(
        _GQA,
        "num_heads=4, kv_num_heads=2",
        (32, 16, 16, 32),
        ", , , n, t, , , , m, h",
        (2, 2),
        weights=_LENGTHS + ", float[1,4,5,5] m, float[4] h",
    ),
    "GroupQueryAttention_past": three(
        _GQA,
        "num_heads=4, kv_num_heads=2",
        (32, 16, 16, 32),
        ", e, f, n, t",
        (2, 2),
        steps=1,
        weights=", int32[2] n = {3, 3}, int32 t = {4}, float[2,2,3,8] e, float[2,2,3,8] f",
        outputs="b, g, h",
    ),
    "GroupQueryAttention_packed": Case(
        "float[2,5,6] x | float[6,64] wq, float[32,3] wo, int32[2] n = {4, 4}, int32 t = {5} | "
        "q = MatMul(x, wq); "
        "b = com.microsoft.GroupQueryAttention<num_heads=4, kv_num_heads=2>(q, , , , , n, t); "
        "y = MatMul(b, wo)",
        opset=20,
        groups=(2, 2),
    ),
    "DecoderMaskedMultiHeadAttention": three(
        _DMHA, "num_heads=2, scale=0.4", (8, 8, 8, 8), "", (2, 4), steps=1
    ),
    "DecoderMaskedMultiHeadAttention_own_scale": three(
        _DMHA, "num_heads=2", (8, 8, 8, 8), ", m", (2,), steps=1, weights=", int32[2,1] m = {1,1}"
    ),
    "LinearAttention": three(
        "LinearAttention",
        _LINEAR + ', update_rule="linear"',
        (16, 8, 6, 12),
        "",
        (2, 2, 3),
        opset=27,
        outputs="b, z",
    ),
    "LinearAttention_scale": three(
        "LinearAttention",
        _LINEAR + ', scale=0.5, update_rule="linear"',
        (16, 8, 6, 12),
        ", s",
        (2, 2, 3, 4),
        weights=", float[2,2,4,3] s",
        opset=27,
        outputs="b, z",
    ),
    "LinearAttention_gated": three(
        "LinearAttention",
        _LINEAR + ', scale=0.5, update_rule="gated"',
        (16, 8, 6, 12),
        ", , g",
        (2, 2, 3, 4),
        extra=", float[2,5,1] z",
        weights=", float[1,8] wg",
        opset=27,
        outputs="g = MatMul(z, wg); b, u",
    ),
    "LinearAttention_gated_heads": three(
        "LinearAttention",
        _LINEAR + ', scale=0.5, update_rule="gated"',
        (16, 8, 6, 12),
        ", , g",
        (2, 2, 3, 4),
        extra=", float[2,5,1] z",
        weights=", float[1,2] wg",
        opset=27,
        outputs="g = MatMul(z, wg); b, u",
    ),
    "LinearAttention_delta": three(
        "LinearAttention",
        _LINEAR + ', scale=0.5, update_rule="delta"',
        (16, 8, 6, 12),
        ", , , g",
        (2, 2, 3, 4),
        weights=", float[2,5,1] g",
        opset=27,
        outputs="b, u",
    ),
    "LinearAttention_contrib": three(
        "com.microsoft.LinearAttention",
        _LINEAR + ', scale=0.5, update_rule="gated_delta"',
        (16, 8, 6, 12),
        ", , d, g",
        (2, 2, 3, 4),
        weights=", float[2,5,2] d, float[2,5,2] g",
        outputs="b, u",
    ),
    # selection
    "TopK": between("b, i = TopK<axis=3>(a, k)", "int64[1] k = {2}"),
    "TopK_smallest": between("b, i = TopK<axis=-2, largest=0, sorted=1>(a, k)", "int64[1] k = {3}"),
    "TopK_old": between("b, i = TopK<axis=2, k=2>(a)", opset=9),
    "TopK_indices": between(
        "v, i = TopK<axis=2>(a, k); c = Cast<to=1>(i); b = Mul(v, c)", "int64[1] k = {2}"
    ),
    "TopK_channels": between("b, i = TopK<axis=1>(a, k)", "int64[1] k = {8}", groups=()),
    "Scatter": between(
        "r = Relu(a); b = Scatter<axis=2>(a, i, r)",
        "int64[2,8,4,4] i = {" + ",".join(str(k // 4 % 4) for k in range(256)) + "}",
        opset=10,
    ),
    "Scatter_negative_axis": between(
        "r = Relu(a); b = ScatterElements<axis=-1>(a, i, r)",
        "int64[2,8,4,4] i = {" + ",".join(str(k % 4) for k in range(256)) + "}",
    ),
    "TensorScatter": tokens(
        "r = Relu(a); h = Slice(r, z, one, one); b = TensorScatter(a, h, i)",
        "int64[1] z = {0}, int64[1] one = {1}, int64[2] i = {3, 5}",
        opset=24,
    ),
    "Compress": between("b = Compress<axis=2>(a, k)", "bool[4] k = {1,0,1,1}"),
    "Compress_channels": Case(
        "float[2,4,6,6] x | float[8,4,3,3] w1, float[8] b1, float[5,6,1,1] w2, "
        "bool[8] k = {1,0,1,1,1,1,1,0} | a = Conv(x, w1, b1); b = Compress<axis=-3>(a, k); "
        "y = Conv(b, w2)",
        groups=(2, 6),
    ),
    "Compress_shorter_condition": Case(
        "float[2,4,6,6] x | float[8,4,3,3] w1, float[5,2,1,1] w2, bool[3] k = {1,0,1} | "
        "a = Conv(x, w1); b = Compress<axis=1>(a, k); y = Conv(b, w2)",
        groups=(2, 6),
    ),
    "Compress_computed": Case(
        "float[2,4,6,6] x, bool[4] k | float[8,4,3,3] w1, float[5,8,1,1] w2 | "
        "a = Conv(x, w1); b = Compress<axis=2>(a, k); y = Conv(b, w2)",
        groups=(8,),
    ),
    "Compress_flattened": Case(
        "float[2,4,6,6] x | float[8,4,3,3] w1, bool[6] k = {1,0,1,1,1,1} | "
        "a = Conv(x, w1); y = Compress(a, k)",
        groups=(),
    ),
    "OneHot": between(
        "m = ArgMax<axis=2, keepdims=0>(a); h = OneHot<axis=-2>(m, d, v); b = Mul(a, h)",
        "int64 d = {4}, float[2] v = {0.5, 2}",
    ),
    "OneHot_last": between(
        "m = ArgMax<axis=3, keepdims=0>(a); h = OneHot(m, d, v); b = Add(a, h)",
        "int64[1] d = {4}, float[2] v = {0.5, 2}",
    ),
    "OneHot_of_channels": between(
        "m = ArgMax<axis=1>(a); q = Squeeze(m, one); h = OneHot<axis=1>(q, d, v); b = Mul(a, h)",
        "int64[1] one = {1}, int64 d = {8}, float[2] v = {0, 1}",
        groups=(),
    ),
    "CenterCropPad": between(
        "b = CenterCropPad<axes=[2,-1]>(a, s)", "int64[2] s = {2,7}", opset=18
    ),
    "CenterCropPad_all_axes": between(
        "b = CenterCropPad(a, s)", "int64[4] s = {2,8,3,5}", opset=18
    ),
    "CenterCropPad_channels": Case(
        "float[2,4,6,6] x | float[8,4,3,3] w1, float[5,6,1,1] w2, int64[1] s = {6} | "
        "a = Conv(x, w1); b = CenterCropPad<axes=[-3]>(a, s); y = Conv(b, w2)",
        opset=18,
        groups=(),
    ),
    "Trilu": between("b = Trilu(a)"),
    "Trilu_offset": between("b = Trilu<upper=0>(a, k)", "int64 k = {1}"),
    "Trilu_channels": tokens("b = Trilu(a)", groups=()),
    "CumProd": between("b = CumProd<exclusive=1>(a, k)", "int64 k = {-1}", opset=26),
    # pooling
    "MaxUnpool": between(_UNPOOL.format(order="", size="")),
    "MaxUnpool_column_major": between(_UNPOOL.format(order=", storage_order=1", size="")),
    "MaxUnpool_size": between(_UNPOOL.format(order="", size=", s"), "int64[4] s = {2,8,4,4}"),
    "MaxUnpool_other_size": between(
        _UNPOOL.format(order="", size=", s"), "int64[4] s = {2,8,5,5}", groups=()
    ),
    "MaxUnpool_indices_used": between(
        _UNPOOL.format(order="", size="").replace("b =", "u =")
        + "; f = Cast<to=1>(i); m = ReduceMean(f); b = Mul(u, m)",
        groups=(),
    ),
    "MaxRoiPool": Case(
        "float[2,4,6,6] x | float[8,4,3,3] w1, float[2,5] r = {0,0,0,3,3,1,1,1,3,2}, "
        "float[5,8,1,1] w2 | a = Conv(x, w1); "
        "b = MaxRoiPool<pooled_shape=[2,2], spatial_scale=1.0>(a, r); y = Conv(b, w2)",
        groups=(8,),
    ),
    # random numbers
    "RandomNormalLike": between("r = RandomNormalLike(a); b = Add(a, r)"),
    "RandomUniformLike": between("r = RandomUniformLike<low=-1.0>(a); b = Mul(a, r)"),
    "Bernoulli": between("s = Sigmoid(a); r = Bernoulli(s); b = Mul(a, r)"),
    # sequences of tensors
    "SplitToSequence": Case(
        "float[2,4,6,6] x | float[8,4,3,3] w1, float[5,3,1,1] w2, float[5,2,1,1] w3, "
        "int64[3] s = {3,3,2}, int64 i = {0}, int64 j = {-1} | a = Conv(x, w1); "
        "q = SplitToSequence<axis=1>(a, s); b = SequenceAt(q, i); c = SequenceAt(q, j); "
        "d = Conv(b, w2); e = Conv(c, w3); y = Add(d, e)",
        groups=(2, 3, 3),
    ),
    "SplitToSequence_of_one_size": Case(
        "float[2,4,6,6] x | float[8,4,3,3] w1, float[5,3,1,1] w2, int64 s = {3}, int64 i = {1} | "
        "a = Conv(x, w1); q = SplitToSequence<axis=-3>(a, s); b = SequenceAt(q, i); "
        "y = Conv(b, w2)",
    ),
    "SplitToSequence_squeezed": Case(
        "float[2,4,6,6] x | float[8,4,3,3] w1, float[8,5] w2, int64 i = {2} | "
        "a = Conv(x, w1); q = SplitToSequence<axis=2, keepdims=0>(a); b = SequenceAt(q, i); "
        "t = Transpose<perm=[0,2,1]>(b); y = MatMul(t, w2)",
        opset=12,
        groups=(8,),
    ),
    "SequenceConstruct": between(
        "r = Relu(a); q = SequenceConstruct(a, r); e = ConcatFromSequence<axis=3>(q); "
        "b = Identity(e)"
    ),
    "SequenceConstruct_new_axis": between(
        "r = Relu(a); q = SequenceConstruct(a, r); "
        "e = ConcatFromSequence<axis=1, new_axis=1>(q); b = ReduceSum<keepdims=0>(e, one)",
        "int64[1] one = {1}",
    ),
    # linear algebra
    "Det": Case(
        "float[2,4,6,6] x | float[8,4,3,3] w1, float[8,5] w2 | a = Conv(x, w1); d = Det(a); "
        "y = MatMul(d, w2)",
        groups=(8,),
    ),
    "DFT": between(
        "u = Unsqueeze(a, e); f = DFT<axis=2>(u); g = ReduceSum<keepdims=0>(f, e); b = Add(a, g)",
        "int64[1] e = {-1}",
    ),
    "DFT_input": between(
        "u = Unsqueeze(a, e); f = DFT<inverse=1>(u, , k); b = ReduceSum<keepdims=0>(f, e)",
        "int64[1] e = {-1}, int64 k = {-2}",
        opset=20,
    ),
}
# onnxruntime has no kernel of these: onnx's reference implementation evaluates them
BY_REFERENCE: dict[str, Case] = {
    "SwiGLU": between("g = Relu(a); b = SwiGLU<alpha=1.5>(a, g)", opset=28),
    "BitCast": between("c = BitCast<to=6>(a); b = BitCast<to=1>(c)", opset=26),
}
