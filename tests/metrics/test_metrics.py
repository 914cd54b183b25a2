"""Accuracy, segmentation and restoration metrics against torch, plain formulas and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.errors import DataError, UsageError
from onnxprune.metrics import MetricOptions, find_metric
from onnxprune.metrics.segmentation import resize

F32 = 1e-5  # float32 interpolation weights


def brightness(outputs, labels):
    """A user's metric."""
    return outputs["y"].mean((1, 2, 3))


def error_rate(outputs, labels):
    """A user's metric with lower values better."""
    return float((outputs["y"].argmax(1) != labels["labels"]).mean())


error_rate.higher_is_better = False


class Constant:
    """Not a Metric."""

    def __init__(self, options):
        self.options = options


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 3))
def test_topk_equals_torch_in_any_batching(seed, n, pieces):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(seed)
    scores, labels = rng.normal(size=(n, 8)).astype(np.float32), rng.integers(0, 8, n)
    for name, k in (("top1", 1), ("top5", 5)):
        metric = find_metric(name)
        for part in np.array_split(np.arange(n), pieces):
            metric.update({"y": scores[part]}, {"labels": labels[part]})
        hits = (
            (torch.tensor(scores).topk(k).indices == torch.tensor(labels)[:, None])
            .any(1)
            .double()
            .numpy()
        )
        found = metric.result()
        assert found.value == pytest.approx(hits.mean()) and found.n == n
        assert found.per_class == pytest.approx(
            {c: hits[labels == c].mean() for c in np.unique(labels)}
        )
        if n > 1:
            # equal answers are no proof that further ones are equal
            spread = hits.std(ddof=1) / math.sqrt(n) or 1 / (n + 1)
            assert found.standard_error == pytest.approx(spread)


def test_topk_edge_cases():
    metric = find_metric("top1", MetricOptions(class_offset=1))
    metric.update(
        {"y": np.array([[9, 0, 1], [9, 2, 2], [9, np.nan, 0]])[:, :, None, None]},
        {"labels": np.array([1, 0, 0])},
    )
    assert metric.outcomes().tolist() == [1, 1, 0]  # a tie goes to the lower index, NaN is wrong
    with pytest.raises(DataError, match="do not fit 2 classes"):
        metric.update({"y": np.zeros((1, 3))}, {"labels": np.array([2])})
    with pytest.raises(DataError, match="needs labels 'labels'"):
        metric.update({"y": np.zeros((1, 3))}, {})
    with pytest.raises(UsageError, match="2 outputs"):
        metric.update({"y": np.zeros((1, 3)), "z": np.zeros((1, 3))}, {"labels": np.array([0])})
    with pytest.raises(DataError, match="one row of class scores"):
        metric.update({"y": np.zeros((1, 3, 4))}, {"labels": np.array([0])})


def test_weights_and_classes_of_means():
    metric = find_metric("top1")
    metric.update({"y": np.eye(3)[[0, 1, 2, 2]]}, {"labels": np.array([0, 1, 1, 2])})
    assert metric.estimate(np.array([1.0, 0, 2, 1])).value == 0.5
    assert metric.estimate(classes=[1]).value == 0.5
    assert math.isnan(metric.estimate(classes=[7]).value)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 5))
def test_segmentation_equals_a_confusion_matrix(seed, classes):
    rng = np.random.default_rng(seed)
    scores, masks = (
        rng.normal(size=(4, classes + 1, 5, 6)),
        rng.integers(0, classes + 1, (4, 5, 6)).astype(np.uint8),
    )
    confusion = np.zeros((classes + 1, classes + 1))
    np.add.at(confusion, (masks.ravel(), scores.argmax(1).ravel()), 1)
    confusion = confusion[:classes]  # the last label is void; predicting it is wrong
    iou = [
        confusion[c, c] / (confusion[c].sum() + confusion[:, c].sum() - confusion[c, c])
        for c in range(classes)
    ]
    for name, value in (
        ("miou", np.mean(iou)),
        ("pixel_acc", np.trace(confusion) / confusion.sum()),
    ):
        metric = find_metric(name, MetricOptions(classes=classes))
        metric.update({"y": scores[:3]}, {"masks": masks[:3]})
        metric.update({"y": scores[3:].argmax(1)}, {"masks": masks[3:]})
        found = metric.result()
        assert found.value == pytest.approx(value) and found.n == 4 and found.standard_error > 0
    assert list(found.counts) == list(range(classes))


def test_segmentation_ignores_and_resizes():
    metric = find_metric("miou", MetricOptions(classes=2, ignore=1))
    metric.update({"y": np.zeros((1, 2, 2, 2))}, {"masks": np.array([[[0, 1], [255, 0]]])})
    assert metric.result().value == 1 and metric.result().standard_error is None
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(size=(3, 5, 7)).astype(np.float32)
    theirs = torch.nn.functional.interpolate(
        torch.tensor(x)[None], (11, 9), mode="bilinear", align_corners=False
    )[0].numpy()
    assert np.allclose(resize(x, 11, 9), theirs, atol=F32)
    with pytest.raises(DataError, match="one size"):
        metric.update({"y": np.zeros((1, 2, 2), int)}, {"masks": np.zeros((1, 4, 4), int)})


def test_psnr_closed_forms():
    target = np.full((1, 8, 8, 3), 100, np.uint8)
    metric = find_metric("psnr", MetricOptions(crop=1))
    metric.update(
        {"y": np.full((1, 3, 8, 8), 110.2 / 255, np.float32)}, {"targets": target}
    )  # rounds to 110
    assert metric.result().value == pytest.approx(10 * math.log10(255**2 / 100))
    luma = find_metric("psnr_y")
    luma.update({"y": np.full((1, 3, 8, 8), 110 / 255, np.float32)}, {"targets": target})
    assert luma.result().value == pytest.approx(
        10 * math.log10(255**2 / (10 * 219 / 255) ** 2), rel=1e-6
    )
    exact = find_metric("psnr", MetricOptions(peak=2.0))
    exact.update({"y": np.ones((1, 1, 2, 2))}, {"targets": np.ones((1, 1, 2, 2))})
    exact.update({"y": np.ones((1, 1, 2, 2))}, {"targets": np.zeros((1, 1, 2, 2))})
    assert (
        exact.outcomes().tolist() == [math.inf, pytest.approx(10 * math.log10(4))]
        and exact.result().standard_error is None
    )
    with pytest.raises(DataError, match="for a target"):
        exact.update({"y": np.ones((1, 1, 2, 2))}, {"targets": np.ones((1, 1, 4, 4))})


def test_user_metrics():
    here = __name__
    metric = find_metric(f"{here}:brightness")
    metric.update({"y": np.ones((2, 3, 4, 4))}, {})
    assert metric.result().value == 1 and metric.higher_is_better and metric.n == 2
    assert not find_metric(f"{here}:error_rate").higher_is_better
    for name, message in (
        (f"{here}:nothing", "has no 'nothing'"),
        ("no_such_module:f", "cannot import"),
        (f"{here}:math", "not a function"),
        (f"{here}:Constant", "neither"),
    ):
        with pytest.raises(UsageError, match=message):
            find_metric(name)
    with pytest.raises(UsageError, match="did you mean 'top"):
        find_metric("top2")
    with pytest.raises(UsageError, match="failed: KeyError"):
        find_metric(f"{here}:error_rate").update({"z": np.ones((1, 2))}, {})


def test_user_metrics_of_the_current_folder_and_of_files(tmp_path, monkeypatch):
    (tmp_path / "own_metric.py").write_text("def one(outputs, labels):\n    return 1.0\n")
    (tmp_path / "bad_metric.py").write_text("raise AttributeError('x')\n")
    for name in (f"{tmp_path}/own_metric.py:one", "own_metric:one"):
        metric = find_metric(name)
        metric.update({"y": np.ones((2, 3))}, {})
        assert metric.result().value == 1
        monkeypatch.chdir(tmp_path)
    for name, message in (
        ("bad_metric:one", "cannot import 'bad_metric': AttributeError: x"),
        ("none.py:one", "no file 'none.py'"),
    ):
        with pytest.raises(UsageError, match=message):
            find_metric(name)


def test_names_of_earlier_releases():
    from onnxprune import metrics
    from onnxprune.metrics import base

    assert metrics.Options is base.Options is MetricOptions
    assert (base.Base, base.Estimate) == (base.BaseMetric, base.MetricEstimate)
