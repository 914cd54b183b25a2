"""Verification passes right cuts of awkward models and still fails wrong ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from graph_laws import plan_of
from graph_text import net

from onnxprune.analysis.walk import analyze
from onnxprune.errors import ModelError
from onnxprune.ir.io import Model, load
from onnxprune.ir.weights import from_array
from onnxprune.surgery.cut import cut
from onnxprune.surgery.ties import _OutputGraph
from onnxprune.surgery.verify import _measure_own_rounding, verify

HALF_EFFECT = 4e-3  # of a fault in float16 that must be caught
BODY = "a = MatMul(x, w1); r = Relu(a); b = MatMul(r, w2)"
WEIGHTS = "float[6,12] w1, float[12,5] w2"
CASES = {
    "tiny sigmoid": f"float[3,6] x | {WEIGHTS}, float s = {{-14}} | {BODY}; c = Add(b, s);"
    "y = Sigmoid(c)",
    "softmax": f"float[3,6] x | {WEIGHTS}, float s = {{20}} | {BODY}; c = Mul(b, s);y = Softmax(c)",
    "chosen sigmoid": f"float[3,6] x | {WEIGHTS}, float s = {{-14}}, float z = {{0}},"
    f"bool[5] m = {{1,0,1,1,0}} | {BODY}; c = Add(b, s); p = Sigmoid(c); y = Where(m, p, z)",
    "complement of a sigmoid": f"float[3,6] x | {WEIGHTS}, float s = {{12}}, float one = {{1}}"
    f"| {BODY}; c = Add(b, s); p = Sigmoid(c); y = Sub(one, p)",
    "tiny sigmoid in a body": f"float[3,6] x, bool k | {WEIGHTS}, float s = {{-9}} | {BODY}; "
    "y = If(k) <then_branch = g1 () => (float[3] u) { c = Add(b, s); d = Sigmoid(c); "
    "u = ReduceMean<axes=[1], keepdims=0>(d) }, else_branch = g2 () => (float[3] v) "
    "{ e = Add(b, s); f = Sigmoid(e); v = ReduceMean<axes=[1], keepdims=0>(f) }>",
    "noise": f"float[3,6] x | {WEIGHTS} | {BODY}; n = RandomNormalLike(b); y = Add(b, n)",
    "uniform": f"float[3,6] x | {WEIGHTS} | {BODY}; n = RandomUniform<shape=[3,5]>();y = Mul(b, n)",
    "bernoulli": f"float[3,6] x | {WEIGHTS} | {BODY}; p = Sigmoid(b); n = Bernoulli(p);"
    "y = Add(b, n)",
    "dropout in training": f"float[3,6] x | {WEIGHTS}, float h = {{0.5}}, bool t = {{1}}"
    "| a = MatMul(x, w1); d = Dropout(a, h, t); y = MatMul(d, w2)",
}
RANDOM = ("noise", "uniform", "bernoulli", "dropout in training")


def _analyzed(text: str):
    """Return the analysis of a graph and a plan that keeps half of every group."""
    analysis = analyze(load(net(text)))
    assert analysis.groups
    return analysis, plan_of(analysis, {g.name: range(0, g.size, 2) for g in analysis.groups})


def _scale_row(model: Model, name: str, factor: float = 2.0, row: int = 0) -> Model:
    """Return the model with one row of a weight scaled."""
    copy = model.edit()
    values = np.array(copy.weights[name].array())
    values[row] *= factor
    copy.weights[name] = from_array(values)
    return copy.freeze()


@pytest.mark.parametrize("name", CASES)
def test_right_cut_passes_and_doubled_weight_fails(name: str) -> None:
    analysis, plan = _analyzed(CASES[name])
    pruned = cut(analysis, plan)
    result = verify(analysis, plan, pruned)
    assert result.ok and not result.vacuous, result
    assert bool(result.random) == (name in RANDOM)
    assert not verify(analysis, plan, _scale_row(pruned, "w2")).ok


def test_random_nodes_are_named() -> None:
    analysis, plan = _analyzed(CASES["noise"])
    (name,) = verify(analysis, plan, cut(analysis, plan)).random
    assert "RandomNormalLike" in name


def test_infinite_values_of_removed_channels_do_not_matter() -> None:
    model = net(f"float[3,6] x | {WEIGHTS} | {BODY}; y = Identity(b)")
    for tensor in model.graph.initializer:
        if tensor.name == "w1":
            values = np.array(onnx.numpy_helper.to_array(tensor))
            values[:, 1] = np.inf  # channel 1 is removed below
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, "w1"))
    analysis = analyze(load(model))
    (group,) = analysis.groups
    plan = plan_of(analysis, {group.name: range(0, group.size, 2)})
    feeds = {"x": np.ones((3, 6), np.float32)}
    assert verify(analysis, plan, cut(analysis, plan), feeds).ok


SELECTION = """float[1,40,6] x, float[1,40,6] z
| float[6,12] w1, float[12,1] w2, float[6,5] w3, int64[1] k = {10}
| a = MatMul(x, w1); r = Relu(a); s = MatMul(r, w2); t = Squeeze(s, two); v, i = TopK(t, k);
j = Squeeze(i, zero); g = Gather<axis=1>(z, j); y = MatMul(g, w3)"""


def _selection():
    text = SELECTION.replace("int64[1] k", "int64[1] two = {2}, int64[1] zero = {0}, int64[1] k")
    return _analyzed(text)


def test_tie_in_topk_is_named_and_passes() -> None:
    """All rows but a few are equal up to rounding, so that TopK picks at random among them."""
    analysis, plan = _selection()
    rng = np.random.default_rng(0)
    row = rng.standard_normal(6)
    noise = rng.standard_normal((1, 40, 6)) * 3e-7
    feeds = {"x": (row + noise).astype(np.float32)}
    feeds["z"] = rng.standard_normal((1, 40, 6)).astype(np.float32)
    pruned = cut(analysis, plan)
    # sums in another order, as another kernel would do them: the last bits of the scores change
    shifted = _scale_scores(pruned)
    result = verify(analysis, plan, shifted, feeds)
    assert result.ok, result
    assert result.ties


def _scale_scores(model: Model) -> Model:
    """Return the model with the scores' weight changed in its last bits."""
    copy = model.edit()
    values = np.array(copy.weights["w2"].array())
    signs = np.where(np.arange(len(values)) % 2, 1, -1)[:, None]
    copy.weights["w2"] = from_array((values * (1 + 3e-6 * signs)).astype(np.float32))
    return copy.freeze()


@pytest.mark.parametrize("weight", ["w1", "w2", "w3"])
def test_wrong_weight_before_or_after_a_selection_fails(weight: str) -> None:
    analysis, plan = _selection()
    wrong = _scale_row(cut(analysis, plan), weight, factor=-9.0)
    assert not verify(analysis, plan, wrong).ok


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_half_precision_is_compared_in_float32(kind: str) -> None:
    model = net(f"{kind}[3,6] x | {WEIGHTS.replace('float', kind)} | {BODY}; y = Identity(b)")
    analysis = analyze(load(model))
    (group,) = analysis.groups
    plan = plan_of(analysis, {group.name: range(0, group.size, 2)})
    pruned = cut(analysis, plan)
    result = verify(analysis, plan, pruned)
    assert result.ok and result.tolerance < (HALF_EFFECT if kind == "float16" else 1e-2)
    copy = pruned.edit()
    values = np.array(copy.weights["w2"].array())
    values[0] = (values[0].astype(np.float32) * 1.1).astype(values.dtype)
    copy.weights["w2"] = from_array(values)
    assert not verify(analysis, plan, copy.freeze()).ok


# the bits of the float16 scale are those of 1/16
QUANTIZED_HALF = """float16[3,6] x
| int8[6,12] w1, int8[12,5] w2, float16 s = {11264}, int8 z = {0}, float16[5] b
| xq = QuantizeLinear(x, s, z); xd = DequantizeLinear(xq, s, z); w1d = DequantizeLinear(w1, s, z);
a = MatMul(xd, w1d); r = Relu(a); rq = QuantizeLinear(r, s, z); rd = DequantizeLinear(rq, s, z);
w2d = DequantizeLinear(w2, s, z); c = MatMul(rd, w2d); y = Add(c, b)"""


def test_quantized_half_precision_is_compared_by_exact_sums() -> None:
    """Float16 rounds values to other quantization steps, which a tolerance would have to cover."""
    analysis = analyze(load(net(QUANTIZED_HALF, opset=21)))
    (group,) = analysis.groups
    plan = plan_of(analysis, {group.name: range(0, group.size, 2)})
    pruned = cut(analysis, plan)
    result = verify(analysis, plan, pruned)
    assert result.ok and result.difference < 1e-6 < result.tolerance < HALF_EFFECT
    copy = pruned.edit()
    values = np.array(copy.weights["w2"].array())
    copy.weights["w2"] = from_array(values[[1, 0, *range(2, len(values))]])
    assert not verify(analysis, plan, copy.freeze()).ok


def test_vacuous_comparison_is_reported() -> None:
    """A network that multiplies everything by zero equals any cut of itself."""
    model = net(f"float[3,6] x | {WEIGHTS}, float o = {{0}} | {BODY}; y = Mul(b, o)")
    analysis = analyze(load(model))
    (group,) = analysis.groups
    plan = plan_of(analysis, {group.name: range(0, group.size, 2)})
    result = verify(analysis, plan, cut(analysis, plan))
    assert result.ok and result.vacuous and result.as_dict()["vacuous"] is True


def test_zero_input_is_replaced_by_others() -> None:
    analysis, plan = _analyzed(f"float[3,6] x | {WEIGHTS} | {BODY}; y = Identity(b)")
    result = verify(analysis, plan, cut(analysis, plan), {"x": np.zeros((3, 6), np.float32)})
    assert result.ok and not result.vacuous


def test_plan_that_removes_nothing_is_not_vacuous() -> None:
    analysis, plan = _analyzed(f"float[3,6] x | {WEIGHTS} | {BODY}; y = Identity(b)")
    whole = replace(plan, kept={}, sizes={})
    assert not verify(analysis, whole, cut(analysis, whole)).vacuous


@pytest.mark.parametrize(
    ("rounding", "expected"),
    [
        ({"original": 4e-6, "masked": 2e-6, "cut": 3e-6}, 8e-6),
        ({"original": 1e-6, "masked": 2e-5, "cut": 3e-6}, 4e-5),
        ({"original": 1e-6, "masked": 2e-6, "cut": 3e-5}, 6e-5),
        ({"original": 1e-6, "masked": 2e-6, "cut": 1.0}, 1e-4),
        ({"original": 3e-6, "masked": None, "cut": 1e-6}, 6e-6),
    ],
)
def test_tolerance_follows_the_rounding_of_all_compared_models(
    rounding: dict[str, float | None], expected: float
) -> None:
    class Trial:
        def run(self, model: str, optimize: bool) -> dict[str, np.ndarray]:
            assert optimize
            if rounding[model] is None:
                raise ModelError("run-failed", "a fused operator does not run")
            return {"y": np.array([1.0, 2.0 + 2.0 * rounding[model]])}

    runs = [(model, {"y": np.array([1.0, 2.0])}) for model in rounding]
    assert _measure_own_rounding(Trial(), runs, 1e-5) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("nodes", "heads"),
    [
        ("p = Sigmoid(x); y = Where(m, p, half)", {"x"}),
        ("p = Sigmoid(x); q = Softmax(z); r = Mul(p, q); y = Sub(half, r)", {"x", "z"}),
        ("p = Sigmoid(x); q = Sigmoid(z); r = Max(p, q); y = Clip(r)", {"x", "z"}),
        (
            "y = If(k) <then_branch = g1 () => (float[3] i) { i = Sigmoid(x) }, "
            "else_branch = g2 () => (float[3] j) { t = Sigmoid(z); j = ReduceMax(t) }>",
            {"x", "z"},
        ),
        (
            "y = If(k) <then_branch = g1 () => (float[3] i) { i = Sigmoid(x) }, "
            "else_branch = g2 () => (float[3] j) { j = Relu(z) }>",
            set(),
        ),
        ("p = Sigmoid(x); y = Where(m, p, z)", set()),
        ("p = Sigmoid(x); y = Where(m, p, large)", set()),
        ("p = Sigmoid(x); y = Mul(p, large)", set()),
        ("p = Sigmoid(x); y = Add(p, z)", set()),
    ],
)
def test_output_consists_of_saturating_functions(nodes: str, heads: set[str]) -> None:
    weights = "float half = {0.5}, float large = {1000}, bool[6] m = {1,0,1,1,0,1}"
    model = load(
        net(f"float[3,6] u, float[3,6] w, bool k | {weights} | x = Abs(u); z = Abs(w); {nodes}")
    )
    assert set(_OutputGraph(model, model, ["y"]).saturating_inputs("y")) == heads
