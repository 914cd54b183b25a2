"""Blocks with dynamic sizes: as prunable as with fixed ones, and exact at other sizes as well."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pytest
from graph_laws import plan_of
from graph_text import net

from onnxprune.analysis.factors import refine
from onnxprune.analysis.folded import Folded
from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.walk import analyze
from onnxprune.ir.equations import solve
from onnxprune.ir.io import load
from onnxprune.ir.runtime import Session
from onnxprune.surgery.cut import cut
from onnxprune.surgery.verify import verify
from onnxprune.types import Plan


class Block(NamedTuple):
    """A graph with letters for sizes: `#n` is a number in one variant, a symbol in the other.

    Attributes
    ----------
    text
        The graph.
    sizes
        Size per letter; sizes that weights fix are not changed.
    groups
        Sizes of the groups.
    fixed
        Letters whose size the graph determines.
    """

    text: str
    sizes: Mapping[str, int]
    groups: tuple[int, ...]
    fixed: str = ""


_SHAPE = (
    "s = Shape(a); n = Gather(s, i0); h = Gather(s, i2); w = Gather(s, i3); "
    "hh = Mul(h, two); ww = Mul(w, two); "
)
_EACH = "int64[1] i0 = {0}, int64[1] i1 = {1}, int64[1] i2 = {2}, int64[1] i3 = {3}"
_IMAGE = {"n": 2, "h": 4, "w": 6}

BLOCKS: dict[str, Block] = {
    "depth_to_space": Block(
        "float[#n,3,#h,#w] x | float[24,3,1,1] w1, float[5,6,3,3] w2 | a = Conv(x, w1); "
        "b = DepthToSpace<blocksize=2>(a); y = Conv(b, w2) | float[#n,5,p,q] y",
        _IMAGE,
        (6,),
    ),
    "depth_to_space_crd": Block(
        "float[#n,3,#h,#w] x | float[24,3,1,1] w1, float[5,6,3,3] w2 | a = Conv(x, w1); "
        'b = DepthToSpace<blocksize=2,mode="CRD">(a); y = Conv(b, w2) | float[#n,5,p,q] y',
        _IMAGE,
        (6,),
    ),
    "space_to_depth": Block(
        "float[#n,3,#h,#w] x | float[6,3,1,1] w1, float[5,24,1,1] w2 | a = Conv(x, w1); "
        "b = SpaceToDepth<blocksize=2>(a); y = Conv(b, w2) | float[#n,5,p,q] y",
        _IMAGE,
        (6,),
    ),
    "pixel_shuffle_by_views": Block(
        f"float[#n,3,#h,#w] x | float[24,3,1,1] w1, float[5,6,3,3] w2, {_EACH}, "
        "int64[1] two = {2}, int64[1] six = {6} | a = Conv(x, w1); "
        + _SHAPE
        + "t = Concat<axis=0>(n, six, two, two, h, w); b = Reshape(a, t); "
        "c = Transpose<perm=[0,1,4,2,5,3]>(b); u = Concat<axis=0>(n, six, hh, ww); "
        "d = Reshape(c, u); y = Conv(d, w2) | float[#n,5,p,q] y",
        _IMAGE,
        (6,),
    ),
    "channel_shuffle": Block(
        f"float[#n,3,#h,#w] x | float[12,3,1,1] w1, float[12,4,1,1] w2, float[5,12,1,1] w3, {_EACH}"
        ", int64[1] g = {3}, int64[1] c = {12}, int64[1] rest = {-1} | a = Conv(x, w1); "
        "s = Shape(a); n = Gather(s, i0); h = Gather(s, i2); w = Gather(s, i3); "
        "t = Concat<axis=0>(n, g, rest, h, w); b = Reshape(a, t); "
        "d = Transpose<perm=[0,2,1,3,4]>(b); u = Concat<axis=0>(n, c, h, w); e = Reshape(d, u); "
        "f = Conv<group=3>(e, w2); y = Conv(f, w3) | float[#n,5,p,q] y",
        _IMAGE,
        (3, 4, 4),
    ),
    # half of the channels merged into the batch, and taken out of it again
    "channels_in_the_batch": Block(
        f"float[#n,3,#h,#w] x | float[12,3,1,1] w1, float[7,6,1,1] w2, float[5,13,1,1] w3, {_EACH}"
        ", int64[1] two = {2}, int64[1] six = {6}, int64[1] rest = {-1}, int64 z = {0}, "
        "int64 one = {1} | a = Conv(x, w1); s = Shape(a); n = Gather(s, i0); "
        "h = Gather(s, i2); w = Gather(s, i3); "
        "m = Mul(n, six); p = Mul(h, w); t = Concat<axis=0>(m, two, p); b = Reshape(a, t); "
        "c = Transpose<perm=[1,0,2]>(b); u = Concat<axis=0>(two, rest, six, h, w); "
        "d = Reshape(c, u); e = Gather<axis=0>(d, z); o = Gather<axis=0>(d, one); f = Conv(e, w2); "
        "g = Concat<axis=1>(f, o); "
        "y = Conv(g, w3) | float[#n,5,p,q] y",
        _IMAGE,
        (6, 7),
    ),
    # (batch heads) length size, as einops writes it
    "heads_in_a_batch_by_products": Block(  # as tf2onnx writes einsum
        "float[#n,#t,4] x | float[4,12] w1, int64[4] split = {0, 0, 3, 4}, int64[2] lead = {0, 1}, "
        "int64[1] two = {2}, int64[1] three = {3}, int64[1] rest = {-1}, int64[3] out = {0, 0, 12},"
        " float[12,7] w2 | a = MatMul(x, w1); b = Reshape(a, split); "
        "c = Transpose<perm=[0,2,1,3]>(b); s = Shape(c); l = Gather(s, lead); "
        "p = ReduceProd<axes=[0]>(l); w = Gather(s, three); h = Concat<axis=0>(p, rest, w); "
        "d = Reshape(c, h); c2 = Transpose<perm=[0,2,3,1]>(b); s2 = Shape(c2); "
        "w2s = Gather(s2, three); h2 = Concat<axis=0>(p, rest, w2s); d2 = Reshape(c2, h2); "
        "z = MatMul(d, d2); e = MatMul(z, d); l2 = Gather(s2, lead); "
        "m = Max(l, l2); q = Gather(s, two); k = Concat<axis=0>(m, q, w); f = Reshape(e, k); "
        "g = Transpose<perm=[0,2,1,3]>(f); i = Reshape(g, out); y = MatMul(i, w2) | "
        "float[#n,#t,7] y",
        {"n": 2, "t": 5},
        (3, 4),
    ),
    "heads_in_the_batch": Block(
        "float[#n,#t,5] x | float[5,12] wq, float[5,12] wk, float[5,12] wv, float[12,7] wo, "
        "int64[1] i0 = {0}, int64[1] i1 = {1}, int64[1] three = {3}, int64[1] four = {4}, "
        "int64[1] all = {12} | s = Shape(x); n = Gather(s, i0); t = Gather(s, i1); "
        "r = Concat<axis=0>(n, t, three, four); m = Mul(n, three); u = Concat<axis=0>(m, t, four); "
        + "".join(
            f"{k} = MatMul(x, w{k}); {k}1 = Reshape({k}, r); "
            f"{k}2 = Transpose<perm=[0,2,1,3]>({k}1); {k}3 = Reshape({k}2, u); "
            for k in "qkv"
        )
        + "kt = Transpose<perm=[0,2,1]>(k3); l = MatMul(q3, kt); p = Softmax<axis=-1>(l); "
        "o = MatMul(p, v3); back = Concat<axis=0>(n, three, t, four); o1 = Reshape(o, back); "
        "o2 = Transpose<perm=[0,2,1,3]>(o1); out = Concat<axis=0>(n, t, all); "
        "o3 = Reshape(o2, out); y = MatMul(o3, wo) | float[#n,#t,7] y",
        {"n": 2, "t": 3},
        (3, 4, 4),
    ),
    # the merged axis is measured, and the size is used for another tensor
    "shape_of_heads_in_the_batch": Block(
        "float[#n,5,4] x | float[4,12] w1, float[12,7] w2, int64[4] split = {0, 5, 3, 4}, "
        "int64[3] merge = {-1, 5, 4}, int64[1] i0 = {0}, int64[1] three = {3}, "
        "int64[2] rest = {5, 4}, int64[3] out = {0, 5, 12} | "
        "a = MatMul(x, w1); b = Reshape(a, split); c = Transpose<perm=[0,2,1,3]>(b); "
        "d = Reshape(c, merge); e = Relu(d); s = Shape(e); m = Gather(s, i0); n = Div(m, three); "
        "t = Concat<axis=0>(n, three, rest); f = Reshape(e, t); "
        "g = Transpose<perm=[0,2,1,3]>(f); h = Reshape(g, out); y = MatMul(h, w2) "
        "| float[#n,5,7] y",
        {"n": 2},
        (3, 4),
    ),
    "windows": Block(
        f"float[#n,#h,#w,3] x | float[3,8] w1, float[8,6] w2, float[6,5] w3, {_EACH}, "
        "int64[1] two = {2}, int64[3] t = {-1, 4, 8}, int64[1] rest = {-1} | a = MatMul(x, w1); "
        "s = Shape(a); n = Gather(s, i0); h = Gather(s, i1); w = Gather(s, i2); c = Gather(s, i3); "
        "hh = Div(h, two); ww = Div(w, two); u = Concat<axis=0>(n, hh, two, ww, two, c); "
        "b = Reshape(a, u); d = Transpose<perm=[0,1,3,2,4,5]>(b); e = Reshape(d, t); "
        "f = MatMul(e, w2); v = Concat<axis=0>(n, hh, ww, two, two, rest); g = Reshape(f, v); "
        "i = Transpose<perm=[0,1,3,2,4,5]>(g); o = Concat<axis=0>(n, h, w, rest); "
        "j = Reshape(i, o); y = MatMul(j, w3) | float[#n,#h,#w,5] y",
        _IMAGE,
        (6, 8),
    ),
    "flatten_that_a_weight_fixes": Block(
        "float[#n,3,#h,#w] x | float[8,3,1,1] w1, float[192,5] w2 | a = Conv(x, w1); "
        "b = Flatten(a); y = Gemm(b, w2) | float[#n,5] y",
        _IMAGE,
        (8,),
        fixed="hw",
    ),
    "view_that_a_constant_fixes": Block(
        "float[#n,3,#h,#w] x | float[8,3,1,1] w1, int64[2] s = {-1, 192}, float[192,5] w2 | "
        "a = Conv(x, w1); b = Reshape(a, s); y = Gemm(b, w2) | float[#n,5] y",
        _IMAGE,
        (8,),
        fixed="hw",
    ),
    "frames_of_a_fixed_height": Block(
        "float[#n,1,#t,#f] x | float[8,1,3,3] w1, int64[3] s = {0, -1, 40}, float[40,5] w2 | "
        "a = Conv<pads=[1,1,1,1]>(x, w1); b = Transpose<perm=[0,2,1,3]>(a); c = Reshape(b, s); "
        "y = MatMul(c, w2) | float[#n,p,5] y",
        {"n": 2, "t": 3, "f": 5},
        (8,),
        fixed="f",
    ),
    "view_after_a_transposed_convolution": Block(
        f"float[#n,3,#h,#w] x | float[3,8,2,2] w1, float[8,5] w2, {_EACH}, int64[1] rest = {{-1}} |"
        " a = ConvTranspose<strides=[2,2]>(x, w1); s = Shape(a); n = Gather(s, i0); "
        "c = Gather(s, i1); t = Concat<axis=0>(n, c, rest); b = Reshape(a, t); "
        "d = Transpose<perm=[0,2,1]>(b); y = MatMul(d, w2) | float[#n,p,5] y",
        _IMAGE,
        (8,),
    ),
    "patches_by_views": Block(
        f"float[#n,3,#h,#w] x | float[6,3,1,1] w1, float[24,5] w2, {_EACH}, int64[1] two = {{2}}, "
        "int64[1] all = {24}, int64[1] rest = {-1} | a = Conv(x, w1); s = Shape(a); "
        "n = Gather(s, i0); c = Gather(s, i1); h = Gather(s, i2); w = Gather(s, i3); "
        "hh = Div(h, two); ww = Div(w, two); t = Concat<axis=0>(n, c, hh, two, ww, two); "
        "b = Reshape(a, t); d = Transpose<perm=[0,2,4,1,3,5]>(b); "
        "u = Concat<axis=0>(n, rest, all); e = Reshape(d, u); y = MatMul(e, w2) | float[#n,p,5] y",
        _IMAGE,
        (6,),
    ),
    "group_norm_by_views": Block(
        f"float[#n,3,#h,#w] x | float[12,3,1,1] w1, float[5,12,1,1] w2, {_EACH}, "
        "int64[3] t = {0, 3, -1}, float[3] one = {1, 1, 1}, float[3] zero = {0, 0, 0} | "
        "a = Conv(x, w1); s = Shape(a); b = Reshape(a, t); "
        "c = InstanceNormalization(b, one, zero); d = Reshape(c, s); y = Conv(d, w2) "
        "| float[#n,5,p,q] y",
        _IMAGE,
        (3,),
    ),
}


def model_of(block: Block, dynamic: str, spelling: str = "symbol") -> Analysis:
    """Return the analysis of a block of which the sizes of some letters are dynamic."""
    text = block.text
    for letter, size in block.sizes.items():
        name = f"{letter}_in" if letter in dynamic else str(size)
        text = text.replace(f"#{letter}", name)
    proto = net(text)
    if spelling == "minus one":
        for dim in proto.graph.input[0].type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_value = -1
        del proto.graph.value_info[:]
    return analyze(load(proto))


def every_other(analysis: Analysis) -> Plan:
    """Return the plan that keeps every other channel of each group."""
    return plan_of(analysis, {g.name: tuple(range(0, g.size, 2)) for g in analysis.groups})


@pytest.mark.parametrize("spelling", ["symbol", "minus one"])
@pytest.mark.parametrize("name", BLOCKS)
def test_dynamic_blocks_are_as_prunable_as_static_ones(name: str, spelling: str) -> None:
    block = BLOCKS[name]
    static = tuple(sorted(g.size for g in model_of(block, "").groups))
    assert static == block.groups
    for letters in (*block.sizes, "".join(block.sizes)):
        analysis = model_of(block, letters, spelling)
        assert tuple(sorted(g.size for g in analysis.groups)) == static, letters
    plan = every_other(analysis)
    pruned = cut(analysis, plan)
    assert analyze(pruned).cost().macs == analysis.cost(plan.kept).macs
    rng = np.random.default_rng(0)
    given = block.text.split("|")[0]
    for factor in (1, 2):
        sizes = {k: size * (1 if k in block.fixed else factor) for k, size in block.sizes.items()}
        dims = given[given.index("[") + 1 : given.index("]")].split(",")
        shape = [sizes[d[1:]] if d.startswith("#") else int(d) for d in dims]
        feeds = {"x": rng.standard_normal(shape).astype(np.float32)}
        result = verify(analysis, plan, pruned, feeds)
        assert result.ok, (factor, result)
        assert result.difference <= result.tolerance


def test_costs_of_heads_in_a_dynamic_batch_follow_the_cut() -> None:
    analysis = model_of(BLOCKS["heads_in_the_batch"], "nt")
    assert any(isinstance(a, Folded) for t in analysis.record.tensors.values() for a in t.axes)
    plan = every_other(analysis)
    counted = analysis.at({"x": (4, 6, 5)})
    smaller = analyze(cut(analysis, plan), shapes={"x": (4, 6, 5)})
    assert counted.cost(plan.kept).macs == smaller.cost().macs < counted.cost().macs
    assert counted.cost(plan.kept).params == smaller.cost().params


def test_a_merged_axis_that_meets_another_one_is_frozen() -> None:
    """Heads in the batch are added to a tensor whose batch has no heads."""
    text = (
        "float[n,5,4] x, float[m,5,4] z | float[4,12] w1, float[12,7] w2, "
        "int64[4] split = {0, 5, 3, 4}, int64[3] merge = {-1, 5, 4}, int64[4] back = {-1, 3, 5, 4},"
        " int64[3] out = {0, 5, 12} | a = MatMul(x, w1); b = Reshape(a, split); "
        "c = Transpose<perm=[0,2,1,3]>(b); d = Reshape(c, merge); {op}; f = Reshape(e, back); "
        "g = Transpose<perm=[0,2,1,3]>(f); h = Reshape(g, out); y = MatMul(h, w2) | float[n,5,7] y"
    )
    for op, groups in (
        ("e = Relu(d)", (3, 4)),
        ("e = Add(d, z)", ()),
        ("e = CumSum(d, axis)", (4,)),
        ("e = Concat<axis=0>(d, z)", ()),
    ):
        body = text.replace("{op}", op).replace("int64[3] out", "int64 axis = {0}, int64[3] out")
        analysis = analyze(load(net(body)))
        assert tuple(sorted(g.size for g in analysis.groups)) == groups, op


@pytest.mark.parametrize(
    ("lengths", "sizes", "expected"),
    [
        ([16, "f"], [160], {"f": 10}),
        (["n", 16, 10], ["?1", 160], {"?1": "n"}),
        (["n", "t", 6], ["?1", 3, 2], {"?1": "n\u00b7t"}),
        (["t", 16], ["?1", 32], {"t": "2\u00b7?1"}),
        (["h", "w"], ["?(h/2)", 2, "?(w/3)", 3], {"h": "2\u00b7?(h/2)", "w": "3\u00b7?(w/3)"}),
        (["h", "w"], ["?(h/2)", 4, "?(w/3)", 3], {}),
        (["n", "h"], ["h", "n"], {}),
        (["h", "w"], ["?1", 2, "?2", 2], {}),
        (["h", "h"], [4, "w"], {}),
        ([0, "n"], ["?1"], {}),
        (["n", None], ["?1"], {}),
    ],
)
def test_lengths_that_follow_are_solved(lengths: list, sizes: list, expected: dict) -> None:
    found = solve(lengths, sizes)
    assert found == expected


@pytest.mark.parametrize(
    ("lengths", "sizes", "expected"),
    [
        ([6, 4], [2, 12], [1, 2, 6, 24]),
        ([6, 4], [4, 6], None),
        (["n", 6], ["2\u00b7n", 3], [1, "n", "2\u00b7n", "6\u00b7n"]),
        (["n", "m"], ["m", "n"], None),
    ],
)
def test_products_of_leading_lengths(lengths: list, sizes: list, expected: list | None) -> None:
    assert refine(lengths, sizes) == expected


@pytest.mark.parametrize(
    ("op", "weight", "expected"),
    [
        ("Conv<pads=[1,1,1,1]>(x, w)", "[6,4,3,3]", ("h", "w")),
        ("Conv<pads=[2,1,2,1],dilations=[2,1]>(x, w)", "[6,4,3,3]", ("h", "w")),
        ('Conv<auto_pad="SAME_UPPER">(x, w)', "[6,4,4,4]", ("h", "w")),
        ("Conv<strides=[4,2]>(x, w)", "[6,4,4,2]", ("?(h/4)", "?(w/2)")),
        ("ConvTranspose<strides=[2,2]>(x, w)", "[4,6,2,2]", ("2\u00b7h", "2\u00b7w")),
        (
            "ConvTranspose<strides=[2,2],pads=[1,1,1,1]>(x, w)",
            "[4,6,4,4]",
            ("2\u00b7h", "2\u00b7w"),
        ),
        ("MaxPool<kernel_shape=[2,2],strides=[2,2]>(x)", "[1]", ("?(h/2)", "?(w/2)")),
        ("AveragePool<kernel_shape=[3,3],pads=[1,1,1,1]>(x)", "[1]", ("h", "w")),
        ("Resize(x, , s)", "[1]", ("2\u00b7h", "w")),
    ],
)
def test_sizes_after_windows_follow_symbols(op: str, weight: str, expected: tuple) -> None:
    weights = f"float{weight} w, float[4] s = {{1, 1, 2, 1}}"
    analysis = analyze(load(net(f"float[n,4,h,w] x | {weights} | y = {op} | float[n,c,p,q] y")))
    assert (analysis.shapes.shape("y") or ())[2:] == expected
    concrete = load(net(f"float[2,4,8,12] x | {weights} | y = {op} | float[2,c,p,q] y"))
    sizes = {"h": 8, "w": 12, "2\u00b7h": 16, "2\u00b7w": 24, "?(h/4)": 2, "?(w/2)": 6, "?(h/2)": 4}
    feeds = {"x": np.zeros((2, 4, 8, 12), np.float32)}
    assert Session(concrete).run(feeds)["y"].shape[2:] == tuple(sizes[d] for d in expected)
