"""Decoders by name: known boxes of each layout come back, and the layout is recognized."""

from __future__ import annotations

import head_layouts
import numpy as np
import pytest

from onnxprune.errors import DataError, UsageError
from onnxprune.metrics import MetricOptions
from onnxprune.metrics.decoding import detections_of, recognized_head
from onnxprune.metrics.heads import (
    HEADS,
    MOST_CANDIDATES,
    _pick,
    decode_head,
    decoder_names,
    find_head,
    recognize,
)

LAYOUTS = head_layouts.layouts()
SIZES = {"size": np.tile(head_layouts.SIZE, (head_layouts.SAMPLES, 1))}
PIXELS = 0.2  # float32 outputs; distances are means of distributions
# layouts whose shapes and values are those of two heads: the anchors are not in the outputs
TWINS = {"yolov5-maps", "yolov7-maps"}


def outputs_of(layout: str) -> dict[str, np.ndarray]:
    return {n: v.astype(np.float32) for n, v in LAYOUTS[layout][1]().items()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_known_boxes_come_back(layout):
    name = LAYOUTS[layout][0]
    outputs = outputs_of(layout)
    detections = decode_head(find_head(name), outputs, SIZES)
    scale = np.array([*head_layouts.SIZE[::-1], *head_layouts.SIZE[::-1]])
    assert len(detections) == head_layouts.SAMPLES
    for rows, truth in zip(detections, head_layouts.TRUTH, strict=True):
        best = rows[rows[:, 4] > 0.5]
        assert len(best) == len(truth)
        order = [int(np.abs(best[:, :4] * scale - row[:4]).sum(1).argmin()) for row in truth]
        assert np.abs(best[order, :4] * scale - truth[:, :4]).max() < PIXELS
        classes = truth[:, 4] * (layout != "yolov8-pose")  # poses are of one class
        assert np.array_equal(best[order, 5], classes)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_are_recognized_without_doubt(layout):
    name = LAYOUTS[layout][0]
    heads = {head.name for head in recognize(outputs_of(layout), SIZES)}
    assert heads == (TWINS if name in TWINS else {name})


def test_every_head_is_tested_and_names_are_unique():
    assert {name for name, _ in LAYOUTS.values()} == {head.name for head in HEADS}
    assert len(set(decoder_names())) == len(decoder_names())


def test_detections_come_from_names_and_from_what_outputs_look_like():
    outputs = outputs_of("yolov8")
    named = detections_of(outputs, SIZES, MetricOptions(decoder="yolo11"))
    seen = detections_of(outputs, SIZES, MetricOptions())
    assert all(np.array_equal(a, b) for a, b in zip(named, seen, strict=True))
    shifted = detections_of(outputs, SIZES, MetricOptions(decoder="yolov8", class_offset=1))
    assert [set(a[:, 5]) for a in shifted] == [set(a[a[:, 5] > 0, 5] - 1) for a in named]
    # boxes after suppression need no decoder
    assert recognized_head(outputs_of("yolov10"), SIZES) is None
    assert recognized_head(outputs_of("fcos"), SIZES) == "fcos"
    assert len(detections_of(outputs_of("yolov7 nms"), SIZES, MetricOptions())) == 2


def test_errors_say_what_the_outputs_are():
    outputs = outputs_of("yolov8")
    with pytest.raises(UsageError, match="did you mean 'yolov8'"):
        detections_of(outputs, SIZES, MetricOptions(decoder="yolo8"))
    with pytest.raises(DataError, match=r"output0 2x84x2730 of an input of 320x416 do not have"):
        detections_of(outputs, SIZES, MetricOptions(decoder="yolov5"))
    with pytest.raises(DataError, match="needs the size"):
        detections_of(outputs, {}, MetricOptions(decoder="yolov8"))
    with pytest.raises(UsageError, match="yolov5-maps and yolov7-maps"):
        recognized_head(outputs_of("yolov7 maps"), SIZES)
    with pytest.raises(UsageError, match="output0 2x84x100 are not boxes"):
        detections_of({"output0": outputs["output0"][..., :100]}, SIZES, MetricOptions())


def test_classifiers_and_segmentation_are_no_detectors():
    rng = np.random.default_rng(0)
    for shape in ((2, 1000), (2, 19, 320, 416), (2, 19, 40, 52), (2, 197, 768), (2, 1, 80, 104)):
        assert recognize({"y": rng.normal(size=shape)}, SIZES) == []
        assert recognize({"y": rng.random(shape)}, SIZES) == []


def test_only_the_best_candidates_are_kept():
    rng = np.random.default_rng(0)
    scores = rng.random((2000, 3))
    rows = _pick(rng.random((2000, 4)), scores)
    expected = np.sort(scores.ravel())[::-1][:MOST_CANDIDATES]
    assert np.array_equal(rows[:, 4], expected)
    assert rows[0, 5] == np.unravel_index(scores.argmax(), scores.shape)[1]


def test_heads_without_any_box_give_none():
    outputs = outputs_of("yolov8")
    outputs["output0"][:, 4:] = 0
    assert [len(rows) for rows in detections_of(outputs, SIZES, MetricOptions())] == [0, 0]
