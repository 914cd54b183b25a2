"""Box mAP against pycocotools and against a slow, plain reference."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.errors import DataError, UsageError
from onnxprune.metrics import METRICS, MetricOptions, find_metric
from onnxprune.metrics.boxes import overlap, suppress
from onnxprune.metrics.compare import compare_metrics
from onnxprune.metrics.decoding import native
from onnxprune.metrics.detection import AREAS, OVERLAPS, TWELVE, Truth, area, match
from onnxprune.metrics.pycoco import official_map

SAME = 1e-9  # both compute in float64; the order of sums differs


def scene(
    seed: int, images: int = 6, classes: int = 3, crowd: bool = False
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Random boxes, with jittered copies and noise as detections, without ties in score."""
    rng = np.random.default_rng(seed)
    detections, truth = [], []
    for image in range(images):
        count = int(rng.integers(0, 6))
        center, size = rng.uniform(0.2, 0.8, (count, 2)), rng.uniform(0.05, 0.4, (count, 2))
        labels = rng.integers(0, classes, count)
        columns = [np.full(count, image), labels, *center.T, *size.T]
        truth.append(
            np.stack([*columns, rng.random(count) < 0.3] if crowd else columns, 1).astype(float)
        )
        again = np.concatenate([np.arange(count)] * 2)
        c = np.concatenate(
            [center[again] + rng.normal(0, 0.02, (2 * count, 2)), rng.uniform(0.2, 0.8, (5, 2))]
        )
        s = np.concatenate(
            [size[again] * rng.uniform(0.8, 1.2, (2 * count, 2)), rng.uniform(0.05, 0.4, (5, 2))]
        )
        k = np.concatenate([labels[again], rng.integers(0, classes + 1, 5)])
        detections.append(
            np.concatenate([c - s / 2, c + s / 2, rng.random((len(c), 1)), k[:, None]], 1)
        )
    return detections, truth


def stream(
    name: str, detections: list[np.ndarray], truth: list[np.ndarray], options: MetricOptions
) -> object:
    """A metric that has seen the scene in batches of one."""
    metric = find_metric(name, options)
    for found, boxes in zip(detections, truth, strict=False):
        boxes = boxes.copy()
        boxes[:, 0] = 0
        metric.update({"boxes": found[None]}, {"boxes": boxes})
    return metric


def plain(outputs, labels):
    """A decoder: the detections are the output."""
    return list(outputs["boxes"])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_map_equals_pycocotools(seed, crowd):
    pytest.importorskip("pycocotools")
    detections, truth = scene(seed, crowd=crowd)
    if not sum((t[:, 6:].sum(1) == 0).sum() for t in truth):
        return
    ours = stream("coco", detections, truth, MetricOptions(decoder=plain)).result()
    theirs = official_map(detections, truth)
    assert ours.value == pytest.approx(theirs.value, abs=SAME)
    assert ours.details["map50"] == pytest.approx(theirs.details["map50"], abs=SAME)
    assert ours.per_class == pytest.approx(dict(theirs.per_class), abs=SAME)
    assert ours.counts == dict(theirs.counts)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_the_twelve_figures_equal_pycocotools(seed, crowd):
    """With boxes of all ranges of areas, areas of objects smaller than their boxes, and crowds."""
    pytest.importorskip("pycocotools")
    detections, truth = scene(seed, classes=2, crowd=crowd)
    rng = np.random.default_rng(seed)
    sizes = [tuple(map(int, rng.integers(100, 700, 2))) for _ in truth]
    for k, (rows, (height, width)) in enumerate(zip(truth, sizes, strict=True)):
        if not crowd:
            rows = np.c_[rows, np.zeros(len(rows))]
        own = rows[:, 4] * rows[:, 5] * height * width * rng.uniform(0.3, 1, len(rows))
        # 0 stands for the area of the box
        truth[k] = np.c_[rows, np.where(rng.random(len(rows)) < 0.3, 0, own)]
    theirs = official_map(detections, truth, sizes=sizes)
    metric = find_metric("coco")
    for one in zip(detections, truth, sizes, strict=True):
        metric.add(*one)
    if not metric._by_class:
        return
    details = metric.result().details
    ours = [details[name] for name in TWELVE]
    assert ours == pytest.approx([theirs.details[n] for n in TWELVE], abs=SAME, nan_ok=True)


def test_ranges_of_areas_need_the_sizes_of_all_images():
    detections, truth = scene(3)
    metric = find_metric("coco")
    for k, one in enumerate(zip(detections, truth, strict=True)):
        metric.add(*one, None if k == 2 else (640, 480))
    details = metric.result().details
    assert math.isnan(details["ap_small"]) and math.isnan(details["ar_large"])
    assert details["ar_1"] <= details["ar_10"] <= details["ar_100"] > details["map"]
    assert metric.result().as_dict()["details"]["ap_small"] is None


def test_official_metric_is_the_same_by_name():
    pytest.importorskip("pycocotools")
    detections, truth = scene(3)
    ours, theirs = (
        stream(n, detections, truth, MetricOptions(decoder=plain)).result()
        for n in ("coco", "coco-official")
    )
    assert ours.value == pytest.approx(theirs.value, abs=SAME) and theirs.standard_error is None


def test_a_comparison_by_the_official_metric_is_plain_json():
    pytest.importorskip("pycocotools")
    detections, truth = scene(3)
    pair = [stream("coco-official", detections, truth, MetricOptions(decoder=plain)) for _ in "ab"]
    rows = json.loads(json.dumps(compare_metrics(*pair).as_dict()))["classes"]
    assert [row["index"] for row in rows] == [0, 1, 2]


def test_weights_repeat_images():
    """Weights 0, 1 and 2 equal leaving out, keeping and repeating images.

    Copies of an image tie in score; ties keep their order.
    """
    detections, truth = scene(5, images=8)
    whole = stream("coco", detections, truth, MetricOptions(decoder=plain))
    chosen = [0, 2, 3, 5]
    part = stream(
        "coco",
        [detections[i] for i in chosen],
        [truth[i] for i in chosen],
        MetricOptions(decoder=plain),
    )
    weights = np.isin(np.arange(8), chosen).astype(float)
    assert whole.estimate(weights).value == pytest.approx(part.estimate().value, abs=SAME)
    assert whole.estimate(2 * weights).value == pytest.approx(part.estimate().value, abs=SAME)


def test_classes_restrict_the_mean():
    detections, truth = scene(6)
    metric = stream("coco", detections, truth, MetricOptions(decoder=plain))
    every = metric.estimate().per_class
    assert metric.estimate(classes=[1]).value == pytest.approx(every[1], abs=SAME)
    assert metric.estimate(classes=[0, 1]).value == pytest.approx(
        (every[0] + every[1]) / 2, abs=SAME
    )


def test_perfect_detections_score_one_and_none_score_zero():
    _, truth = scene(7)
    perfect = [
        np.concatenate(
            [t[:, 2:4] - t[:, 4:6] / 2, t[:, 2:4] + t[:, 4:6] / 2, np.ones((len(t), 1)), t[:, 1:2]],
            1,
        )
        for t in truth
    ]
    found = stream("map50", perfect, truth, MetricOptions(decoder=plain)).result()
    assert found.value == 1 and found.details["recall"] == 1 and found.standard_error == 0
    assert (
        stream("coco", [p[:0] for p in perfect], truth, MetricOptions(decoder=plain)).result().value
        == 0
    )


def test_anchored_curve_starts_at_precision_one():
    recall, precision = np.array([[0.0], [0.5]]), np.array([[0.0], [0.5]])
    assert area(recall, precision)[0] == pytest.approx(51 * 0.5 / 101)
    assert area(recall, precision, "anchored")[0] == pytest.approx((1 + 50 * 0.5) / 101)
    assert area(np.zeros((0, 1)), np.zeros((0, 1)))[0] == 0
    with pytest.raises(UsageError, match="anchored"):
        find_metric("coco", MetricOptions(curve="round"))


def test_a_box_is_matched_once():
    box = np.array([[0.1, 0.1, 0.5, 0.5]])
    truth = Truth(box, np.zeros(1, bool), np.full(1, 0.16))
    right, ignored = match(np.repeat(np.c_[box, 0.9, 0], 2, 0), truth)
    assert right.shape == ignored.shape == (2, len(AREAS), len(OVERLAPS))
    right, ignored = right[:, 0], ignored[:, 0]
    assert right[0].all() and not right[1].any() and not ignored.any()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 0.9))
def test_suppression_leaves_no_overlap_and_drops_only_overlapped(seed, limit):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 0.5, (30, 2))
    rows = np.concatenate(
        [
            corner,
            corner + rng.uniform(0.1, 0.5, (30, 2)),
            rng.random((30, 1)),
            rng.integers(0, 2, (30, 1)),
        ],
        1,
    )
    kept = suppress(rows, limit)
    for c in (0, 1):
        mine = kept[kept[:, 5] == c]
        assert (overlap(mine, mine)[~np.eye(len(mine), dtype=bool)] <= limit).all()
        for row in rows[rows[:, 5] == c]:
            better = mine[mine[:, 4] >= row[4]]
            assert (overlap(row[None], better) > limit).any() or (better == row).all(1).any()


def test_native_outputs_of_the_common_exports_agree():
    rows = np.array([[[10.0, 20, 30, 60, 0.9, 2], [0, 0, 50, 50, 0.5, 1], [0, 0, 0, 0, 0, 0]]])
    size = {"size": np.array([[100, 50]])}
    expected = np.array([[0.2, 0.2, 0.6, 0.6, 0.9, 2], [0, 0, 1, 0.5, 0.5, 1]])
    torchvision = {
        "boxes": rows[0, :2, :4],
        "labels": rows[0, :2, 5].astype(int),
        "scores": rows[0, :2, 4],
    }
    relative = rows[..., :4] / np.array([50, 100, 50, 100])
    tensorflow = {
        "num_detections": np.array([2.0]),
        "detection_boxes": relative[..., [1, 0, 3, 2]],
        "detection_scores": rows[..., 4],
        "detection_classes": rows[..., 5],
    }
    for outputs in ({"output0": rows}, torchvision, tensorflow):
        assert np.allclose(native(outputs, size)[0], expected)
    with pytest.raises(UsageError, match="name a decoder"):
        native({"p16": np.zeros((1, 95, 22, 22)), "p32": np.zeros((1, 95, 11, 11))}, size)
    with pytest.raises(DataError, match="size"):
        native({"output0": rows}, {})


def test_errors_name_shape_and_fix():
    metric = find_metric("coco", MetricOptions(decoder=lambda o, n: [np.zeros((1, 5))]))
    with pytest.raises(DataError, match=r"must give \(boxes, 6\)"):
        metric.update({"x": np.zeros((1, 2))}, {"boxes": np.zeros((1, 6))})
    with pytest.raises(DataError, match="boxes are"):
        metric.update({"x": np.zeros((1, 2))}, {"boxes": np.zeros((1, 4))})
    with pytest.raises(DataError, match="no labeled sample"):
        metric.result()
    with pytest.raises(UsageError, match="module:function"):
        find_metric("coco", MetricOptions(decoder="nowhere:")).update(
            {"x": np.zeros((1, 2))}, {"boxes": np.zeros((1, 6))}
        )
    assert {"top1", "top5", "miou", "pixel_acc", "psnr", "coco"} <= set(METRICS)
