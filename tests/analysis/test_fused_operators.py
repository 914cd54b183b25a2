"""What onnxruntime's optimizer and quantizers write is as prunable as before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from cases import no_kernel
from contrib_ops import OPERATORS
from graph_laws import assert_exact, random_plan
from graph_text import net
from graphs import CASES
from onnx.reference import ReferenceEvaluator
from onnxruntime.quantization import quantize_dynamic

from onnxprune.analysis.walk import analyze
from onnxprune.ir.io import Model, load, to_bytes
from onnxprune.ir.passes.canonicalize import canonicalize
from onnxprune.ir.passes.expand_fused import EXPANDED, has_fused
from onnxprune.ir.runtime import Session, example_feeds
from onnxprune.run.pipeline import optimize
from onnxprune.surgery.cut import cut
from onnxprune.surgery.masking import masked


@pytest.mark.parametrize("name", no_kernel.CASES)
def test_cut_equals_masked_without_kernel(name: str) -> None:
    """Operators without a CPU kernel are evaluated by numpy."""
    case = no_kernel.CASES[name]
    analysis = analyze(load(net(case.text, opset=case.opset)))
    assert tuple(sorted(g.size for g in analysis.groups)) == case.groups, analysis.frozen
    assert analysis.prunable_macs() > 0
    feeds = example_feeds(analysis.model)

    def run(model: Model) -> np.ndarray:
        proto = onnx.load_from_string(to_bytes(model))
        return ReferenceEvaluator(proto, new_ops=OPERATORS).run(None, feeds)[0]

    original = run(analysis.model)
    for seed in range(3):
        plan = random_plan(analysis, np.random.default_rng(seed))
        pruned, expected = run(cut(analysis, plan)), run(masked(analysis, plan))
        scale = np.abs(expected).max()
        np.testing.assert_allclose(pruned, expected, rtol=1e-5, atol=1e-5 * scale)
        assert np.abs(expected - original).max() > 1e-2 * scale


SAVED = {
    "convolutions": (
        "float[2,4,8,8] x | float[8,4,3,3] w1, float[8] b1, float[8,8,3,3] w2, float[8] b2, "
        "float[8,8,1,1] w3, float[5,8,1,1] w4 | a = Conv(x, w1, b1); r = Relu(a); "
        "c = Conv<pads=[1,1,1,1]>(r, w2, b2); l = LeakyRelu(c); d = Conv(l, w3); s = Add(d, r); "
        "t = Sigmoid(s); y = Conv(t, w4)",
        {"FusedConv"},
    ),
    "products": (
        "float[2,5,4] x | float[4,8] w1, float[4,8] w2, float[4,8] w3, float h = {0.35}, "
        "float[8,6] w4, float[6] b4, float one = {1.0}, float half = {0.5}, float root = {1.414}, "
        "float[6,7] w5 | q = MatMul(x, w1); k = MatMul(x, w2); v = MatMul(x, w3); "
        "t = Transpose<perm=[0,2,1]>(k); s = MatMul(q, t); d = Mul(s, h); p = Softmax(d); "
        "a = MatMul(p, v); m = MatMul(a, w4); n = Add(m, b4); e = Div(n, root); f = Erf(e); "
        "g = Add(f, one); i = Mul(n, g); j = Mul(i, half); y = MatMul(j, w5)",
        {"FusedMatMul"},
    ),
    "residuals": (
        "float[n,5,4] x | float[4,8] w0, float[8,12] w1, float[12] b1, float root = {1.4142135}, "
        "float one = {1.0}, float half = {0.5}, float[12,8] w2, float[8] b2, float[8] g, "
        "float[8] o, float[8,7] w3 | a = MatMul(x, w0); m = MatMul(a, w1); n = Add(m, b1); "
        "e = Div(n, root); f = Erf(e); h = Add(f, one); i = Mul(n, h); j = Mul(i, half); "
        "k = MatMul(j, w2); l = Add(k, b2); s = Add(l, a); t = LayerNormalization(s, g, o); "
        "y = MatMul(t, w3)",
        {"SkipLayerNormalization", "BiasGelu"},
    ),
    "gemm": (
        "float[3,4] x | float[4,8] w1, float[8] b1, float[8,6] w2, float[6] b2, float[6,5] w3 | "
        "a = Gemm(x, w1, b1); r = Relu(a); c = Gemm(r, w2, b2); t = Sigmoid(c); y = MatMul(t, w3)",
        {"FusedGemm"},
    ),
}


def save(proto: onnx.ModelProto, folder: Path, level: str) -> onnx.ModelProto:
    """Return the graph that onnxruntime saves at an optimization level."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.optimized_model_filepath = str(folder / "saved.onnx")
    onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return onnx.load(folder / "saved.onnx")


@pytest.mark.parametrize("name", SAVED)
def test_saved_graph_is_as_prunable_as_before(name: str, tmp_path: Path) -> None:
    """At level EXTENDED, onnxruntime saves a graph with its own operators."""
    text, fused = SAVED[name]
    proto = net(text)
    saved = save(proto, tmp_path, "ORT_ENABLE_EXTENDED")
    assert fused <= {n.op_type for n in saved.graph.node}
    before, after = analyze(load(proto)), analyze(load(saved))
    assert after.prunable_macs() == pytest.approx(before.prunable_macs())
    assert sorted(g.size for g in after.groups) == sorted(g.size for g in before.groups)
    assert_exact(after, random_plan(after, np.random.default_rng(0)))


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("directions", [1, 2])
def test_dynamically_quantized_lstm_is_as_prunable_as_before(
    directions: int, per_channel: bool, tmp_path: Path
) -> None:
    """Layers that onnxruntime's quantizer writes are cut exactly, at dynamic lengths."""
    d, both = directions, ', direction="bidirectional"' if directions > 1 else ""
    proto = net(
        f"float[s,b,4] x | float[4,8] w0, float[{d},24,8] w1, float[{d},24,6] w2, "
        f"float[{d},48] c1, float[{d},20,{6 * d}] w3, float[{d},20,5] w4, "
        f"float[{d},40] c2, int64[3] t1 = {{0,0,-1}}, float[{5 * d},7] w5 | a = MatMul(x, w0); "
        f"o, h, c = LSTM<hidden_size=6{both}>(a, w1, w2, c1); m = Transpose<perm=[0,2,1,3]>(o); "
        f"r = Reshape(m, t1); p = LSTM<hidden_size=5{both}>(r, w3, w4, c2); "
        "n = Transpose<perm=[0,2,1,3]>(p); q = Reshape(n, t1); y = MatMul(q, w5)",
        ir_version=8,
    )
    path = tmp_path / "quantized.onnx"
    quantize_dynamic(proto, path, per_channel=per_channel)
    quantized = load(path)
    assert [n.op_type for n in quantized.proto.graph.node].count("DynamicQuantizeLSTM") == 2
    shapes = {"x": (7, 2, 4)}
    before, after = analyze(load(proto), shapes=shapes), analyze(quantized, shapes=shapes)
    assert after.prunable_macs() == before.prunable_macs() == 1
    assert after.cost().macs == before.cost().macs
    assert sorted(g.size for g in after.groups) == [5, 6, 8]
    for seed in range(2):
        assert_exact(after, random_plan(after, np.random.default_rng(seed)))


EXPANSIONS = [
    name
    for name, case in CASES.items()
    if any(f"com.microsoft.{op}" in case.text for op in EXPANDED)
]


@pytest.mark.parametrize("opset", [14, 20, None])
@pytest.mark.parametrize("name", EXPANSIONS)
def test_fused_float_operators_become_standard_ones(name: str, opset: int | None) -> None:
    """All three expansions of Gelu compute the same: standard, by Erf, by Tanh."""
    model = load(net(CASES[name].text, opset=opset or CASES[name].opset))
    canonical = canonicalize(model)
    assert any(n.domain for n in model.proto.graph.node)
    assert not any(n.domain for n in canonical.proto.graph.node)
    feeds = example_feeds(model)
    expected, actual = (
        list(Session(m, optimize=False).run(feeds).values()) for m in (model, canonical)
    )
    np.testing.assert_allclose(actual[0], expected[0], rtol=1e-5, atol=1e-6)


def test_fused_operators_in_bodies_and_forms_without_standard_nodes() -> None:
    text = (
        "bool k, float[2,4] x | float[4,8] w1, float[8] b1, float[8,5] w2 | "
        "a = MatMul(x, w1); b = If(k)<then_branch = t () => (float[2,8] u) "
        "{ u = com.microsoft.BiasGelu(a, b1) }, else_branch = e () => (float[2,8] v) "
        "{ v = com.microsoft.FastGelu(a) }>; y = MatMul(b, w2)"
    )
    assert not has_fused(canonicalize(load(net(text, opset=17))))
    # no standard operator scales both sides of Tanh
    text = (
        "float[2,4] x | float[4,8] w1, float[8,5] w2 | a = com.microsoft.FusedGemm<activation="
        '"ScaledTanh", activation_alpha=2.0, activation_beta=0.5>(x, w1); y = MatMul(a, w2)'
        " | float[2,5] y"
    )
    analysis = analyze(load(net(text)))
    assert not analysis.groups and any("FusedGemm" in f.reason for f in analysis.frozen)


RUN = {
    "convolutions": "float[n,4,8,8] x",
    "products": "float[n,5,4] x",
    "residuals": "float[n,5,4] x",
}


@pytest.mark.parametrize("name", RUN)
def test_run_on_a_saved_graph_is_as_good_as_on_its_original(name: str, tmp_path: Path) -> None:
    """Scores, calibration and repair see the same layers in both."""
    proto = net(f"{RUN[name]} | {SAVED[name][0].partition(' | ')[2]}")
    saved = save(proto, tmp_path, "ORT_ENABLE_EXTENDED")
    dims = proto.graph.input[0].type.tensor_type.shape.dim
    x = np.random.default_rng(0).standard_normal([d.dim_value or 16 for d in dims], np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    dense = Session(load(proto)).run({"x": x})["y"]
    errors = []
    for model in (proto, saved):
        options = {"target": "macs=70%", "round_to": 1, "engine": ()}
        result = optimize(load(model), data=str(tmp_path / "x.npz"), **options)
        assert not any(n.domain for n in result.model.proto.graph.node)
        errors.append(np.linalg.norm(Session(result.model).run({"x": x})["y"] - dense))
    # the order of nodes differs, and with it that of layers that are refitted
    assert errors[1] == pytest.approx(errors[0], rel=0.1)
    assert errors[1] < 0.5 * np.linalg.norm(dense)


def test_blocked_layout_names_the_level_to_save_at(tmp_path: Path) -> None:
    text = SAVED["convolutions"][0].replace("float[8,", "float[32,").replace(",8,", ",32,")
    saved = save(net(text.replace("float[8]", "float[32]")), tmp_path, "ORT_ENABLE_ALL")
    if not any(n.domain == "com.microsoft.nchwc" for n in saved.graph.node):
        pytest.skip("onnxruntime has no blocked layout for this machine")
    analysis = analyze(load(saved))
    assert not analysis.groups
    assert any("ORT_ENABLE_EXTENDED" in f.reason for f in analysis.frozen)
