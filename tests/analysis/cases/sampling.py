"""Pooling, reductions and resampling."""

from __future__ import annotations

from cases.case import Case, between

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
CASES: dict[str, Case] = {}
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
    f"{op}_empty_axes": between(f"{_NEAR_ONE}; b = {op}<noop_with_empty_axes=1>(c)", opset=18)
    for op in _REDUCTIONS
}
CASES |= {
    "ReduceMean_no_keepdims": Case(
        (
            "float[2,4,6,6] x | float[8,4,3,3] w1, float[8,5] w2 | a = Conv(x, w1); "
            "b = ReduceMean<axes=[2,3], keepdims=0>(a); y = MatMul(b, w2)"
        ),
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
        (
            "float[2,4,6,6] x, float[2,5,5,2] g | float[8,4,3,3] w1, float[5,8,1,1] w2 | "
            "a = Conv(x, w1); b = GridSample(a, g); y = Conv(b, w2)"
        ),
        groups=(8,),
    ),
    "RoiAlign": Case(
        (
            "float[2,4,6,6] x | float[8,4,3,3] w1, float[3,4] r = {0,0,3,3,1,1,3,2,0,1,2,3}, "
            "int64[3] n = {0,1,0}, float[5,8,1,1] w2 | a = Conv(x, w1); "
            "b = RoiAlign<output_height=2, output_width=2>(a, r, n); y = Conv(b, w2)"
        ),
        groups=(8,),
    ),
}
