"""Graphs with one operator each between two layers that can be cut, one per attribute value.

`groups` says whether the channels can be cut with the value, (8,), or not, ().
"""

from __future__ import annotations

from itertools import product

from graphs import Case, between

CUT: tuple[int, ...] = (8,)
FROZEN: tuple[int, ...] = ()
VALUES: dict[str, Case] = {}


def _normalizations() -> None:
    """Add axes of normalizations and of functions of an axis, counted from either end."""
    axes = {"[0,2,3]": CUT, "[2,3]": CUT, "[0,-2,-1]": CUT, "[0]": CUT, "[-1]": CUT}
    axes |= dict.fromkeys(("[1]", "[-3]", "[0,-3]", "[1,2,3]", "[0,1,2,3]"), FROZEN)
    for value, groups in axes.items():
        VALUES[f"MeanVarianceNormalization axes={value}"] = between(
            f"b = MeanVarianceNormalization<axes={value}>(a)", groups=groups
        )
    VALUES["MeanVarianceNormalization"] = between("b = MeanVarianceNormalization(a)")
    for size, groups in ((1, CUT), (2, FROZEN), (100, FROZEN)):
        VALUES[f"LRN size={size}"] = between(f"b = LRN<size={size}>(a)", groups=groups)
    for op, axis, opset in product(("Softmax", "LogSoftmax", "Hardmax"), range(-4, 4), (11, 13)):
        # before opset 13, all axes from this one on are mixed
        mixes = axis % 4 <= 1 if opset < 13 else axis % 4 == 1
        VALUES[f"{op}-{opset} axis={axis}"] = between(
            f"b = {op}<axis={axis}>(a)", opset=opset, groups=FROZEN if mixes else CUT
        )
    for opset in (11, 13):  # of another default
        groups = FROZEN if opset < 13 else CUT
        VALUES[f"Softmax-{opset}"] = between("b = Softmax(a)", opset=opset, groups=groups)
    for axis, p in product(range(-4, 4), (1, 2)):
        VALUES[f"LpNormalization axis={axis} p={p}"] = between(
            f"b = LpNormalization<axis={axis}, p={p}>(a)"
        )
    parameters = ", ".join(f"float[8,4,4] {name}" for name in ("w3", "w4", "w5", "v"))
    VALUES["BatchNormalization spatial=0"] = between(
        "b = BatchNormalization<spatial=0>(a, w3, w4, w5, v)", parameters, opset=8
    )


def _reductions() -> None:
    """Add reductions without axes, by an attribute, by an operand, or by an empty operand."""
    for op, noop in product(
        ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceL2", "ReduceLogSum"), (0, 1)
    ):
        groups = FROZEN if op in ("ReduceMax", "ReduceLogSum") and not noop else CUT
        for name, axes, extra in (("no", "", ""), ("empty", ", e", "int64[0] e = {}")):
            VALUES[f"{op} noop_with_empty_axes={noop}, {name} axes"] = between(
                f"s = Sigmoid(a); c = Add(s, s); r = {op}<noop_with_empty_axes={noop}>(c{axes}); "
                "b = Mul(r, a)",
                extra,
                opset=18,
                groups=groups,
            )
    for axis, (exclusive, reverse) in product((1, -3, 3), product((0, 1), (0, 1))):
        VALUES[f"CumSum axis={axis} exclusive={exclusive} reverse={reverse}"] = between(
            f"b = CumSum<exclusive={exclusive}, reverse={reverse}>(a, s)",
            f"int64 s = {{{axis}}}",
            groups=CUT if axis == 3 else FROZEN,
        )
    for axis, last in product((1, -3, 2), (0, 1)):
        VALUES[f"ArgMax axis={axis} select_last_index={last}"] = between(
            f"i = ArgMax<axis={axis}, select_last_index={last}>(a); j = Cast<to=1>(i); "
            "b = Add(a, j)",
            groups=CUT if axis == 2 else FROZEN,
        )


def _resize(name: str, attributes: str, inputs: str, extra: str, groups: tuple[int, ...]) -> None:
    """Add a Resize."""
    text = f"b = Resize<{attributes}>(a, {inputs})"
    VALUES[f"Resize {name}"] = between(text, extra, opset=18, groups=groups)


def _resampling() -> None:
    """Add policies and regions of Resize, grids of GridSample, blocks of DepthToSpace."""
    modes = ("half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel")
    for mode, transformation in product(("nearest", "linear", "cubic"), modes):
        attributes = f'mode="{mode}", coordinate_transformation_mode="{transformation}"'
        _resize(f"{mode} {transformation}", attributes, ", s", "float[4] s = {1, 1, 2, 1.5}", CUT)
    for policy, axes, sizes, groups in (
        ("stretch", "[1,2,3]", "{8, 7, 9}", CUT),
        ("not_larger", "[1,2,3]", "{8, 7, 9}", CUT),  # the scale of all is that of the channels
        ("not_larger", "[1,2,3]", "{16, 4, 4}", CUT),
        ("not_larger", "[3,-3]", "{4, 9}", CUT),
        ("not_larger", "[-1,2]", "{7, 3}", CUT),
        ("not_smaller", "[1,2,3]", "{8, 2, 2}", CUT),
        ("not_smaller", "[1,2,3]", "{4, 4, 4}", CUT),
        ("not_smaller", "[1]", "{8}", CUT),
    ):
        attributes = f'mode="linear", axes={axes}, keep_aspect_ratio_policy="{policy}"'
        extra = f"int64[{sizes.count(',') + 1}] s = {sizes}"
        _resize(f"{policy} axes={axes} sizes={sizes}", attributes, ", , s", extra, groups)
    _resize("scale of one axis", 'mode="linear", axes=[1]', ", s", "float[1] s = {1.1}", FROZEN)
    for region, groups in (
        ("{0, 0, 0.2, 0.1, 1, 1, 0.8, 0.9}", CUT),
        ("{0, 0.2, 0, 0, 1, 0.7, 1, 1}", FROZEN),
        ("{0, 0, 0, 0, 1, 0.5, 1, 1}", FROZEN),
    ):
        crop = 'mode="linear", coordinate_transformation_mode="tf_crop_and_resize"'
        roi = f"float[8] r = {region}"
        for inputs, target in (
            ("r, s", "float[4] s = {1, 1, 2, 2}"),
            ("r, , s", "int64[4] s = {2, 8, 5, 5}"),
        ):
            _resize(f"roi={region} {target}", crop, inputs, f"{roi}, {target}", groups)
    for mode in ("linear", "nearest"):
        VALUES[f"GridSample of volumes, {mode}"] = Case(
            "float[2,4,6,6,3] x, float[2,5,4,3,3] g | float[8,4,1,1,1] w1, float[5,8,1,1,1] w2 | "
            f'a = Conv(x, w1); b = GridSample<mode="{mode}">(a, g); y = Conv(b, w2)',
            opset=20,
            groups=CUT,
        )
    for mode, size in product(("DCR", "CRD"), (1, 2)):
        VALUES[f"DepthToSpace mode={mode} blocksize={size}"] = Case(
            f"float[2,4,3,3] x | float[{3 * size * size},4,1,1] w1, float[5,3,1,1] w2 | "
            f'a = Conv(x, w1); b = DepthToSpace<blocksize={size}, mode="{mode}">(a); '
            "y = Conv(b, w2)",
            groups=(3,),
        )


def _gemms() -> None:
    """Add transposed operands of Gemm, and every shape of C that broadcasts."""
    for trans_a, trans_b, c in product(
        (0, 1), (0, 1), ("[8]", "[1,8]", "[3,8]", "[3,1]", "[1]", "[1,1]", "")
    ):
        value = "" if c else " = {0.5}"
        flip = "Transpose<perm=[1,0]>" if trans_a else "Relu"
        VALUES[f"Gemm transA={trans_a} transB={trans_b} C={c}"] = Case(
            f"float[3,4] x | float[4,6] w0, float[{'8,6' if trans_b else '6,8'}] w1, "
            f"float{c} c{value}, float[8,5] w2 | p = MatMul(x, w0); q = {flip}(p); "
            f"a = Gemm<transA={trans_a}, transB={trans_b}, alpha=0.5, beta=2.0>(q, w1, c); "
            "y = MatMul(a, w2)",
            groups=(6, 8),
        )


def _quantization() -> None:
    """Add axes and block sizes of QuantizeLinear and DequantizeLinear."""
    for axis, size in ((1, 8), (-3, 8), (2, 4), (-1, 4), (0, 2)):
        VALUES[f"QuantizeLinear axis={axis}"] = between(
            f"q = QuantizeLinear<axis={axis}>(a, v3, z); "
            f"b = DequantizeLinear<axis={axis}>(q, v3, z)",
            f"float[{size}] v3, int8[{size}] z",
        )
    for axis, block, shape, groups in (
        (1, 2, "2,4,4,4", (4,)),
        (-3, 4, "2,2,4,4", (2,)),
        (1, 8, "2,1,4,4", FROZEN),
        (1, 3, "2,3,4,4", FROZEN),
        (2, 2, "2,8,2,4", CUT),
        (-1, 4, "2,8,4,1", CUT),
    ):
        VALUES[f"QuantizeLinear axis={axis} block_size={block}"] = between(
            f"q = QuantizeLinear<axis={axis}, block_size={block}>(a, v3, z); "
            f"b = DequantizeLinear<axis={axis}, block_size={block}>(q, v3, z)",
            f"float[{shape}] v3, int8[{shape}] z",
            opset=21,
            groups=groups,
        )


def _picks() -> None:
    """Add single indices and matrices of indices, whose channels are kept."""
    for axis, (index, shape, groups) in product(
        (1, -3),
        (
            ("3", "", (5, 7)),
            ("-8", "", (5, 7)),
            ("5, 1, -8, 1", "[2,2]", (5,)),
        ),
    ):
        # the sum over a single pick leaves an axis of five that a product makes
        weight = "w3" if shape else "w3, float[5,4] w4"
        after = "m = ReduceSum<keepdims=0>(b)" if shape else "p = MatMul(w4, b); m = Abs(p)"
        reduced = "s = ReduceSum<keepdims=0>(m)"
        VALUES[f"Gather axis={axis} index={index}"] = Case(
            f"float[2,4,6,6] x | float[8,4,3,3] w1, int64{shape} i = {{{index}}}, "
            f"float[5,8,1,1] {weight} | a = Conv(x, w1); b = Gather<axis={axis}>(a, i); "
            f"{after}; {reduced}; q = Conv(a, w3); y = Add(s, q)",
            groups=groups,
        )


for _add in (_normalizations, _reductions, _resampling, _gemms, _quantization, _picks):
    _add()
