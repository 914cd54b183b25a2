"""Box overlap, non-maximum suppression, and detections from the outputs of a model.

A detection is a row x1, y1, x2, y2, score, class with corners as fractions of the image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.errors import DataError, UsageError
from onnxprune.metrics.base import Labels, MetricOptions, Outputs, find_function

COLUMNS = 6
# names that exporters give to the outputs of their own non-maximum suppression
_SCORES = ("scores", "detection_scores", "det_scores", "score")
_CLASSES = ("classes", "labels", "detection_classes", "det_classes", "class_ids")
_CORNERS_XY = ("boxes", "det_boxes", "bboxes", "dets")
_CORNERS_YX = ("detection_boxes",)
_COUNTS = ("num_detections", "num_dets", "num_boxes")
# coordinates above this are pixels; boxes may exceed the image, but not by its size
LARGEST_FRACTION = 2


def overlap(a: np.ndarray, b: np.ndarray, *, of_first: bool = False) -> np.ndarray:
    """Return the intersection over union of boxes (n, 4+) and (m, 4+), float64 (n, m).

    With `of_first`, the intersection over the area of `a`.
    """
    a, b = a[:, None, :4].astype(np.float64), b[None, :, :4].astype(np.float64)
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    common = np.clip(sides, 0, None).prod(-1)
    total = (a[..., 2:] - a[..., :2]).prod(-1)
    if not of_first:
        total = total + (b[..., 2:] - b[..., :2]).prod(-1) - common
    # boxes without an area overlap with nothing
    return np.asarray(np.divide(common, total, out=np.zeros_like(common), where=total > 0))


def suppress(detections: np.ndarray, limit: float, most: int | None = None) -> np.ndarray:
    """Apply non-maximum suppression within each class.

    Parameters
    ----------
    detections
        Rows (n, 6).
    limit
        A row is dropped if its IoU with a kept row of its class and a higher score exceeds this.
    most
        Maximum number of rows to return; None = all.

    Returns
    -------
    ndarray
        The kept rows, the highest score first. Cost: one row of overlaps per kept row.
    """
    # stable: equal scores keep the order of the model
    left = detections[np.argsort(-detections[:, 4], kind="stable")]
    kept: list[np.ndarray] = []
    while len(left) and (most is None or len(kept) < most):
        best, left = left[0], left[1:]
        kept.append(best)
        left = left[(left[:, 5] != best[5]) | (overlap(best[None], left)[0] <= limit)]
    return np.stack(kept) if kept else np.zeros((0, COLUMNS))


def detections_of(outputs: Outputs, labels: Labels, options: MetricOptions) -> list[np.ndarray]:
    """Return the detections of each sample, by the decoder of the options or from the outputs.

    Raises
    ------
    DataError
        The decoder returns something else than float (boxes, 6) per sample.
    UsageError
        There is no decoder and the outputs are not detections.
    """
    decode = options.decoder or native
    if isinstance(decode, str):
        decode = find_function(decode, "decoder")
    detections = [np.asarray(d, np.float64) for d in decode(outputs, labels)]
    size = len(next(iter(outputs.values())))
    # single-image exports have no batch axis, so that only a decoder's result can be counted
    if decode is not native and len(detections) != size:
        raise DataError(
            "decoder-shape",
            f"the decoder returned detections of {len(detections)} samples for a batch of {size}",
        )
    for rows in detections:
        if rows.ndim != 2 or rows.shape[1] != COLUMNS:
            raise DataError(
                "decoder-shape",
                f"the decoder returned shape {rows.shape} for a sample; it must give (boxes, 6): "
                "x1, y1, x2, y2, score, class",
            )
    return detections


def native(outputs: Outputs, labels: Labels) -> list[np.ndarray]:
    """Return the detections of a model that applies non-maximum suppression in its graph.

    Known forms: one output (n, boxes, 6) of corners, score, class; or outputs named boxes, scores
    and classes (labels, detection_*, det_*) with an optional count, batched or of a single image.
    `detection_boxes` has y before x, as TensorFlow exports it. Corners in pixels are divided by
    `labels["size"]`, int (n, 2), height and width of the input.

    Raises
    ------
    UsageError
        The outputs have none of these forms.
    DataError
        Boxes are in pixels and the labels have no size.
    """
    if len(outputs) == 1:
        only = np.asarray(next(iter(outputs.values())))
        if only.ndim == 3 and _are_detections(only):
            return _scale_to_fractions([row[row[:, 4] > 0] for row in only], labels)
    names = {n.lower(): n for n in outputs}
    boxes, flipped = _find_output(outputs, names, _CORNERS_XY), False
    if boxes is None:
        boxes, flipped = _find_output(outputs, names, _CORNERS_YX), True
    scores = _find_output(outputs, names, _SCORES)
    classes = _find_output(outputs, names, _CLASSES)
    if boxes is None or classes is None or (scores is None and boxes.shape[-1] != 5):
        raise UsageError(
            "decoder-needed",
            f"outputs {', '.join(sorted(outputs))} are not boxes, scores and classes; "
            "name a decoder as module:function (outputs, labels) -> boxes",
        )
    if scores is None:
        boxes, scores = boxes[..., :4], boxes[..., 4]
    if boxes.ndim == 2:
        boxes, scores, classes = boxes[None], scores[None], classes[None]
    corners = boxes[..., [1, 0, 3, 2]] if flipped else boxes
    counts = _find_output(outputs, names, _COUNTS)
    lengths = [boxes.shape[1]] * len(boxes)
    if counts is not None:
        lengths = [int(c) for c in counts.reshape(-1)]
    detections = [
        np.concatenate([c, s.reshape(-1, 1), k.reshape(-1, 1)], 1)[:n]
        for c, s, k, n in zip(corners, scores, classes, lengths, strict=False)
    ]
    # exports pad to a fixed number of rows, with a score of 0
    return _scale_to_fractions([rows[rows[:, 4] > 0] for rows in detections], labels)


def _are_detections(rows: np.ndarray) -> bool:
    """Return True if (n, boxes, 6) may be corners, score and class.

    Scores are then from 0 to 1 and classes are integers.
    """
    if rows.shape[2] != COLUMNS:
        return False
    score, kind = rows[..., 4], rows[..., 5]
    return bool(((score >= 0) & (score <= 1)).all() and (kind == np.round(kind)).all())


def _find_output(
    outputs: Outputs, names: dict[str, str], known: Sequence[str]
) -> np.ndarray | None:
    """Return the output with the first of the known names; `names` is lower case -> name."""
    for name in known:
        if name in names:
            return np.asarray(outputs[names[name]], np.float64)
    return None


def _scale_to_fractions(detections: list[np.ndarray], labels: Labels) -> list[np.ndarray]:
    """Return detections with corners as fractions; corners in pixels are divided by the size."""
    detections = [np.asarray(d, np.float64) for d in detections]
    if all(not len(d) or d[:, :4].max() <= LARGEST_FRACTION for d in detections):
        return detections
    if "size" not in labels:
        raise DataError(
            "data-labels",
            "the model's boxes are in pixels and the data lack the size of the input; give labels "
            "'size' (n, 2), height and width",
        )
    sizes = np.asarray(labels["size"], np.float64).reshape(-1, 2)
    return [
        # sizes are height and width, corners x and y
        np.concatenate([rows[:, :4] / size[[1, 0, 1, 0]], rows[:, 4:]], 1)
        for rows, size in zip(detections, sizes, strict=False)
    ]


def center_to_corner(boxes: np.ndarray) -> np.ndarray:
    """Return corners (n, 4) of boxes given as center x, center y, width, height."""
    half = boxes[:, 2:4] / 2
    return np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], 1)
