"""Graphs of operators that gather or scatter by index, and of attention with packed weights."""

from __future__ import annotations

from graphs import Case, between, tokens

_SELF = (
    "float[2,5,4] x | float[4,6] w0, float[6,{n}] w1, float[{n}] b1, {extra}float[{o},7] w2 | "
    "a = MatMul(x, w0); b = com.microsoft.Attention<num_heads=3{more}>(a, w1, b1{inputs}); "
    "y = MatMul(b, w2)"
)
_GRID = (
    "; ".join(f"e{i} = Expand(p{i}, t); u{i} = Unsqueeze(e{i}, z)" for i in range(3))
    + "; i = Concat<axis=-1>(u0, u1, u2)"
)


def assigned(
    part: tuple[range, range], groups: tuple[int, ...] | None, size: int = 4, width: int = 8
) -> Case:
    """`a[:, positions, channels] = relu(another product)`, as torch exports it.

    The indices are given along every axis; more than 4,096 are not folded.
    """
    (m, n), (positions, channels) = map(len, part), (",".join(map(str, r)) for r in part)
    return Case(
        f"float[2,{size},4] x, float[2,{m},3] c | "
        f"float[4,{width}] w1, float[3,{n}] w3, float[{width},5] w2, "
        f"int64[3] t = {{2,{m},{n}}}, int64[1] z = {{-1}}, "
        f"int64[2,1,1] p0 = {{0,1}}, int64[{m},1] p1 = {{{positions}}}, "
        f"int64[{n}] p2 = {{{channels}}} |"
        f"a = MatMul(x, w1); {_GRID}; m = MatMul(c, w3); r = Relu(m); "
        "b = ScatterND(a, i, r); y = MatMul(b, w2)",
        groups=groups,
    )


def packed(
    more: str, inputs: str = "", extra: str = "", groups: tuple[int, ...] = (3, 4, 6)
) -> Case:
    """Return attention of three heads of four dimensions."""
    return Case(_SELF.format(n=36, o=12, more=more, inputs=inputs, extra=extra), groups=groups)


INDEXED: dict[str, Case] = {
    "GatherND": tokens("b = GatherND(a, i)", "int64[3,2] i = {0,5,1,2,0,0}"),
    "GatherND_batch": tokens("b = GatherND<batch_dims=1>(a, i)", "int64[2,3,1] i = {5,2,0,1,1,4}"),
    "GatherND_batched_channels": Case(
        "float[2,6,4] x | float[4,8] w1, int64[8,3,2] i = {"
        + ",".join(str(k % 2 if k % 2 == 0 else k % 6) for k in range(48))
        + "}, float[5,8] w2 |"
        "a = MatMul(x, w1); t = Transpose<perm=[2,0,1]>(a); "
        "b = GatherND<batch_dims=1>(t, i); y = MatMul(w2, b)",
        groups=(8,),
    ),
    "GatherND_channels_picked": Case(
        (
            "float[2,6,4] x | float[4,8] w1, int64[4,3] i = {0,5,1,1,2,7,0,0,0,1,1,1}, "
            "float[4,5] w2 | a = MatMul(x, w1); b = GatherND(a, i); y = MatMul(b, w2)"
        ),
        groups=(),
    ),
    "GatherND_dynamic": Case(
        (
            "float[2,6,4] x, int64[n,2] i | float[4,8] w1, float[8,5] w2 | a = MatMul(x, w1); "
            "b = GatherND(a, i); y = MatMul(b, w2) | float[n,5] y"
        ),
        groups=(8,),
    ),
    "ScatterND": tokens(
        "c = MatMul(z, w3); b = ScatterND(a, i, c)",
        "int64[3,2] i = {0,5,1,2,0,0}, float[3,4] z, float[4,8] w3",
        groups=(4, 8),
    ),
    "ScatterND_add": tokens(
        'r = Relu(a); s = GatherND(r, i); b = ScatterND<reduction="add">(a, i, s)',
        "int64[3,2] i = {0,5,1,2,0,0}",
        opset=18,
    ),
    "ScatterND_to_positions": assigned((range(1, 3), range(8)), (8,)),
    "ScatterND_to_last_positions": assigned((range(-2, 0), range(8)), (8,)),
    "ScatterND_to_channels": assigned((range(4), range(2, 6)), (2, 2, 4, 4)),
    "ScatterND_to_corner": assigned((range(2), range(3, 8)), (3, 5)),
    "ScatterND_to_every_place": assigned((range(4), range(8)), (8,)),
    "ScatterND_to_many_places": assigned((range(1, 33), range(80)), (80,), size=34, width=80),
    "ScatterND_to_places_in_no_order": assigned((range(2, 0, -1), range(8)), ()),
    "ScatterND_into_zeros": tokens(
        "s = GatherND(a, i); b = ScatterND(k, i, s)", "int64[3,2] i = {0,5,1,2,0,0}, float[2,6,8] k"
    ),
    "GatherElements": between(
        "b = GatherElements<axis=3>(a, i)",
        "int64[2,8,4,2] i = {" + ",".join(str(k * k % 4) for k in range(128)) + "}",
    ),
    "GatherElements_sorted": tokens(
        (
            "v, i = TopK<axis=1>(x, k); m = ReduceMax<axes=[2]>(i); e = Expand(m, s); "
            "b = GatherElements<axis=1>(a, e)"
        ),
        "int64[1] k = {3}, int64[3] s = {2, 3, 8}",
    ),
    "ScatterElements": between(
        "r = Relu(a); b = ScatterElements<axis=2>(a, i, r)",
        "int64[2,8,4,4] i = {" + ",".join(str(k // 4 % 4) for k in range(256)) + "}",
    ),
    "ScatterElements_fewer_channels": between(
        "p, r = Split<axis=1>(a, h); b = ScatterElements<axis=3>(a, i, p)",
        "int64[2] h = {4, 4}, int64[2,4,4,4] i = {"
        + ",".join(str(k % 4) for k in range(128))
        + "}",
        groups=(),
    ),
    "Col2Im": Case(
        (
            "float[2,4,9] x | float[32,4,1] w1, int64[2] s = {4, 4}, int64[2] k = {2, 2}, "
            "float[5,8,1,1] w2 | a = Conv(x, w1); b = Col2Im(a, s, k); y = Conv(b, w2)"
        ),
        opset=18,
        groups=(8,),
    ),
    "Col2Im_strided": Case(
        (
            "float[2,4,12] x | float[24,4,1] w1, int64[2] s = {4, 5}, int64[2] k = {3, 2}, "
            "float[5,4,1,1] w2 | a = Conv(x, w1); b = Col2Im<pads=[0,1,1,0], strides=[1,1]>(a, "
            "s, k); y = Conv(b, w2)"
        ).replace("float[2,4,12]", "float[2,4,15]"),
        opset=18,
        groups=(4,),
    ),
    "packed_attention": packed(", scale=0.5"),
    "packed_attention_own_scale": packed(""),
    "packed_attention_sizes": packed(", scale=0.5, qkv_hidden_sizes=[12,12,12]"),
    "packed_attention_causal": packed(", scale=0.5, unidirectional=1"),
    "packed_attention_mask": packed(", scale=0.5", ", m", "int32[2,5] m = {1,1,1,0,0,1,1,1,1,1}, "),
    "packed_attention_lengths": packed(", scale=0.5", ", m", "int32[2] m = {3, 5}, "),
    "packed_attention_position_bias": packed(", scale=0.5", ", , , t", "float[1,3,5,5] t, "),
    "packed_attention_one_bias": packed(", scale=0.5", ", , , t", "float[1,1,5,5] t, "),
    "packed_attention_unequal": Case(
        _SELF.format(
            n=42, o=18, more=", qkv_hidden_sizes=[12,12,18], scale=0.5", inputs="", extra=""
        ),
        groups=(),
    ),
}
