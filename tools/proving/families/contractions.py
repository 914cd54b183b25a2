"""Worlds of convolutions, matrix products and Einsum."""

from __future__ import annotations

from types import SimpleNamespace

from proving.worlds import LENGTHS, Graph, shapes, space

_TWO = (1, 2)


def _operand(g: Graph, shape: tuple[int, ...], kind: str) -> str:
    """Return a computed tensor or a weight."""
    return g.free(shape) if kind == "free" else g.weight(shape)


@space(
    "Conv",
    exact=True,
    opset=(11, 22),
    n=_TWO,
    g=LENGTHS,
    c=LENGTHS,
    o=LENGTHS,
    h=LENGTHS,
    k=LENGTHS,
    pad=(0, 1),
    stride=_TWO,
    dilation=_TWO,
    weight=("weight", "free"),
    bias=(False, True),
)
def conv(g: Graph, c: SimpleNamespace) -> str | None:
    """One spatial axis; groups, also depthwise, with a multiplier."""
    if c.h + 2 * c.pad < (c.k - 1) * c.dilation + 1:
        return None
    bias = [g.weight((c.g * c.o,))] if c.bias else []
    return g.node(
        "Conv",
        g.free((c.n, c.g * c.c, c.h)),
        _operand(g, (c.g * c.o, c.c, c.k), c.weight),
        *bias,
        group=c.g,
        pads=[c.pad, c.pad],
        strides=[c.stride],
        dilations=[c.dilation],
    )


@space(
    "Conv",
    exact=True,
    g=LENGTHS,
    c=LENGTHS,
    o=LENGTHS,
    h=LENGTHS,
    w=LENGTHS,
    kernel=shapes(2),
    auto_pad=("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"),
)
def conv_2d(g: Graph, c: SimpleNamespace) -> str | None:
    """Two spatial axes and automatic padding."""
    padded = c.auto_pad.startswith("SAME")
    if not padded and (c.h < c.kernel[0] or c.w < c.kernel[1]):
        return None
    data, weight = g.free((1, c.g * c.c, c.h, c.w)), g.weight((c.g * c.o, c.c, *c.kernel))
    return g.node("Conv", data, weight, group=c.g, auto_pad=c.auto_pad)


# The reference evaluator leaves out the bias of groups.
@space(
    "ConvTranspose",
    exact=True,
    runtime="onnxruntime",
    opset=(12, 22),
    n=_TWO,
    g=LENGTHS,
    c=LENGTHS,
    o=LENGTHS,
    h=LENGTHS,
    k=LENGTHS,
    pad=(0, 1),
    stride=_TWO,
    dilation=_TWO,
    output_padding=(0, 1),
    bias=(False, True),
)
def conv_transpose(g: Graph, c: SimpleNamespace) -> str | None:
    """One spatial axis; groups."""
    length = (c.h - 1) * c.stride + c.output_padding + (c.k - 1) * c.dilation + 1 - 2 * c.pad
    if length < 1 or (c.output_padding and c.stride < 2):
        return None
    bias = [g.weight((c.g * c.o,))] if c.bias else []
    return g.node(
        "ConvTranspose",
        g.free((c.n, c.g * c.c, c.h)),
        g.weight((c.g * c.c, c.o, c.k)),
        *bias,
        group=c.g,
        pads=[c.pad, c.pad],
        strides=[c.stride],
        dilations=[c.dilation],
        output_padding=[c.output_padding],
    )


@space(
    "DeformConv",
    opset=(19, 22),
    g=_TWO,
    offset_group=LENGTHS,
    c=LENGTHS,
    o=LENGTHS,
    kernel=((1, 1), (1, 2), (2, 2)),
    bias=(False, True),
    mask=(False, True),
)
def deform_conv(g: Graph, c: SimpleNamespace) -> str | None:
    """Groups of channels and of offsets, with and without a mask."""
    channels, places = c.g * c.c, c.kernel[0] * c.kernel[1]
    if channels % c.offset_group:
        return None
    out = (3 - c.kernel[0], 3 - c.kernel[1])
    bias = g.weight((c.g * c.o,)) if c.bias else ""
    mask = g.free((1, c.offset_group * places, *out)) if c.mask else ""
    return g.node(
        "DeformConv",
        g.free((1, channels, 2, 2)),
        g.weight((c.g * c.o, c.c, *c.kernel)),
        g.free((1, c.offset_group * 2 * places, *out), -1, 2, 0.25),
        bias,
        mask,
        group=c.g,
        offset_group=c.offset_group,
        kernel_shape=list(c.kernel),
    )


@space(
    "Gemm",
    exact=True,
    opset=(9, 13),
    m=LENGTHS,
    k=LENGTHS,
    n=LENGTHS,
    transposed=((0, 0), (0, 1), (1, 0), (1, 1)),
    second=("weight", "free"),
    bias=("", "n", "1n", "m1", "11", "mn", "scalar"),
    alpha=(1.0, 0.5),
)
def gemm(g: Graph, c: SimpleNamespace) -> str | None:
    """All orders of axes and all shapes of the bias."""
    a = (c.k, c.m) if c.transposed[0] else (c.m, c.k)
    b = (c.n, c.k) if c.transposed[1] else (c.k, c.n)
    length = {"m": c.m, "n": c.n, "1": 1}
    bias = ""
    if c.bias == "scalar":
        bias = g.weight(())
    elif c.bias:
        bias = g.weight([length[letter] for letter in c.bias])
    if not bias and c.opset < 11:
        return None
    beta = 2.0 if c.bias else None
    return g.node(
        "Gemm",
        g.free(a),
        _operand(g, b, c.second),
        bias,
        transA=c.transposed[0],
        transB=c.transposed[1],
        alpha=c.alpha,
        beta=beta,
    )


@space(
    "MatMul",
    exact=True,
    m=(0, *LENGTHS),
    k=LENGTHS,
    n=(0, *LENGTHS),
    batch=[
        *[(s, s) for s in shapes(0, 1, 2)],
        *[((), s) for s in shapes(1, 2)],
        *[(s, ()) for s in shapes(1, 2)],
        *[((1,), (3,)), ((3,), (1,)), ((2, 1), (1, 3)), ((3,), (2, 3)), ((2, 1), (3,))],
    ],
    kinds=(("free", "weight"), ("weight", "free"), ("free", "free")),
)
def matmul(g: Graph, c: SimpleNamespace) -> str | None:
    """Matrices and vectors, batches under broadcasting, weights on either side."""
    if (not c.m and c.batch[0]) or (not c.n and c.batch[1]):
        return None
    a = (*c.batch[0], c.m, c.k) if c.m else (c.k,)
    b = (*c.batch[1], c.k, c.n) if c.n else (c.k,)
    return g.node("MatMul", _operand(g, a, c.kinds[0]), _operand(g, b, c.kinds[1]))


_EQUATIONS = """
    ab,bc->ac ab,cb->ca ba,bc->ac abc,cd->abd abc,bcd->abd abcd,abed->abce abc,abd->acd ab,ac->abc
    ab,ab->ab ab,ab->a ab->ba ab->a ab->b abc->ca abc->b a,b->ab a,a-> ab,bc,cd->ad abc,bd,cd->a
    abc,ac->abc ab,a->ab ...a,ab->...b ...ab,...bc->...ac a...,ab->b... aa->a ab,bc
    abcd,acd->bd abc,cab->b ab->
""".split()


@space(
    "Einsum",
    exact=True,
    equation=_EQUATIONS,
    a=LENGTHS,
    b=LENGTHS,
    c=LENGTHS,
    d=LENGTHS,
    e=_TWO,
    second=("free", "weight"),
)
def einsum(g: Graph, c: SimpleNamespace) -> str:
    """Contractions, outer products, transpositions, sums, diagonals, broadcast axes."""
    operands = []
    for i, letters in enumerate(c.equation.partition("->")[0].split(",")):
        front, dots, back = letters.partition("...")
        shape = [getattr(c, letter) for letter in front]
        shape += [c.e] if dots else []
        shape += [getattr(c, letter) for letter in back]
        operands.append(_operand(g, tuple(shape), c.second if i else "free"))
    return g.node("Einsum", *operands, equation=c.equation)
