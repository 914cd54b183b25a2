"""Sparse weights: layouts against operators, refits against a least-squares solver, reports."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.data.dataset import open_data
from onnxprune.data.labeled import open_labeled
from onnxprune.data.preprocess import Preprocess
from onnxprune.demo import files
from onnxprune.errors import UsageError
from onnxprune.ir.io import Model, load
from onnxprune.ir.runtime import Session
from onnxprune.metrics.run import evaluate
from onnxprune.sparsify import balance as balance_module
from onnxprune.sparsify.balance import (
    AMPLIFICATIONS,
    INTACT_SHARE,
    balance,
    intact_tensors,
    last_tensors,
    marginal_damage,
)
from onnxprune.sparsify.inputs import measure_inputs
from onnxprune.sparsify.layout import linear_weights
from onnxprune.sparsify.masks import choose, count_zeros
from onnxprune.sparsify.refit import refit, sparse_weights
from onnxprune.sparsify.report import packed, sparsity
from onnxprune.sparsify.weights import SparsifySettings, sparsify
from onnxprune.statistics.im2col import Moments, columns, geometry, positions

RNG = np.random.default_rng(0)
ALL = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Feeds:
    """Calibration data in memory."""

    feeds: list[dict[str, np.ndarray]]

    def batches(self, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
        """Yield the feeds as they are."""
        return iter(self.feeds)


def one(
    op: str, x_shape: tuple[int, ...], w_shape: tuple[int, ...], **attributes: object
) -> tuple[Model, np.ndarray]:
    """Build a model of one node without a bias, and an input."""
    x = RNG.standard_normal(x_shape).astype(np.float32)
    w = numpy_helper.from_array(RNG.standard_normal(w_shape).astype(np.float32), "w")
    node = helper.make_node(op, ["x", "w"], ["y"], **attributes)
    info = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, x_shape),
        helper.make_empty_tensor_value_info("y"),
    ]
    return load(
        helper.make_model(
            helper.make_graph([node], "one", info[:1], info[1:], [w]),
            opset_imports=[helper.make_opsetid("", 17)],
            ir_version=9,
        )
    ), x


@pytest.mark.parametrize(
    "model, x",
    [
        one("Conv", (2, 6, 7, 8), (4, 3, 3, 2), group=2, pads=[1, 0, 1, 1], strides=[2, 1]),
        one(
            "ConvTranspose", (2, 4, 5, 6), (4, 3, 3, 3), group=2, strides=[2, 2], pads=[1, 1, 1, 1]
        ),
        one("Gemm", (5, 4), (3, 4), transB=1),
        one("Gemm", (5, 4), (4, 3)),
        one("MatMul", (2, 5, 4), (4, 3)),
    ],
    ids=lambda v: v.proto.graph.node[0].op_type if isinstance(v, Model) else "",
)
def test_rows_times_columns_equal_the_operator(model: Model, x: np.ndarray) -> None:
    (target,) = linear_weights(model, ALL)
    weight = model.weights["w"].array()
    expected = Session(model).run({"x": x})["y"]
    how = geometry(target.nodes[0], weight.shape, x.shape)
    parts = columns(x, how, positions(expected.shape, how.spatial, 10**9, RNG))
    rows = target.to_rows(weight)
    found = np.einsum(
        "gok,gkp->gop", rows, parts.reshape(target.groups, -1, parts.shape[1])
    ).reshape(-1, parts.shape[1])
    flat = np.moveaxis(expected, 1 if how.spatial else -1, 0).reshape(len(found), -1)
    np.testing.assert_allclose(found, flat, rtol=1e-4, atol=1e-4)
    assert (target.from_rows(rows, weight.shape) == weight).all()


def test_a_refit_accounts_for_alpha() -> None:
    """Gemm with alpha 0.5 is the Gemm of half the weight: the same refit, bias included."""
    rng = np.random.default_rng(8)
    weight, bias = rng.standard_normal((6, 12)), rng.standard_normal(6)
    x = (rng.standard_normal((256, 12)) + 2).astype(np.float32)
    feeds = Feeds([{"x": x[:128]}, {"x": x[128:]}])
    settings = SparsifySettings(ops=("Gemm",), method="magnitude", scope="tensor")
    outputs = []
    for alpha in (1.0, 0.5):
        held = {"w": weight / alpha, "b": bias}
        node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1, alpha=alpha)
        info = [
            helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", s])
            for n, s in (("x", 12), ("y", 6))
        ]
        tensors = [numpy_helper.from_array(v.astype(np.float32), n) for n, v in held.items()]
        graph = helper.make_graph([node], "gemm", info[:1], info[1:], tensors)
        opset = [helper.make_opsetid("", 17)]
        model = load(helper.make_model(graph, opset_imports=opset, ir_version=9))
        sparse = sparsify(model, settings, feeds).model
        outputs.append(Session(sparse).run({"x": x})["y"])
    np.testing.assert_allclose(outputs[1], outputs[0], rtol=1e-4, atol=1e-4)


def test_refit_is_the_least_squares_solution() -> None:
    x = (
        RNG.standard_normal((12, 400)).astype(np.float32)
        * np.linspace(0.3, 2, 12, dtype=np.float32)[:, None]
        + 0.5
    )
    x[6:] += x[:6]  # correlated, or a refit would have nothing to do
    rows, bias, kept = (
        RNG.standard_normal((3, 12)),
        RNG.standard_normal(3),
        RNG.random((3, 12)) > 0.5,
    )
    moments = Moments.zeros(13)
    full = np.concatenate([x, np.ones((1, 400), np.float32)])
    moments.add(full)
    found, shift = refit(rows, kept, moments, bias)
    assert not found[~kept].any()
    dense = np.column_stack([rows, bias])
    ridge = np.sqrt(
        np.append(np.full(12, 13 / 400), 1e-3) * np.diag(moments.xx / 400)[:12].mean() * 400
    )
    for i in range(3):
        mask = np.append(kept[i], True)
        a = np.concatenate([full[mask].T.astype(np.float64), np.diag(ridge)[:, mask]])
        b = np.concatenate([full.T.astype(np.float64) @ dense[i], ridge * dense[i]])
        np.testing.assert_allclose(
            np.append(found[i], shift[i])[mask],
            np.linalg.lstsq(a, b, rcond=None)[0],
            rtol=1e-4,
            atol=1e-5,
        )


def test_few_positions_do_not_overfit() -> None:
    """With as many positions as columns an exact fit would fail on other inputs."""
    rng = np.random.default_rng(3)
    mix = rng.standard_normal((60, 60))
    seen, other = (mix @ rng.standard_normal((60, count)) + 1 for count in (60, 4000))
    rows, bias, kept = (
        rng.standard_normal((20, 60)),
        rng.standard_normal(20),
        rng.random((20, 60)) > 0.3,
    )
    noise = 0.3 * float(np.std(rows @ seen)) * rng.standard_normal((20, 60))
    moments = Moments.zeros(61, 20)
    moments.add(np.concatenate([seen, np.ones((1, 60))]), rows @ seen + bias[:, None] + noise)
    moments.flush()

    def error(found: np.ndarray, shift: np.ndarray) -> float:
        return float(
            np.square(found @ other + shift[:, None] - rows @ other - bias[:, None]).mean()
        )

    found, shift = refit(rows, kept, moments, bias)
    assert shift is not None and not found[~kept].any()
    exact, full = np.zeros((20, 61)), np.concatenate([seen, np.ones((1, 60))])
    for i, mask in enumerate(np.column_stack([kept, np.ones(20, bool)])):
        exact[i, mask] = np.linalg.lstsq(
            full[mask].T, (rows @ seen + bias[:, None] + noise)[i], rcond=None
        )[0]
    plain = np.where(kept, rows, 0)
    assert error(found, shift) < min(
        error(exact[:, :-1], exact[:, -1]),
        error(plain, bias),
        error(plain, bias + ((rows - plain) @ seen).mean(1)),
    )


def test_marginal_damage_follows_the_measured_law() -> None:
    """Summed in the order of the scores it is the power law through both points.

    The law is a line if more weights did no more damage than that.
    """
    scores = RNG.random((2, 3, 40))
    order = np.argsort(scores, axis=None)
    sums = np.cumsum(scores.reshape(-1)[order])
    for damage, power in ((0.32, 2.5), (0.01 * sums[150] / sums[30], 1.0), (0.02, 1.0)):
        last = float(sums[30] * (damage / 0.01) ** (1 / power)) if power > 1 else float(sums[150])
        found = marginal_damage(scores, [(float(sums[30]), 0.01), (last, damage)])
        assert (
            found.shape == scores.shape and (np.diff(found.reshape(-1)[order]) >= -1e-15).all()
        ), "the lowest scores of a tensor are removed first"
        np.testing.assert_allclose(
            np.cumsum(found.reshape(-1)[order]), 0.01 * (sums / sums[30]) ** power, rtol=1e-9
        )
    assert np.isfinite(
        marginal_damage(scores, [(float(sums[30]), 0.0), (float(sums[150]), 0.1)])
    ).all()


def test_the_smallest_tensors_stay_intact() -> None:
    sizes = {"a": 1000, "b": 10, "c": 20, "d": 20, "e": 9000}
    assert intact_tensors(sizes, 0.5) == {"b", "c", "d"}
    room = INTACT_SHARE * sum(sizes.values())
    assert intact_tensors(sizes, 1 - 49 / room) == {"b"}, "of the same size all or none"
    assert intact_tensors(sizes, 0.999) == set() and intact_tensors({"a": 5}, 0.0) == set()


def branches(gains: tuple[float, float]) -> Model:
    """Build two equal layers of one input, with gains on their outputs, and a small layer after."""
    rng = np.random.default_rng(5)
    held = {
        "a": rng.standard_normal((40, 40)),
        "b": rng.standard_normal((40, 40)),
        "c": rng.standard_normal((40, 10)) / 7,
        "ga": np.array(gains[0]),
        "gb": np.array(gains[1]),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["ya"]),
        helper.make_node("MatMul", ["x", "b"], ["yb"]),
        helper.make_node("Mul", ["ya", "ga"], ["za"]),
        helper.make_node("Mul", ["yb", "gb"], ["zb"]),
        helper.make_node("Add", ["za", "zb"], ["s"]),
        helper.make_node("MatMul", ["s", "c"], ["y"]),
    ]
    ends = (
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 40])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])],
    )
    tensors = [numpy_helper.from_array(v.astype(np.float32), n) for n, v in held.items()]
    return load(
        helper.make_model(
            helper.make_graph(nodes, "branches", *ends, tensors),
            opset_imports=[helper.make_opsetid("", 17)],
            ir_version=9,
        )
    )


def test_zeros_are_placed_where_outputs_change_least() -> None:
    """Scores alone distribute zeros evenly; the outputs hardly depend on the second branch."""
    model = branches((1.0, 0.05))
    found, rng = linear_weights(model, ALL), np.random.default_rng(6)
    assert last_tensors(model, found) == {"c"}
    feeds = [{"x": rng.standard_normal((64, 40)).astype(np.float32)} for _ in range(8)]
    readings = measure_inputs(model, found, feeds[2:], products=True)
    scores = {
        t.tensor: np.square(t.to_rows(model.weights[t.tensor].array()).astype(np.float64))
        for t in found
    }
    scores = {n: s / s.sum() for n, s in scores.items()}
    even, moved = (
        choose(scores, 0.3, "global"),
        balance(model, found, scores, readings, feeds[:2], 0.3),
    )
    zeros = {n: float((~k).mean()) for n, k in moved.items()}
    assert sum(int((~k).sum()) for k in moved.values()) == count_zeros(0.3, 40 * 90)
    assert abs(float((~even["a"]).mean()) - float((~even["b"]).mean())) < 0.05
    assert zeros["b"] > 2 * zeros["a"], zeros


def test_amplification_of_inner_layers_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The result is that of one factor, and no neighboring factor has less damage."""
    model = branches((1.0, 0.5))
    found, rng = linear_weights(model, ALL), np.random.default_rng(6)
    feeds = [{"x": rng.standard_normal((64, 40)).astype(np.float32)} for _ in range(8)]
    readings = measure_inputs(model, found, feeds[2:], products=True)
    scores = {
        t.tensor: np.square(t.to_rows(model.weights[t.tensor].array()).astype(np.float64))
        for t in found
    }
    scores = {n: s / s.sum() for n, s in scores.items()}

    def error(masks: dict[str, np.ndarray]) -> float:
        held = dict(model.weights)
        for t in found:
            held |= sparse_weights(model, t, masks[t.tensor], readings[t.tensor].moments())
        pairs = [
            (Session(model).run(f)["y"], Session(replace(model, weights=held)).run(f)["y"])
            for f in feeds[:2]
        ]
        return sum(float(np.square(a - b).sum()) for a, b in pairs)

    chosen = balance(model, found, scores, readings, feeds[:2], 0.4)
    alone = []
    for factor in AMPLIFICATIONS:
        monkeypatch.setattr(balance_module, "AMPLIFICATIONS", (factor,))
        alone.append(balance(model, found, scores, readings, feeds[:2], 0.4))
    (at,) = [
        i for i, masks in enumerate(alone) if all((masks[n] == chosen[n]).all() for n in masks)
    ]
    errors = [error(m) for m in alone]
    assert len({round(e, 9) for e in errors}) > 2, "the factor matters here"
    assert errors[at] == min(errors[: at + 2]), (at, errors)


@dataclass(frozen=True)
class Judged:
    model: Model
    top1: float


@pytest.fixture(scope="module")
def judge():
    model = load(files().model)
    inputs = Session(model).inputs
    labeled, unlabeled = (
        open_labeled(files().evaluation, inputs),
        open_data(files().calibration, inputs),
    )

    def run(**settings: object) -> tuple[Model, float, object]:
        made = sparsify(model, SparsifySettings(**settings), unlabeled)
        return made.model, evaluate(made.model, labeled, "top1").value, made

    return run


def test_a_third_is_free_and_a_refit_recovers_more(judge) -> None:
    assert judge(amount=0.3)[1] >= 0.98
    plain, refitted = (
        judge(amount=0.75, method="magnitude", scope="tensor", refit=r)[1] for r in (False, True)
    )
    assert refitted > plain + 0.02
    assert judge(amount=0.75)[1] >= refitted, "what is chosen where nothing is said"


def test_two_of_four_with_activations_and_refit(judge) -> None:
    model, top1, made = judge(scope="2:4", method="activation", refit=True, ops=("Conv", "Gemm"))
    assert top1 > 0.9 and not made.not_refitted
    for target in linear_weights(model, ("Conv",)):
        value = model.weights[target.tensor].array()
        if target.groups == 1 and value.shape[1] % 4 == 0:
            fours = value.reshape(value.shape[0], -1, 4, *value.shape[2:])
            assert ((fours != 0).sum(2) <= 2).all()


def test_report_counts_zeros(judge) -> None:
    model, _, made = judge(amount=0.5)
    by_hand = {n: int((w.array() == 0).sum()) for n, w in model.weights.items()}
    assert made.report.zeros == sum(
        by_hand[n] for n, w in model.weights.items() if w.array().dtype.kind == "f"
    )
    assert {t.tensor: t.zeros for t in made.report.tensors} == {
        t.tensor: by_hand[t.tensor] for t in made.report.tensors
    }
    assert made.report.of_weights > made.report.of_params > 0.4
    assert "latency and memory stay" in made.report.note
    assert made.report == sparsity(model)


def test_masked_weights_are_zero(judge) -> None:
    model, _, made = judge(amount=0.5, refit=True)
    for name, mask in made.masks.items():
        value = model.weights[name].array()
        assert mask.shape == value.shape and not value[~mask].any()


def test_missing_data_are_explained() -> None:
    with pytest.raises(UsageError, match="give --data"):
        sparsify(load(files().model), SparsifySettings(method="activation"))


def test_packed_size_is_between_entropy_and_plain_codes() -> None:
    values = np.where(RNG.random(5000) < 0.1, RNG.standard_normal(5000), 0)
    found = packed(values, codebook_bits=4, gap_bits=8)
    stored = int((values != 0).sum())
    share = stored / 5000
    entropy_bits = 5000 * -(share * np.log2(share) + (1 - share) * np.log2(1 - share))
    assert entropy_bits / 8 < found.size_bytes <= stored * 12 / 8 + 4 * 16 + 8
    assert packed(np.zeros(10)).size_bytes == 0


@pytest.mark.zoo
def test_thirty_percent_on_a_trained_classifier(zoo: Path) -> None:
    """Magnitude alone costs this folded network 8 points."""
    model = load(zoo / "cifar10_mlp_resnet8.onnx")
    inputs, kind = Session(model).inputs, Preprocess(scale=1.0)
    labeled = open_labeled(
        zoo / "data" / "cifar10_test_4000.npz", inputs, samples=500, preprocess=kind
    )
    unlabeled = open_data(
        zoo / "data" / "cifar10_field_1000.npz", inputs, samples=128, preprocess=kind
    )
    made = sparsify(model, SparsifySettings(amount=0.3, ops=ALL), unlabeled)
    before, after = (evaluate(m, labeled, "top1").value for m in (model, made.model))
    assert made.report.of_weights == pytest.approx(0.3, abs=0.001)
    assert after >= before - 0.015, "one point, and half for 500 images"
