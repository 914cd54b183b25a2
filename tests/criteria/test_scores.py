"""Magnitude, activation and control criteria against their formulas in numpy."""

from __future__ import annotations

import numpy as np
import pytest
from graph_text import net

from onnxprune.analysis.groups import Analysis
from onnxprune.analysis.walk import analyze
from onnxprune.criteria import CRITERIA
from onnxprune.criteria.base import Context
from onnxprune.data.dataset import Data, synthetic
from onnxprune.errors import DataError, UsageError
from onnxprune.ir.io import load
from onnxprune.ir.runtime import Session
from onnxprune.testing.criteria import check_criterion

RESIDUAL = (
    "float[n,4,6,6] x | float[8,4,3,3] w1, float[8] b1, float[6,8,1,1] w2, "
    "float[8,6,1,1] w3, float[5,8,1,1] w4 |"
    "a = Conv<pads=[1,1,1,1]>(x, w1, b1); r = Relu(a); b = Conv(r, w2); s = Relu(b); "
    "c = Conv(s, w3); d = Add(a, c); e = Relu(d); y = Conv(e, w4)"
)
NORMALIZED = (
    "float[n,4,6,6] x | float[8,4,3,3] w1, float[8] g, float[8] o, float[8] m, float[8] v, "
    "float[6,8,1,1] w2, float[5,6,1,1] w3 |"
    "a = Conv(x, w1); n = BatchNormalization(a, g, o, m, v); r = Relu(n); b = Conv(r, w2); "
    "y = Conv(b, w3)"
)
ON_WEIGHTS = ["l1", "l2", "largest_l1", "largest_l2", "random"]
ON_DATA = ["activation_mean", "activation_variance", "apoz", "activation*weight"]


def context(text: str = RESIDUAL, samples: int = 0, **options: int) -> Context:
    analysis = analyze(load(net(text)))
    return Context(analysis, data_of(analysis, samples) if samples else None, **options)


def data_of(analysis: Analysis, samples: int) -> Data:
    return synthetic({"x": (["n", 4, 6, 6], "tensor(float)")}, samples=samples, seed=5)


def weights(c: Context) -> dict[str, np.ndarray]:
    return {n: w.array().astype(np.float64) for n, w in c.analysis.model.weights.items()}


@pytest.mark.parametrize("name", [*ON_WEIGHTS, *ON_DATA])
def test_contract(name: str) -> None:
    check_criterion(CRITERIA.get(name), context(samples=6))


def test_norms_of_filters() -> None:
    """A residual stream sums over both layers that produce it."""
    c = context()
    w = weights(c)
    l1, l2 = CRITERIA.get("l1")(c), CRITERIA.get("l2")(c)
    both = [w["w1"].reshape(8, -1), w["w3"].reshape(8, -1)]
    np.testing.assert_allclose(l1["a"], sum(np.abs(b).sum(1) for b in both))
    np.testing.assert_allclose(l2["a"], np.sqrt(sum((b**2).sum(1) for b in both)))
    np.testing.assert_allclose(l1["b"], np.abs(w["w2"]).sum((1, 2, 3)))
    for name, plain in (("largest_l1", l1), ("largest_l2", l2)):
        assert all(np.array_equal(s, -plain[g]) for g, s in CRITERIA.get(name)(c).items())


@pytest.mark.parametrize("trans", [0, 1])
def test_norms_do_not_depend_on_the_layout(trans: int) -> None:
    """Gemm with a transposed weight or not, MatMul, and a 1x1 convolution give the same."""
    w = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    proto = net(
        f"float[2,4] x | float[{'8,4' if trans else '4,8'}] w1, float[8,5] w2 | "
        f"a = Gemm<transB={trans}>(x, w1); y = MatMul(a, w2)"
    )
    next(t for t in proto.graph.initializer if t.name == "w1").raw_data = (
        w if trans else w.T
    ).tobytes()
    c = Context(analyze(load(proto)))
    np.testing.assert_allclose(
        CRITERIA.get("l2")(c)["a"], np.sqrt((w.astype(np.float64) ** 2).sum(1)), rtol=1e-6
    )


def test_a_channel_before_a_flatten_is_one_filter() -> None:
    """It occupies 16 positions of the consumer, but one filter produces it."""
    c = context(
        "float[2,4,6,6] x | float[8,4,3,3] w1, float[128,6] w2, float[6,5] w3 | "
        "a = Conv(x, w1); f = Flatten(a); g = Gemm(f, w2); y = Gemm(g, w3)"
    )
    np.testing.assert_allclose(CRITERIA.get("l1")(c)["a"], np.abs(weights(c)["w1"]).sum((1, 2, 3)))


def test_quantized_weights_are_dequantized() -> None:
    """int8 with a scale per filter: the norm is that of the real values."""
    text = (
        "float[2,4,6,6] x | int8[8,4,3,3] k, float[8] v, int8[8] z = {1,2,3,4,0,0,0,0}, "
        "float[5,8,1,1] w2 | w = DequantizeLinear<axis=0>(k, v, z); a = Conv(x, w); "
        "y = Conv(a, w2)"
    )
    c = context(text)
    w = weights(c)
    real = (w["k"] - w["z"].reshape(8, 1, 1, 1)) * w["v"].reshape(8, 1, 1, 1)
    (scores,) = CRITERIA.get("l2")(c).values()
    np.testing.assert_allclose(scores, np.sqrt((real**2).sum((1, 2, 3))), rtol=1e-6)


def test_batchnorm_scale_is_absolute() -> None:
    c = context(NORMALIZED)
    w = weights(c)
    scores = CRITERIA.get("bn_scale")(c)
    assert list(scores) == ["a"]
    np.testing.assert_allclose(scores["a"], np.abs(w["g"]))
    np.testing.assert_allclose(
        CRITERIA.get("bn_scale*l1")(c)["a"], np.abs(w["g"]) * np.abs(w["w1"]).sum((1, 2, 3))
    )
    with pytest.raises(UsageError, match="folded"):
        CRITERIA.get("bn_scale")(context())


def record_inputs(c: Context) -> dict[str, np.ndarray]:
    """Return the inputs of the layers over all samples, (channels, everything else)."""
    session, data = Session(c.analysis.model, ["r", "s", "e"]), c.required_data("this test")
    runs = [session.run(feeds) for feeds in data.batches(4)]
    return {
        n: np.concatenate([r[n] for r in runs])
        .astype(np.float64)
        .transpose(1, 0, 2, 3)
        .reshape(runs[0][n].shape[1], -1)
        for n in ("r", "s", "e")
    }


def test_activation_criteria_average_over_consumers() -> None:
    """Two consumers of the residual stream, one of the branch."""
    c = context(samples=10, batch_size=4)
    x, w = record_inputs(c), weights(c)
    norms = {
        "r": (w["w2"] ** 2).sum((0, 2, 3)),
        "s": (w["w3"] ** 2).sum((0, 2, 3)),
        "e": (w["w4"] ** 2).sum((0, 2, 3)),
    }
    formulas = {
        "activation_mean": lambda n: np.abs(x[n]).mean(1),
        "activation_variance": lambda n: x[n].var(1),
        "apoz": lambda n: (x[n] > 0).mean(1),
        "activation*weight": lambda n: (x[n] ** 2).mean(1) * norms[n],
    }
    for name, formula in formulas.items():
        finish = np.sqrt if name == "activation*weight" else lambda v: v
        scores = CRITERIA.get(name)(c)
        np.testing.assert_allclose(
            scores["a"], finish((formula("r") + formula("e")) / 2), rtol=1e-4
        )
        np.testing.assert_allclose(scores["b"], finish(formula("s")), rtol=1e-4)


def test_scores_do_not_depend_on_batches() -> None:
    """Ten samples in batches of 3 (the last of one), or at once."""
    for name in ON_DATA:
        small, at_once = (CRITERIA.get(name)(context(samples=10, batch_size=b)) for b in (3, 10))
        for group, scores in small.items():
            np.testing.assert_allclose(scores, at_once[group], rtol=1e-5)


@pytest.mark.parametrize("name", ON_DATA)
def test_criteria_on_activations_need_data(name: str) -> None:
    with pytest.raises(DataError, match="needs calibration data"):
        CRITERIA.get(name)(context())


def test_random_is_seeded_and_fair() -> None:
    random = CRITERIA.get("random")
    first, again, other = random(context(seed=1)), random(context(seed=1)), random(context(seed=2))
    assert all(np.array_equal(first[g], again[g]) for g in first)
    assert not np.array_equal(first["a"], other["a"])
    draws = np.array([random(context(seed=s))["b"].argmin() for s in range(60)])
    assert len(set(draws.tolist())) == 6


def test_an_unknown_criterion_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'l2'"):
        CRITERIA.get("l22")


@pytest.mark.parametrize("name", ON_DATA)
def test_a_group_consumed_only_in_bodies_has_no_score(name: str) -> None:
    """Activations inside nested graphs are not measured; the group stays unpruned."""
    bodies = ", ".join(
        f"{side}_branch = {side} () => (float[2,5,6,6] {side}_y) {{ {side}_y = Conv(a, {side}_w) }}"
        for side in ("then", "else")
    )
    c = context(
        "float[2,4,6,6] x | float[8,4,1,1] w1, float z = {0}, float[5,8,1,1] then_w, "
        "float[5,8,1,1] else_w |"
        "a = Conv(x, w1); s = ReduceSum<keepdims=0>(x); p = Greater(s, z); "
        f"y = If(p) <{bodies}> | float[2,5,6,6] y",
        samples=4,
    )
    assert [g.name for g in c.analysis.groups] == ["a"]
    assert not CRITERIA.get(name)(c)
    assert len(CRITERIA.get("l2")(c)["a"]) == 8
