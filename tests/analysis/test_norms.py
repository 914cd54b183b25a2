"""Normalizations, fused and as exporters write them out: the same groups, status and fusions."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from graph_laws import SEEN, assert_exact, assert_shapes_as_predicted, random_plan
from graph_text import net
from onnx import ModelProto

from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.walk import analyze
from onnxprune.ir.io import Model, load, to_bytes
from onnxprune.ir.runtime import Session, example_feeds
from onnxprune.ir.weights import from_array
from onnxprune.run.pipeline import optimize
from onnxprune.surgery.cut import cut
from onnxprune.surgery.verify import verify
from onnxprune.types import Plan

WIDTH = 8
EIGHTHS = ",".join(["0.125"] * WIDTH)
# ax: an axes input from opset 18, an attribute before it
WEIGHTS = (
    "float[4,8] w1, float[8] v1, float[8] w2, float eps = {0.01}, float two = {2.0}, "
    f"float[8,1] column = {{{EIGHTHS}}}, float[8,8] square = {{{','.join([EIGHTHS] * WIDTH)}}}, "
    "float one = {1.0}, float n = {8.0}, float half = {0.5}, float neg = {-0.5}, "
    "int64[1] last = {-1}, int64[3] whole = {2, 6, 8}, float[8,5] w3"
)
NET = f"float[2,6,4] x | {WEIGHTS} | a = MatMul(x, w1); {{nodes}}; y = MatMul(b, w3)"

MEAN = "m = Mean(a); d = Sub(a, m)"
LAYER_NORMS = {
    "torch": f"{MEAN}; s = Pow(d, two); v = Mean(s); e = Add(v, eps); r = Sqrt(e); "
    "q = Div(d, r); g = Mul(q, v1); b = Add(g, w2)",
    "product": f"{MEAN}; s = Mul(d, d); v = Mean(s); e = Add(eps, v); r = Sqrt(e); "
    "i = Reciprocal(r); q = Mul(d, i); g = Mul(v1, q); b = Add(w2, g)",
    "two_differences": f"{MEAN}; d2 = Sub(a, m); s = Mul(d2, d2); v = Mean(s); e = Add(v, eps); "
    "r = Sqrt(e); q = Div(d, r); g = Mul(q, v1); b = Add(g, w2)",
    "power": f"{MEAN}; s = Mul(d, d); v = Mean(s); e = Add(v, eps); r = Pow(e, neg); "
    "q = Mul(d, r); g = Mul(q, v1); b = Add(g, w2)",
    "batch_normalization": f"{MEAN}; s = Mul(d, d); v = Mean(s); e = Add(v, eps); r = Sqrt(e); "
    "i = Reciprocal(r); k = Mul(i, v1); p = Mul(a, k); o = Mul(m, k); t = Sub(w2, o); "
    "b = Add(p, t)",
    "moments": "m = Mean(a); s = Mul(a, a); w = Mean(s); mm = Mul(m, m); v = Sub(w, mm); "
    "e = Add(v, eps); r = Sqrt(e); d = Sub(a, m); q = Div(d, r); g = Mul(q, v1); b = Add(g, w2)",
    "sums": "h = Total(a); m = Div(h, n); d = Sub(a, m); s = Mul(d, d); t = Total(s); "
    "v = Div(t, n); e = Add(v, eps); r = Sqrt(e); q = Div(d, r); g = Mul(q, v1); b = Add(g, w2)",
    "products": "m = MatMul(a, column); d = Sub(a, m); s = Mul(d, d); v = MatMul(s, column); "
    "e = Add(v, eps); r = Sqrt(e); q = Div(d, r); g = Mul(q, v1); b = Add(g, w2)",
    "square_products": "m = MatMul(a, square); d = Sub(a, m); s = Mul(d, d); "
    "v = MatMul(s, square); e = Add(v, eps); r = Sqrt(e); q = Div(d, r); g = Mul(q, v1); "
    "b = Add(g, w2)",
    "expanded": "m = Mean(a); f = Expand(m, whole); d = Sub(a, f); s = Mul(d, d); v = Mean(s); "
    "e = Add(v, eps); r = Sqrt(e); j = Expand(r, whole); q = Div(d, j); g = Mul(q, v1); "
    "b = Add(g, w2)",
    "pooled": "m = GlobalAveragePool(a); d = Sub(a, m); s = Mul(d, d); v = GlobalAveragePool(s); "
    "e = Add(v, eps); r = Sqrt(e); q = Div(d, r); g = Mul(q, v1); b = Add(g, w2)",
    "no_scale": f"{MEAN}; s = Mul(d, d); v = Mean(s); e = Add(v, eps); r = Sqrt(e); b = Div(d, r)",
    "casts": "a2 = Cast<to=1>(a); m = Mean(a2); d = Sub(a2, m); s = Mul(d, d); v = Mean(s); "
    "e = Add(v, eps); r = Sqrt(e); q = Div(d, r); c = Cast<to=1>(q); g = Mul(c, v1); "
    "b = Add(g, w2)",
}
ROOT = "s = Pow(a, two); v = Mean(s); e = Add(v, eps); r = Sqrt(e)"
RMS_NORMS = {
    "torch": f"{ROOT}; q = Div(a, r); b = Mul(q, v1)",
    "reciprocal": f"{ROOT}; i = Reciprocal(r); q = Mul(a, i); b = Mul(v1, q)",
    "one_over": f"{ROOT}; i = Div(one, r); q = Mul(a, i); b = Mul(v1, q)",
    "product": "s = Mul(a, a); v = Mean(s); e = Add(eps, v); r = Sqrt(e); q = Div(a, r); "
    "b = Mul(q, v1)",
    "power": "s = Mul(a, a); v = Mean(s); e = Add(eps, v); r = Pow(e, neg); q = Mul(a, r); "
    "b = Mul(q, v1)",
    "half_power": "s = Mul(a, a); v = Mean(s); e = Add(eps, v); r = Pow(e, half); q = Div(a, r); "
    "b = Mul(q, v1)",
    "scale_first": f"{ROOT}; i = Reciprocal(r); k = Mul(i, v1); b = Mul(a, k)",
    "casts": "a2 = Cast<to=1>(a); s = Pow(a2, two); v = Mean(s); e = Add(v, eps); r = Sqrt(e); "
    "q = Div(a2, r); c = Cast<to=1>(q); b = Mul(c, v1)",
    "pooled": "s = Mul(a, a); v = GlobalAveragePool(s); e = Add(v, eps); r = Sqrt(e); "
    "i = Reciprocal(r); q = Mul(a, i); b = Mul(q, v1)",
    "no_scale": f"{ROOT}; b = Div(a, r)",
    "products": "s = Mul(a, a); v = MatMul(s, column); e = Add(v, eps); r = Sqrt(e); "
    "q = Div(a, r); b = Mul(q, v1)",
    "two_consumers": f"{ROOT}; q = Div(a, r); c = Mul(q, v1); o = Relu(q); b = Add(c, o)",
}
OPSETS = (13, 17, 18, 21)


def written(nodes: str, opset: int, axis: str = "-1", last: str = "last") -> str:
    """Return nodes with `Mean` and `Total` in the form of an opset."""
    total = f"ReduceSum({{}}, {last})"
    mean = f"ReduceMean<axes=[{axis}]>({{}})" if opset < 18 else f"ReduceMean({{}}, {last})"
    for name, form in (("Mean", mean), ("Total", total)):
        parts = nodes.split(f" {name}(")
        nodes = parts[0] + "".join(
            " " + form.format(p[: p.index(")")]) + p[p.index(")") + 1 :] for p in parts[1:]
        )
    return nodes


def model_of(nodes: str, opset: int = 17) -> ModelProto:
    return net(NET.replace("{nodes}", written(nodes, opset)), opset=opset)


def status(analysis: Analysis) -> list[tuple[int, bool]]:
    """Return size and exactness per group."""
    return sorted((g.size, g.exact) for g in analysis.groups)


def half_of(analysis: Analysis) -> Plan:
    return random_plan(analysis, np.random.default_rng(0), floor=2)


def fused(model: Model, directory: Path) -> Counter[str]:
    """Return the normalizations in the graph that onnxruntime saves at EXTENDED level."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(directory / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(to_bytes(model), options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(directory / "optimized.onnx").graph.node
    return Counter(n.op_type for n in nodes if "Normalization" in n.op_type)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("style", LAYER_NORMS)
def test_layer_normalization_mixes_however_it_is_written(
    style: str, opset: int, tmp_path: Path
) -> None:
    model = load(model_of(LAYER_NORMS[style], opset))
    analysis = analyze(model)
    assert status(analysis) == []
    assert "LayerNormalization mixes along this axis" in analysis.why("w1")[-1].reason
    opened = analyze(model, allow_mixing=("LayerNormalization",))
    assert status(opened) == [(WIDTH, False)]
    plan = half_of(opened)
    pruned = cut(opened, plan)
    assert verify(opened, plan, pruned).ok
    assert_shapes_as_predicted(opened, plan, pruned)
    assert fused(pruned, tmp_path) == fused(opened.model, tmp_path)


@pytest.mark.parametrize("style", [s for s in LAYER_NORMS if s != "no_scale"])
def test_an_opened_layer_normalization_equals_the_fused_one(style: str) -> None:
    """Both average over the kept channels, and no factor corrects either."""
    decomposed = model_of(LAYER_NORMS[style])
    written = model_of("b = LayerNormalization<axis=-1, epsilon=0.01>(a, v1, w2)")
    del written.graph.initializer[:]
    written.graph.initializer.extend(decomposed.graph.initializer)
    outputs = []
    for model in map(load, (decomposed, written)):
        analysis = analyze(model, allow_mixing=("LayerNormalization",))
        pruned = cut(analysis, half_of(analysis))
        outputs.append(Session(pruned, optimize=False).run(example_feeds(pruned))["y"])
    np.testing.assert_allclose(*outputs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("style", RMS_NORMS)
def test_rms_normalization_is_exact_however_it_is_written(
    style: str, opset: int, tmp_path: Path
) -> None:
    analysis = analyze(load(model_of(RMS_NORMS[style], opset)))
    assert status(analysis) == [(WIDTH, True)]
    plan = half_of(analysis)
    pruned, found = assert_exact(analysis, plan)
    assert found.masked_difference > SEEN
    assert fused(pruned, tmp_path) == fused(analysis.model, tmp_path)
    # a factor after the mean would keep runtimes from recognizing the normalization
    added = len(pruned.proto.graph.node) - len(analysis.model.proto.graph.node)
    assert added == (style in ("no_scale", "two_consumers"))


FUSED_RMS = {
    "standard": ("b = RMSNormalization<epsilon=0.01>(a, v1)", 23),
    "default_epsilon": ("b = RMSNormalization(a, v1)", 23),
    "simplified": ("b = SimplifiedLayerNormalization<epsilon=0.01>(a, v1)", 17),
    "shared_scale": (
        "c = SimplifiedLayerNormalization(a, v1); e = Add(c, a); "
        "b = SimplifiedLayerNormalization(e, v1)",
        17,
    ),
    "scale_used_elsewhere": ("c = SimplifiedLayerNormalization(a, v1); b = Mul(c, v1)", 17),
    "skip": ("b = com.microsoft.SkipSimplifiedLayerNormalization(a, a, v1)", 17),
    "skip_bias_and_sum": (
        "c, , , s = com.microsoft.SkipSimplifiedLayerNormalization<epsilon=0.01>(a, a, v1, w2); "
        "b = Add(c, s)",
        17,
    ),
    "skip_constant": (
        "b = com.microsoft.SkipSimplifiedLayerNormalization<epsilon=0.01>(a, w4, v1, w2)",
        17,
    ),
    "computed_scale": (
        "p = Mul(a, a); l = ReduceMean<axes=[0, 1], keepdims=0>(p); "
        "b = SimplifiedLayerNormalization(a, l)",
        17,
    ),
    "lp": ("b = LpNormalization<axis=-1>(a)", 17),
}


@pytest.mark.parametrize("name", FUSED_RMS)
def test_fused_rms_normalization_is_exact(name: str) -> None:
    nodes, opset = FUSED_RMS[name]
    text = NET.replace("{nodes}", nodes).replace("float[8] v1", "float[8] v1, float[6,8] w4")
    analysis = analyze(load(net(text, opset=opset)))
    assert status(analysis) == [(WIDTH, True)]
    roles = {site.tensor: site.role for group in analysis.groups for site in group.sites}
    assert {roles.get(name, "carries") for name in ("v1", "w2", "w4")} == {"carries"}
    once, found = assert_exact(analysis, half_of(analysis))
    assert found.masked_difference > SEEN
    again = analyze(once)
    twice, _ = assert_exact(again, half_of(again))
    # tuning and later rounds know weights by name
    assert {"w1", "w3"} | ({"v1"} & set(analysis.model.weights)) <= set(twice.weights)
    assert len(twice.proto.graph.node) == len(once.proto.graph.node)


@pytest.mark.parametrize("criterion", ["reconstruction", "apoz"])
def test_a_run_of_a_skip_normalization(criterion: str, tmp_path: Path) -> None:
    """Statistics and repair pass a constant that is added inside of an operator."""
    text = (
        f"float[n,6,4] x | {WEIGHTS}, float[8,16] k1, float[16,8] k2 | a = MatMul(x, w1); "
        "h = MatMul(a, k1); r = Relu(h); j = MatMul(r, k2); c, , , s = "
        "com.microsoft.SkipSimplifiedLayerNormalization(a, j, v1, w2); b = Add(c, s); "
        "y = MatMul(b, w3) | float[n,6,5] y"
    )
    x = np.random.default_rng(0).standard_normal((16, 6, 4), np.float32)
    data, target = tmp_path / "x.npz", 0.8
    np.savez(data, x=x)
    options = {"target": f"macs={target:.0%}", "round_to": 1, "engine": ()}
    result = optimize(load(net(text)), data=str(data), criterion=criterion, **options)
    assert analyze(result.model).cost().macs <= target * analyze(load(net(text))).cost().macs


def test_the_inverse_of_the_root_as_an_output_keeps_channels() -> None:
    nodes = "c, i = SimplifiedLayerNormalization(a, v1); b = Mul(c, i)"
    assert not analyze(load(model_of(nodes))).groups


@pytest.mark.parametrize("form", ["fused", "decomposed"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rms_normalization_is_exact_in_half_precision(form: str, dtype: str) -> None:
    number = {"float16": 10, "bfloat16": 16}[dtype]
    if form == "fused":
        nodes = "b = RMSNormalization<epsilon=0.00001>(a, v1)"
    else:
        nodes = (
            "c = Cast<to=1>(a); p = Pow(c, two); m = ReduceMean<axes=[-1]>(p); e = Add(m, eps); "
            f"r = Sqrt(e); q = Div(c, r); h = Cast<to={number}>(q); b = Mul(v1, h)"
        )
    text = (
        f"{dtype}[2,6,16] x | {dtype}[16,32] w1, {dtype}[32] v1, {dtype}[32,5] w3, "
        f"float eps = {{0.00001}}, float two = {{2.0}} | a = MatMul(x, w1); {nodes}; "
        f"y = MatMul(b, w3) | {dtype}[2,6,5] y"
    )
    analysis = analyze(load(net(text, opset=23 if form == "fused" else 17)))
    assert status(analysis) == [(32, True)]
    pruned, found = assert_exact(analysis, half_of(analysis))
    assert found.masked_difference > 10 * found.tolerance
    assert len(pruned.proto.graph.node) == len(analysis.model.proto.graph.node)


def test_rounded_scales_of_many_layers_are_no_failure() -> None:
    """The scales of half precision are rounded anew; over many layers that adds up."""
    weights, nodes = "float16[16,32] w0, float16[32,5] wz, float16[32] vz", "a0 = MatMul(x, w0)"
    layers = 24
    for i in range(layers):
        weights += f", float16[32] v{i}, float16[32,32] d{i}"
        nodes += (
            f"; n{i} = RMSNormalization(a{i}, v{i}); j{i} = MatMul(n{i}, d{i}); "
            f"a{i + 1} = Add(a{i}, j{i})"
        )
    nodes += f"; n = RMSNormalization(a{layers}, vz); y = MatMul(n, wz)"
    text = f"float16[2,6,16] x | {weights} | {nodes} | float16[2,6,5] y"
    analysis = analyze(load(net(text, opset=23)))
    plan = half_of(analysis)
    pruned = cut(analysis, plan)
    found = verify(analysis, plan, pruned)
    assert found.difference <= found.tolerance / 10
    # a scale with the wrong factor is one
    wrong = pruned.edit()
    wrong.weights["v3"] = from_array((pruned.weights["v3"].array() * 1.02).astype(np.float16))
    assert not verify(analysis, plan, wrong.freeze()).ok


IMAGE = (
    "float[2,4,4,4] x | float[8,4,1,1] w1, float[8,1,1] v1, float[8,1,1] w2, float[8] v3, "
    "float[8] w4, float eps = {0.01}, int64[3] s3 = {0, 4, -1}, int64[5] s5 = {2, 4, 2, 4, 4}, "
    "int64[4] s4 = {2, 8, 4, 4}, int64[1] channel = {1}, float[8,8,1,1] k, float[5,8,1,1] w5 | "
    "a = Conv(x, w1); {nodes}; y = Conv(b, w5)"
)


def normalize(tensor: str, axes: str) -> str:
    """Return nodes that normalize a tensor over axes, to `q`."""
    return (
        f"m = ReduceMean<axes=[{axes}]>({tensor}); d = Sub({tensor}, m); s = Mul(d, d); "
        f"v = ReduceMean<axes=[{axes}]>(s); e = Add(v, eps); r = Sqrt(e); q = Div(d, r)"
    )


AFFINE = "g = Mul(q, v1); b = Add(g, w2)"
GROUPED = "u = Reshape(q, s4); g = Mul(u, v1); b = Add(g, w2)"
GROUPS, COLUMNS = (4, True), (2, False)
IMAGE_NORMS: dict[str, tuple[str, int, list[tuple[int, bool]], list[tuple[int, bool]]]] = {
    # nodes, opset, groups, groups with all mixing opened
    "group_fused": (
        "b = GroupNormalization<num_groups=4>(a, v3, w4)",
        21,
        [GROUPS],
        [COLUMNS, GROUPS],
    ),
    "group_3d": (
        f"t = Reshape(a, s3); {normalize('t', '2')}; {GROUPED}",
        17,
        [GROUPS],
        [COLUMNS, GROUPS],
    ),
    "group_last": (
        f"t = Reshape(a, s3); {normalize('t', '-1')}; {GROUPED}",
        13,
        [GROUPS],
        [COLUMNS, GROUPS],
    ),
    "group_5d": (
        f"t = Reshape(a, s5); {normalize('t', '2, 3, 4')}; {GROUPED}",
        17,
        [GROUPS],
        [COLUMNS, GROUPS],
    ),
    "instance_fused": ("b = InstanceNormalization(a, v3, w4)", 17, [(8, True)], [(8, True)]),
    "instance": (f"{normalize('a', '2, 3')}; {AFFINE}", 17, [(8, True)], [(8, True)]),
    "layer_2d_fused": (
        "t = Transpose<perm=[0,2,3,1]>(a); c = LayerNormalization(t, v3, w4); "
        "b = Transpose<perm=[0,3,1,2]>(c)",
        17,
        [],
        [(8, False)],
    ),
    "layer_2d": (f"{normalize('a', '1')}; {AFFINE}", 17, [], [(8, False)]),
    "layer_image": (f"{normalize('a', '1, 2, 3')}; {AFFINE}", 17, [], [(8, False)]),
    "layer_residual": (
        f"{normalize('a', '1')}; {AFFINE.replace('b =', 'o =')}; j = Conv(o, k); b = Add(a, j)",
        17,
        [],
        [(8, False)],
    ),
    "centered": ("m = ReduceMean<axes=[1]>(a); b = Sub(a, m)", 17, [], [(8, False)]),
    # what an unknown operator returns may be the mean itself
    "unknown": ("m = ReduceMean<axes=[1]>(a); u = custom.Op(m); b = Sub(a, u)", 17, [], []),
    "softmax": ("z = Exp(a); t = ReduceSum(z, channel); b = Div(z, t)", 17, [], [(8, False)]),
    "softmax_fused": ("b = Softmax<axis=1>(a)", 17, [], [(8, False)]),
    # products with a mean over channels keep zeros: the means are those of the original
    "gate": ("m = ReduceMean<axes=[1]>(a); i = Sigmoid(m); b = Mul(a, i)", 17, *[[(8, True)]] * 2),
    "response": (
        "z = ReduceL2<axes=[2, 3]>(a); m = ReduceMean<axes=[1]>(z); e = Add(m, eps); "
        "n = Div(z, e); p = Mul(a, n); o = Mul(p, v1); f = Add(o, w2); b = Add(f, a)",
        17,
        *[[(8, True)]] * 2,
    ),
    "length": ("z = ReduceL2<axes=[1]>(a); b = Div(a, z)", 17, *[[(8, True)]] * 2),
}


@pytest.mark.parametrize("name", IMAGE_NORMS)
def test_norms_of_images(name: str) -> None:
    nodes, opset, closed, opened = IMAGE_NORMS[name]
    model = load(net(IMAGE.replace("{nodes}", nodes), opset=opset))
    mixing = ("LayerNormalization", "GroupNormalization", "Softmax")
    for allow, expected in (((), closed), (mixing, opened)):
        analysis = analyze(model, allow_mixing=allow)
        assert status(analysis) == expected
        if expected:
            plan = half_of(analysis)
            pruned = cut(analysis, plan)
            assert verify(analysis, plan, pruned).ok
            assert_shapes_as_predicted(analysis, plan, pruned)
