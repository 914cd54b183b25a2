"""Fidelity against closed forms and torch, in any batching, and figures that do not apply."""

from __future__ import annotations

import math

import numpy as np
import onnx.parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.errors import DataError, UsageError
from onnxprune.ir.io import load
from onnxprune.metrics.fidelity import Accumulator, common_boxes, fidelity
from onnxprune.metrics.tempered import MEAN_MAXIMUM, TEMPERATURES

SUMS = 1e-9  # float64 sums in another order


def run(a: dict, b: dict, pieces: int = 1, **options):
    sums = Accumulator(**options)
    for part in np.array_split(np.arange(len(next(iter(a.values())))), pieces):
        sums.update({n: v[part] for n, v in a.items()}, {n: v[part] for n, v in b.items()})
    return sums.result()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.floats(0.1, 30))
def test_class_rows_equal_closed_forms_in_any_batching(seed, pieces, scale):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(20, 6)) * scale
    b = a + rng.normal(size=a.shape)
    found = run({"y": a}, {"y": b}, pieces).outputs["y"]
    assert found.relative_error == pytest.approx(
        np.linalg.norm(a - b) / np.linalg.norm(a), rel=SUMS
    )
    assert found.nmse == pytest.approx(
        ((a - b) ** 2).sum() / ((a - a.mean(0)) ** 2).sum(), rel=1e-6
    )
    assert (
        found.max_abs == np.abs(a - b).max()
        and found.top1_agreement == (a.argmax(1) == b.argmax(1)).mean()
    )
    p, q = (torch.log_softmax(torch.tensor(v) / found.temperature, 1) for v in (a, b))
    assert found.kl == pytest.approx(
        torch.nn.functional.kl_div(q, p, log_target=True, reduction="batchmean").item(), rel=1e-6
    )
    tops = [torch.softmax(torch.tensor(a) / t, 1).max(1).values.mean().item() for t in TEMPERATURES]
    assert found.max_probability == pytest.approx(tops[0])
    assert found.temperature == next(
        t for t, top in zip(TEMPERATURES, tops, strict=False) if top <= MEAN_MAXIMUM
    )
    assert found.location_agreement is None


def test_equal_models_have_distance_zero_and_saturated_ones_a_warning():
    a = np.eye(5)[[0, 1, 2, 3]] * 50
    found = run({"y": a}, {"y": a.copy()})
    out = found.outputs["y"]
    assert (out.relative_error, out.nmse, out.max_abs, out.kl, out.top1_agreement) == (
        0,
        0,
        0,
        0,
        1,
    )
    assert (
        out.max_probability > 0.99
        and out.temperature > 1
        and "memorized" in found.warnings[0]
        and found.agreement == 1
    )


def test_probabilities_give_the_figures_of_their_logits():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 30, 4))
    soft = [np.exp(v) / np.exp(v).sum(1, keepdims=True) for v in (a, b)]
    logits, probabilities = (
        run({"y": a}, {"y": b}).outputs["y"],
        run({"y": soft[0]}, {"y": soft[1]}).outputs["y"],
    )
    assert (
        probabilities.kl == pytest.approx(logits.kl)
        and probabilities.temperature == logits.temperature
    )


def test_maps_sequences_images_and_integers():
    rng = np.random.default_rng(1)
    a = {
        "map": rng.normal(size=(2, 5, 3, 3)),
        "image": rng.random((2, 3, 4, 4)),
        "tokens": rng.normal(size=(2, 7, 9)),
        "ids": np.ones((2, 3), int),
    }
    b = {n: -v for n, v in a.items()}
    found = run(a, b, class_axes={"tokens": -1})
    assert set(found.outputs) == {"map", "image", "tokens"}
    assert (
        found.outputs["map"].location_agreement == (a["map"].argmax(1) == b["map"].argmax(1)).mean()
        and found.outputs["map"].kl is None
    )
    assert found.outputs["image"].location_agreement is None and found.outputs[
        "image"
    ].relative_error == pytest.approx(2)
    assert (
        found.outputs["tokens"].top1_agreement
        == (a["tokens"].argmax(-1) == b["tokens"].argmax(-1)).mean()
        and found.outputs["tokens"].kl > 0
    )
    assert found.box_agreement is None and found.as_dict()["outputs"]["image"]["kl"] is None


def test_large_outputs_are_summed_in_pieces(monkeypatch):
    rng = np.random.default_rng(2)
    a = {"map": rng.normal(size=(4, 6, 40, 40)), "first": rng.normal(size=(4, 5))}
    b = {n: v + 0.1 * rng.normal(size=v.shape) for n, v in a.items()}
    whole = run(a, b, class_axes={"map": 1, "first": 0}).outputs
    monkeypatch.setattr("onnxprune.metrics.output_sums.PIECE_VALUES", 100)
    pieces = run(a, b, class_axes={"map": 1, "first": 0}).outputs
    for name in a:
        known = {k: v for k, v in vars(whole[name]).items() if v is not None}
        assert {k: getattr(pieces[name], k) for k in known} == pytest.approx(
            known, rel=SUMS
        ) and len(known) >= 6
    assert whole["first"].top1_agreement == (a["first"].argmax(0) == b["first"].argmax(0)).mean()


def test_degenerate_outputs():
    constant = run({"y": np.ones((3, 2))}, {"y": np.zeros((3, 2))}).outputs["y"]
    assert constant.relative_error == 1 and constant.nmse is None
    nothing = run({"y": np.zeros((3, 1))}, {"y": np.ones((3, 1))}).outputs["y"]
    assert (
        nothing.relative_error == math.inf and nothing.kl is None and nothing.top1_agreement is None
    )
    broken = run({"y": np.eye(3)}, {"y": np.full((3, 3), np.nan)})
    assert (
        math.isnan(broken.relative_error)
        and broken.outputs["y"].top1_agreement == 0
        and broken.as_dict()["relative_error"] is None
    )
    grow = Accumulator()
    for length in (2, 3):
        grow.update({"y": np.ones((1, length, 4))}, {"y": np.ones((1, length, 4))})
    assert grow.result().outputs["y"].nmse is None and grow.result().samples == 2


def test_errors_name_output_and_shape():
    with pytest.raises(DataError, match="no sample"):
        Accumulator().result()
    with pytest.raises(DataError, match=r"\(1, 3\) in the original"):
        Accumulator().update({"y": np.ones((1, 3))}, {"y": np.ones((1, 2))})
    with pytest.raises(UsageError, match="no output 'z'"):
        Accumulator(class_axes={"z": 1}).update({"y": np.ones((1, 3))}, {"y": np.ones((1, 3))})
    with pytest.raises(UsageError, match="no axis 4"):
        Accumulator(class_axes={"y": 4}).update({"y": np.ones((1, 3))}, {"y": np.ones((1, 3))})


def test_boxes_are_matched_once_and_by_class():
    box = [0.1, 0.1, 0.5, 0.5]
    a = np.array([[*box, 0.9, 0], [*box, 0.8, 0], [*box, 0.7, 1]])
    b = np.array([[*box, 0.6, 0], [0.6, 0.6, 0.9, 0.9, 0.6, 1]])
    assert (
        common_boxes(a, b) == common_boxes(b, a) == 1
        and common_boxes(a, a) == 3
        and common_boxes(a, b[:0]) == 0
    )


def test_box_agreement_of_native_and_decoded_boxes():
    a = np.array([[[0, 0, 10, 10, 0.9, 1], [20, 20, 40, 40, 0.6, 2], [0, 0, 5, 5, 0.1, 1]]])
    b = np.array([[[1, 0, 10, 10, 0.5, 1], [20, 20, 40, 40, 0.6, 3]]])
    feeds = {"x": np.zeros((1, 3, 100, 100))}
    sums = Accumulator()
    sums.update({"output0": a}, {"output0": b}, feeds)
    found = sums.result()
    assert (
        found.box_agreement == found.agreement == 0.5
        and not found.outputs
        and found.relative_error is None
    )
    decoded = Accumulator(decoder=lambda outputs, labels: list(outputs["y"]))
    decoded.update({"y": a}, {"y": a}, feeds)
    assert decoded.result().box_agreement == 1 and decoded.result().outputs["y"].relative_error == 0
    empty = Accumulator(decoder=lambda outputs, labels: [np.zeros((0, 6))])
    empty.update({"y": a}, {"y": a}, feeds)
    # no box of either model is no evidence of agreement
    assert empty.result().box_agreement is None and empty.result().divergence == 0
    assert "box agreement is not measured" in empty.result().warnings[0]
    assert empty.result().boxes == 0 and found.boxes == 4


def test_two_models_on_data():
    text = "agraph (float[N,3] x) => (float[N,3] y) <float k = {K}> { y = Mul(x, k) }"
    models = [
        load(
            onnx.parser.parse_model(
                f'<ir_version: 8, opset_import: ["" : 13]> {text.replace("K", k)}'
            )
        )
        for k in ("1.0", "0.5")
    ]

    class Data:
        def batches(self, batch_size):
            yield {"x": np.ones((2, 3), np.float32)}
            yield {"x": np.eye(3, dtype=np.float32)}

    found = fidelity(*models, Data())
    assert (
        found.relative_error == pytest.approx(0.5) and found.samples == 5 and found.agreement == 1
    )
