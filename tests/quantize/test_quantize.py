"""int8 and float16 models: exclusion holds, biases are corrected, runs end in what was asked."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from graph_text import net
from onnx import ModelProto, TensorProto, numpy_helper

from onnxprune.cli import run
from onnxprune.data.dataset import Data, open_data
from onnxprune.demo import files
from onnxprune.errors import ModelError, UsageError
from onnxprune.ir.edit import copy_message
from onnxprune.ir.io import Model, load, to_bytes
from onnxprune.ir.runtime import Session
from onnxprune.metrics.fidelity import fidelity
from onnxprune.quantize import graph, static
from onnxprune.quantize.bias import correct_biases
from onnxprune.quantize.equalize import _find_pairs, equalize
from onnxprune.quantize.forms import FORMS, list_ops
from onnxprune.quantize.half import quantize_half
from onnxprune.quantize.ranges import Parts, collect_ranges, prepare
from onnxprune.quantize.static import _Work, compare_optimization, quantize
from onnxprune.report.quantized import format_quantization
from onnxprune.run.adapter import open_inputs
from onnxprune.run.quantization import exclude_within, judge_rows, quantize_candidate
from onnxprune.run.recipe import Recipe
from onnxprune.run.splits import Splits

MODEL, CALIBRATION, EVALUATION = map(str, files())
DIVERGENCE = {"u8s8": 0.02, "tensorrt": 0.02, "openvino": 0.02, "pow2": 0.04, "qlinear": 0.03}


@pytest.fixture(scope="module")
def model() -> Model:
    return load(MODEL)


@pytest.fixture(scope="module")
def data(model: Model) -> Data:
    return open_inputs(model, Recipe(data=CALIBRATION, samples=64))


@pytest.fixture(scope="module")
def evaluation(model: Model) -> Data:
    return open_inputs(model, Recipe(data=CALIBRATION, samples=64), path=EVALUATION)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_computes_nearly_the_same(
    model: Model, data: Data, evaluation: Data, form: str
) -> None:
    result = quantize(model, data, form, "minmax")
    error = fidelity(model, result.model, evaluation).divergence
    assert 1e-4 < error < DIVERGENCE[form]
    assert result.difference < 0.02 and not [w for w in result.warnings if "differ" in w]
    scales = [
        weight.array() for name, weight in result.model.weights.items() if name.endswith("_scale")
    ]
    ops = {n.op_type for n in result.model.proto.graph.node}
    assert ("QLinearConv" in ops, "Conv" in ops) == (form == "qlinear", form != "qlinear")
    exact = all(np.all(np.exp2(np.rint(np.log2(s))) == s) for s in scales)
    assert exact == FORMS[form].power_of_two


def test_the_default_form_computes_all_layers_in_integers(model: Model, data: Data) -> None:
    assert quantize(model, data).integer == {"Conv": (16, 16), "Gemm": (1, 1)}


def test_excluded_nodes_are_float_in_the_optimized_graph(
    model: Model, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [n.name for n in model.proto.graph.node if n.op_type == "Conv"][2:5]
    result = quantize(model, data, calibrate="minmax", exclude=names)
    assert set(result.excluded) == set(names)
    assert result.integer["Conv"] == (13, 16)
    assert not [w for w in result.warnings if "quantizes excluded" in w]

    # the control: without protection onnxruntime's optimizer quantizes them, and it is noticed
    monkeypatch.setattr(graph, "_protect", lambda *_: None)
    bare = quantize(model, data, calibrate="minmax", exclude=names)
    assert bare.integer["Conv"][0] > 13
    assert [w for w in bare.warnings if "quantizes excluded" in w]


def test_sequential_correction_approaches_the_means_of_the_float_layers(
    model: Model, data: Data
) -> None:
    form, feeds = FORMS["pow2"], list(data.batches(32))
    proto = prepare(model)
    ranges = collect_ranges(proto, "minmax", list_ops(form), form.symmetric, feeds)
    plain, corrected = (graph.build(proto, ranges, form, ()) for _ in range(2))
    assert correct_biases(proto, corrected, feeds) == 17

    def shift(quantized: object) -> float:
        difference = [np.mean([_run(quantized, f) - _run(proto, f) for f in feeds], axis=(0, 1))]
        return float(np.abs(difference).max())

    # not 0: what may be chance is not corrected
    assert shift(corrected) < 0.4 * shift(plain)


@pytest.mark.parametrize("form", ["pow2", "tensorrt"])
def test_a_bias_that_is_added_to_a_product_is_corrected(form: str) -> None:
    weights = ", ".join(f"float[12,12] w{i}, float[12] b{i}" for i in range(3))
    model = load(
        net(
            f"float[n,5,12] x | {weights} | a = MatMul(x, w0); c = Add(a, b0); d = Relu(c); "
            "e = MatMul(d, w1); f = Add(b1, e); g = MatMul(f, w2); y = Add(g, b2)"
        )
    )
    # most inputs are small, so that their rounding shifts means
    feed = {"x": np.random.default_rng(0).random((256, 5, 12), np.float32) ** 4}
    data = open_data(feed, Session(model).inputs, samples=256)
    parts = Parts([feed], [feed], data)
    work = _Work(model, prepare(model), FORMS[form], parts, None, 1)
    ranges = collect_ranges(work.proto, "minmax", list_ops(work.form), True, [feed])
    plain = work.build(ranges, {})
    corrected, count = work.correct(ModelProto.FromString(to_bytes(plain)), ranges, {})
    expected = Session(model).run(feed)["y"]
    shifts = [
        np.abs((Session(m).run(feed)["y"] - expected).mean((0, 1))).mean()
        for m in (load(corrected), plain)
    ]
    assert count == 3 and shifts[0] < 0.8 * shifts[1]


def masked_attention(mask: float) -> tuple[Model, Data]:
    """Return self-attention with a causal mask of a value, and inputs."""
    text = (
        "float[2,6,8] x | float[8,16] wq, float[8,16] wk, float[8,16] wv, float[16,5] wo, "
        "float[6,6] m | q = MatMul(x, wq); k = MatMul(x, wk); v = MatMul(x, wv); "
        "t = Transpose<perm=[0,2,1]>(k); s = MatMul(q, t); a = Add(s, m); p = Softmax(a); "
        "o = MatMul(p, v); r = Relu(o); y = MatMul(r, wo)"
    )
    proto = net(text)
    weight = next(t for t in proto.graph.initializer if t.name == "m")
    values = np.where(np.tri(6, dtype=bool), np.float32(0), np.float32(mask))
    weight.CopyFrom(numpy_helper.from_array(values, "m"))
    arrays = {"x": np.random.default_rng(0).standard_normal((32, 6, 8)).astype(np.float32)}
    masked = load(proto)
    data = open_data(arrays, Session(masked).inputs, samples=32)
    return masked, data


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("mask", [-np.inf, -3.4e38, -1e9])
@pytest.mark.parametrize("form", ["u8s8", "qlinear", "tensorrt"])
@pytest.mark.parametrize("calibrate", ["auto", "minmax", "percentile", "entropy"])
def test_masked_scores_stay_float(mask: float, form: str, calibrate: str) -> None:
    """Of a range up to infinity, 8 bits resolve no score and a histogram has no bins."""
    masked, data = masked_attention(mask)
    result = quantize(masked, data, form, calibrate)
    assert [reason for reason in result.excluded.values() if "masks" in reason]
    assert fidelity(masked, result.model, data).divergence < (
        0.2 if calibrate == "entropy" else 0.05
    )


@pytest.mark.parametrize("mask", [-np.inf, -3.4e38, -1e9])
def test_masks_are_no_overflow_of_float16(mask: float) -> None:
    masked, data = masked_attention(mask)
    assert 0 < fidelity(masked, quantize_half(masked, data), data).divergence < 0.01
    huge = {"x": np.full((8, 6, 8), -1e9, np.float32)}
    with pytest.raises(ModelError, match="'x' reaches 1e"):
        quantize_half(masked, open_data(huge, Session(masked).inputs, samples=8))


def test_nodes_in_float_are_listed_by_reason() -> None:
    excluded = {**{f"n{i}": "masks" for i in range(5)}, "m": "--quantize-exclude m"}
    row = {"bytes": 4, "divergence": None, "metrics": {}, "speed": {}}
    text = format_quantization({"models": {"float": row}, "text": "", "excluded": excluded})
    assert text.splitlines()[-2:] == [
        "in float32: n0, n1, n2 and 2 more (masks)",
        "in float32: m (--quantize-exclude m)",
    ]


def test_operators_without_weights_can_be_excluded(model: Model, data: Data) -> None:
    name = next(n.name for n in model.proto.graph.node if n.op_type == "Relu")
    assert name in quantize(model, data, calibrate="minmax", exclude=[name]).excluded


def _run(proto: object, feeds: dict[str, np.ndarray]) -> np.ndarray:
    return Session(load(proto), optimize=False).run(feeds)["logits"]


def test_equalization_keeps_the_float_graph_and_repairs_unequal_channels(
    model: Model, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    unequal = prepare(model)
    values = {t.name: t for t in unequal.graph.initializer}
    pairs = _find_pairs(unequal, values)
    factors = np.exp2(np.random.default_rng(0).integers(-4, 5, 512)).astype(np.float32)
    for first, second in pairs:
        depthwise = values[second.input[1]].dims[1] == 1
        moves = [(first.input[1], 0, factors), (first.input[2], 0, factors)]
        for name, axis, by in (*moves, (second.input[1], 1 - depthwise, 1 / factors)):
            old = numpy_helper.to_array(values[name])
            shape = [-1 if i == axis else 1 for i in range(old.ndim)]
            new = old * by[: old.shape[axis]].reshape(shape)
            values[name].CopyFrom(numpy_helper.from_array(new, name))
    equal = copy_message(unequal)
    assert equalize(equal) == len(pairs) > 2
    (feed,) = list(data.batches(64))[:1]
    expected = _run(prepare(model), feed)
    assert all(np.array_equal(_run(proto, feed), expected) for proto in (unequal, equal))
    # quantized in the same way as without the factors
    errors = [
        fidelity(model, quantize(m, data, "qlinear", "minmax", correct=False).model, data)
        for m in (model, load(unequal))
    ]
    assert errors[1].divergence < 1.2 * errors[0].divergence
    monkeypatch.setattr(static, "equalize", lambda proto: 0)
    control = quantize(load(unequal), data, "qlinear", "minmax", correct=False)
    assert fidelity(model, control.model, data).divergence > 2 * errors[1].divergence
    assert not control.equalized


def test_sensitive_nodes_are_excluded_until_the_limit_holds(model: Model, data: Data) -> None:
    free = quantize(model, data, calibrate="minmax", correct=False)
    result = quantize(model, data, calibrate="minmax", correct=False, max_divergence=0.008)
    assert not free.excluded and 0 < len(result.excluded) < 17
    assert all("diverge" in reason for reason in result.excluded.values())
    # a tolerance of a run excludes them once, for all candidates of its search
    recipe = Recipe(quantize="int8", quantize_exclude=next(iter(result.excluded)))
    splits = Splits(data)
    patterns = exclude_within(model, recipe, splits, 0.008, lambda share, text: None)
    assert 1 < len(patterns) < 17 and recipe.quantize_exclude[0] in patterns
    removed = recipe.but({"quantize_exclude": [*patterns, "removed"]})
    candidate = quantize_candidate(model, model, removed, splits)
    convs = [n for n in candidate.proto.graph.node if n.op_type in ("Conv", "Gemm")]
    floats = [n.name for n in convs if n.input[1] in candidate.weights]
    assert set(floats) == set(patterns)


def test_results_are_deterministic(model: Model, data: Data) -> None:
    first, second = (quantize(model, data).model.proto for _ in range(2))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(
        deterministic=True
    )


def test_what_cannot_be_quantized_is_one_sentence(model: Model, data: Data) -> None:
    with pytest.raises(UsageError, match="unknown quantize-exclude"):
        quantize(model, data, exclude=["no such node"])
    done = quantize(model, data, calibrate="minmax", correct=False).model
    with pytest.raises(UsageError, match="quantized already"):
        quantize(done, data)
    assert compare_optimization(done, list(data.batches(8))) < 0.02


def test_float16_keeps_inputs_and_outputs_and_refuses_an_overflow(
    model: Model, data: Data, evaluation: Data
) -> None:
    half = quantize_half(model, data)
    assert 0 < fidelity(model, half, evaluation).divergence < 0.01
    kinds = {
        v.type.tensor_type.elem_type for v in (*half.proto.graph.input, *half.proto.graph.output)
    }
    assert kinds == {TensorProto.FLOAT}
    proto = prepare(model)
    tensor = next(t for t in proto.graph.initializer if len(t.dims) == 4)
    values = numpy_helper.to_array(tensor) * np.float32(1e6)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    with pytest.raises(ModelError, match="largest float16"):
        quantize_half(load(proto), data)


def test_the_command_compares_both_models(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "q.onnx"
    words = ["quantize", MODEL, "--data", CALIBRATION, "--samples", "64", "-o", str(out)]
    assert run([*words, "--engine", "none", "--quantize-calibrate", "minmax", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["integer"]["Conv"] == [16, 16]
    float_row, int8_row = facts["models"]["float"], facts["models"]["int8"]
    assert int8_row["bytes"] < 0.4 * float_row["bytes"] and 0 < int8_row["divergence"] < 0.03
    assert out.is_file() and run(words) == 1


def test_a_run_writes_the_pruned_model_in_int8(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, folder = tmp_path / "q.onnx", tmp_path / "q.run"
    words = ["optimize", MODEL, "--data", CALIBRATION, "--samples", "64", "-o", str(out), "--fast"]
    words += ["--engine", "none", "--quantize", "int8", "--quantize-calibrate", "minmax"]
    assert run(words) == 0
    assert "pruned int8" in capsys.readouterr().out
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    rows = report["quantization"]["models"]
    assert list(rows) == ["float", "int8", "pruned", "pruned int8"]
    sizes = [row["bytes"] for row in rows.values()]
    assert sizes[3] < sizes[2] < sizes[0] and sizes[3] < sizes[1]
    assert report["after"]["bytes"] < 0.3 * report["before"]["bytes"]
    assert any(n.op_type == "QuantizeLinear" for n in load(out).proto.graph.node)
    assert run(["verify", MODEL, str(out), "--plan", str(folder / "plan.json")]) == 0


def test_a_slower_or_diverging_model_is_named() -> None:
    def row(low: float, median: float, high: float, divergence: float) -> dict[str, object]:
        speed = {"onnxruntime": {"median": median, "low": low, "high": high}}
        return {"divergence": divergence, "speed": speed}

    rows = {"float": {"divergence": 0.0, "speed": {}}, "int8": row(0.7, 0.8, 0.9, 0.1)}
    slower, diverging = (
        judge_rows(rows, "int8", "float", None),
        judge_rows({**rows, "int8": row(1.1, 1.2, 1.3, 0.1)}, "int8", "float", 0.05),
    )
    assert len(slower) == 1 and "0.80x its speed" in slower[0]
    assert len(diverging) == 1 and "0.1, the limit" in diverging[0]
    assert not judge_rows({**rows, "int8": row(0.9, 1.0, 1.1, 0.1)}, "int8", "float", 0.2)


def test_int8_needs_data_and_leaves_quantized_models_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "q.onnx")
    assert run(["optimize", MODEL, "-o", out, "--quantize", "int8"]) == 1
    assert "needs real inputs" in capsys.readouterr().err
    words = ["--data", CALIBRATION, "--samples", "32", "--engine", "none", "-q"]
    assert run(["quantize", MODEL, "-o", out, *words, "--quantize-calibrate", "minmax"]) == 0
    assert run(["quantize", out, "-o", str(tmp_path / "r.onnx"), *words]) == 2
    words += ["--criterion", "l2", "--allocate", "uniform", "--repair", "none"]
    assert run(["optimize", out, "--quantize", "int8", "--target", "macs=90%", *words]) == 0
    report = json.loads((tmp_path / "q.pruned.run" / "report.json").read_text(encoding="utf-8"))
    assert "quantization" not in report


def test_a_run_in_float16_is_a_valid_model(tmp_path: Path) -> None:
    out = str(tmp_path / "h.onnx")
    words = ["--data", CALIBRATION, "--samples", "32", "--engine", "none", "--fast"]
    words += ["--criterion", "l2", "--allocate", "uniform", "--repair", "none", "-q"]
    assert run(["optimize", MODEL, "-o", out, "--quantize", "fp16", *words]) == 0
    report = json.loads((tmp_path / "h.run" / "report.json").read_text(encoding="utf-8"))
    assert report["after"]["bytes"] < 0.35 * report["before"]["bytes"]
    # nodes are in order
    assert run(["inspect", out]) == 0
