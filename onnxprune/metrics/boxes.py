"""Boxes: overlap, suppression, and the detections of models that end in their own non-maximum suppression.

A detection is a row x1, y1, x2, y2, score, class; corners are fractions of the image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.errors import DataError, UsageError
from onnxprune.metrics.base import Labels, MetricOptions, Outputs, find_function

COLUMNS = 6
# what exporters call the outputs behind their own non-maximum suppression
_SCORES = ("scores", "detection_scores", "det_scores", "score")
_CLASSES = ("classes", "labels", "detection_classes", "det_classes", "class_ids")
_CORNERS_XY = ("boxes", "det_boxes", "bboxes", "dets")
_CORNERS_YX = ("detection_boxes",)
_COUNTS = ("num_detections", "num_dets", "num_boxes")


def overlap(a: np.ndarray, b: np.ndarray, *, of_first: bool = False) -> np.ndarray:
    """Intersection over union (or over the area of `a`) of boxes (n, 4+) and (m, 4+): float64 (n, m)."""
    a, b = a[:, None, :4].astype(np.float64), b[None, :, :4].astype(np.float64)
    common = np.clip(
        np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0, None
    ).prod(-1)
    total = (a[..., 2:] - a[..., :2]).prod(-1)
    if not of_first:
        total = total + (b[..., 2:] - b[..., :2]).prod(-1) - common
    return np.asarray(np.divide(common, total, out=np.zeros_like(common), where=total > 0))


def suppress(detections: np.ndarray, limit: float, most: int | None = None) -> np.ndarray:
    """Non-maximum suppression within each class.

    Of the rows (n, 6), best score first, a row stays unless it overlaps a better one of its class by more than `limit`; at most `most` are returned.
    Cost: one row of overlaps for each box that stays.
    """
    left = detections[np.argsort(-detections[:, 4], kind="stable")]
    kept: list[np.ndarray] = []
    while len(left) and (most is None or len(kept) < most):
        best, left = left[0], left[1:]
        kept.append(best)
        left = left[(left[:, 5] != best[5]) | (overlap(best[None], left)[0] <= limit)]
    return np.stack(kept) if kept else np.zeros((0, COLUMNS))


def detections_of(outputs: Outputs, labels: Labels, options: MetricOptions) -> list[np.ndarray]:
    """Detections of each sample by the decoder that the user named, or the model's own.

    Raises
    ------
    DataError
        The decoder gives something else than float (boxes, 6) a sample.
    """
    decode = options.decoder or native
    if isinstance(decode, str):
        decode = find_function(decode, "decoder")
    found = [np.asarray(d, np.float64) for d in decode(outputs, labels)]
    size = len(next(iter(outputs.values())))
    if decode is not native and len(found) != size:
        raise DataError(
            "decoder-shape",
            f"the decoder gave detections of {len(found)} samples for a batch of {size}",
        )
    for one in found:
        if one.ndim != 2 or one.shape[1] != COLUMNS:
            raise DataError(
                "decoder-shape",
                f"the decoder gave {one.shape} for a sample; it must give (boxes, 6): x1, y1, x2, y2, score, class",
            )
    return found


def native(outputs: Outputs, labels: Labels) -> list[np.ndarray]:
    """Detections of a model that suppresses within the graph.

    Known forms: one output (n, boxes, 6) of corners, score, class; or outputs called boxes, scores and classes (labels, detection_*, det_*) with an
    optional count, batched or of a single image. `detection_boxes` has y before x, as TensorFlow exports it. Corners in pixels are divided by
    `labels["size"]`, int (n, 2) height and width of the input.

    Raises
    ------
    UsageError
        None of these forms: name a decoder.
    """
    names = {n.lower(): n for n in outputs}
    if (
        len(outputs) == 1
        and (only := np.asarray(next(iter(outputs.values())))).ndim == 3
        and _are_detections(only)
    ):
        return _relative([row[row[:, 4] > 0] for row in only], labels)
    boxes, flipped = _first(outputs, names, _CORNERS_XY), False
    if boxes is None:
        boxes, flipped = _first(outputs, names, _CORNERS_YX), True
    scores, classes = _first(outputs, names, _SCORES), _first(outputs, names, _CLASSES)
    if boxes is None or classes is None or (scores is None and boxes.shape[-1] != 5):
        raise UsageError(
            "decoder-needed",
            f"outputs {', '.join(sorted(outputs))} are not boxes, scores and classes; name a decoder as module:function (outputs, labels) -> boxes",
        )
    if scores is None:
        boxes, scores = boxes[..., :4], boxes[..., 4]
    if boxes.ndim == 2:
        boxes, scores, classes = boxes[None], scores[None], classes[None]
    corners = boxes[..., [1, 0, 3, 2]] if flipped else boxes
    counts = _first(outputs, names, _COUNTS)
    lengths = (
        [boxes.shape[1]] * len(boxes) if counts is None else [int(c) for c in counts.reshape(-1)]
    )
    rows = [
        np.concatenate([c, s.reshape(-1, 1), k.reshape(-1, 1)], 1)[:n]
        for c, s, k, n in zip(corners, scores, classes, lengths, strict=False)
    ]
    return _relative([row[row[:, 4] > 0] for row in rows], labels)


def _are_detections(rows: np.ndarray) -> bool:
    """Whether (n, boxes, 6) can be corners, score and class: whole classes, scores in 0..1."""
    if rows.shape[2] != COLUMNS:
        return False
    score, kind = rows[..., 4], rows[..., 5]
    return bool(((score >= 0) & (score <= 1)).all() and (kind == np.round(kind)).all())


def _first(outputs: Outputs, names: dict[str, str], wanted: Sequence[str]) -> np.ndarray | None:
    return next((np.asarray(outputs[names[w]], np.float64) for w in wanted if w in names), None)


def _relative(found: list[np.ndarray], labels: Labels) -> list[np.ndarray]:
    """Corners as fractions; those above 2 can only be pixels."""
    found = [np.asarray(f, np.float64) for f in found]
    if all(not len(f) or f[:, :4].max() <= 2 for f in found):
        return found
    if "size" not in labels:
        raise DataError(
            "data-labels",
            "the model's boxes are in pixels and the data do not say the input's size: give labels 'size' (n, 2), height and width",
        )
    sizes = np.asarray(labels["size"], np.float64).reshape(-1, 2)
    return [
        np.concatenate([f[:, :4] / size[[1, 0, 1, 0]], f[:, 4:]], 1)
        for f, size in zip(found, sizes, strict=False)
    ]


def center_to_corner(boxes: np.ndarray) -> np.ndarray:
    """(n, 4) center x, y, width, height -> corners."""
    half = boxes[:, 2:4] / 2
    return np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], 1)
