"""Weights and activations that are NaN or infinite end a run by name; other odd models do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from graph_text import net
from onnx import ModelProto, numpy_helper

from onnxprune.errors import DataError, ModelError
from onnxprune.run.pipeline import optimize

SAMPLES = 40
PLAIN = (
    "float[N,3,6,6] x | float[8,3,3,3] w1, float[8,8,3,3] w2, float[8,4] w3 | a = Conv(x, w1); "
    "{between}; c = Conv(b, w2); d = ReduceMean<axes=[2,3],keepdims=0>(c); y = MatMul(d, w3) "
    "| float[N,4] y"
)


@pytest.fixture
def data(tmp_path: Path) -> str:
    path = tmp_path / "data.npz"
    values = np.random.default_rng(0).standard_normal((SAMPLES, 3, 6, 6)).astype(np.float32)
    np.savez(path, x=values)
    return str(path)


def with_value(model: ModelProto, name: str, value: float) -> ModelProto:
    """Return the model with one value of a weight replaced."""
    tensor = next(t for t in model.graph.initializer if t.name == name)
    values = numpy_helper.to_array(tensor).copy()
    values.flat[1] = value
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    return model


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["w1", "w3"])
def test_a_weight_that_is_not_finite_is_named(name: str, value: float) -> None:
    model = with_value(net(PLAIN.replace("{between}", "b = Relu(a)")), name, value)
    node = {"w1": "a", "w3": "y"}[name]
    with pytest.raises(ModelError, match=f"weight '{name}' of node '{node}'.*in 1 of") as caught:
        optimize(model, engine="none", round_to=1)
    assert caught.value.code == "weights-not-finite"


def test_an_activation_that_is_not_finite_is_named(data: str) -> None:
    model = net(PLAIN.replace("{between}", "r = Relu(a); b = Log(r)"))
    for options in ({}, {"fast": True}, {"criterion": "activation_mean"}):
        with pytest.raises(DataError, match=r"tensor 'b', which node 'b' \(Log\)") as caught:
            optimize(model, data=data, engine="none", target="macs=70%", **options)
        assert caught.value.code == "activations-not-finite"


def test_activations_whose_products_overflow_are_named(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((SAMPLES, 3, 6, 6)) * 1e30
    np.savez(tmp_path / "large.npz", x=values.astype(np.float32))
    model = net(PLAIN.replace("{between}", "b = Relu(a)"))
    for options in ({}, {"fast": True}):
        with pytest.raises(DataError, match=r"tensor 'b', which node 'b' \(Relu\)") as caught:
            optimize(model, data=str(tmp_path / "large.npz"), engine="none", round_to=1, **options)
        assert caught.value.code == "activations-too-large"


def test_infinite_constants_of_masks_are_allowed(data: str) -> None:
    text = PLAIN.replace("float[8,4] w3", "float[8,4] w3, float least = {-1}").replace(
        "{between}", "k = Greater(a, least); q = Where(k, a, least); b = Max(q, floor)"
    )
    model = net(text.replace("float least", "float[1] floor, float least"))
    for tensor in model.graph.initializer:
        if tensor.name == "floor":
            tensor.CopyFrom(numpy_helper.from_array(np.array([-np.inf], np.float32), "floor"))
    optimize(model, data=data, engine="none", target="macs=80%", round_to=1, fast=True)


INFINITE = {
    "attention": "float[1,6,8] x | float[8,8] w, float[6,6] m, float[8,3] v | a = MatMul(x, w); "
    "b = Attention<q_num_heads=2, kv_num_heads=2>(a, a, a, m); y = MatMul(b, v)",
    "padding": "float[1,4,6,6] x | float[8,4,1,1] w, float m, int64[8] p = {0, 0, 1, 1, 0, 0, 1, 1}"
    ", float[5,8,1,1] v | a = Conv(x, w); b = Pad(a, p, m); "
    "c = MaxPool<kernel_shape=[3,3]>(b); y = Conv(c, v)",
    "boxes": "float[1,9,4] x, float[1,9,8] s | float[8,6] w, float[6,2] v, int64[1] most = {5}, "
    "float[1] share = {0.5}, float[1] m | a = MatMul(s, w); b = MatMul(a, v); "
    "c = Transpose<perm=[0,2,1]>(b); y = NonMaxSuppression(x, c, most, share, m) | int64[k,3] y",
    "update": "float[1,9,4] x | float[4,6] w, float[6,2] v, int64[1,3] i = {0, 1, 1}, float[1] m | "
    "a = MatMul(x, w); b = MatMul(a, v); c = ScatterND(b, i, m); y = Softmax(c)",
}


@pytest.mark.parametrize("name", INFINITE)
def test_infinite_parameters_of_operators_are_allowed(name: str) -> None:
    model = net(INFINITE[name], opset=23)
    tensor = next(t for t in model.graph.initializer if t.name == "m")
    masked = np.tri(6, dtype=bool) if name == "attention" else np.zeros(tensor.dims, bool)
    values = np.where(masked, np.float32(0), np.float32(-np.inf))
    tensor.CopyFrom(numpy_helper.from_array(values, "m"))
    assert optimize(model, engine="none", round_to=1).report.verification.ok
    if name in ("attention", "boxes"):  # the others copy values
        tensor.CopyFrom(numpy_helper.from_array(np.full_like(values, np.nan), "m"))
        with pytest.raises(ModelError, match="weight 'm' of node"):
            optimize(model, engine="none", round_to=1)


@pytest.mark.parametrize("slope", ["b = PRelu(a, s)", "b = LeakyRelu<alpha=0.2>(a)"])
def test_gradients_of_half_precision_slopes(slope: str, tmp_path: Path) -> None:
    text = (
        "float16[N,3,6,7] x | float16[8,3,3,3] w1, float16[8,1,1] s, float16[5,8,3,3] w2 | "
        f"a = Conv(x, w1); {slope}; c = Conv(b, w2); "
        "y = ReduceMean<axes=[2,3],keepdims=0>(c) | float16[N,5] y"
    )
    values = np.random.default_rng(0).standard_normal((SAMPLES, 3, 6, 7)).astype(np.float16)
    np.savez(tmp_path / "half.npz", x=values)
    options = {"engine": "none", "target": "macs=80%", "round_to": 1, "repair": "none"}
    optimize(net(text), data=str(tmp_path / "half.npz"), criterion="taylor", **options)
