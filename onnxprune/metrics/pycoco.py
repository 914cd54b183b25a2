"""Box mAP by pycocotools, the reference implementation of COCO (extra coco)."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from onnxprune.errors import MissingExtraError
from onnxprune.metrics.base import MetricEstimate, MetricOptions
from onnxprune.metrics.boxes import center_to_corner
from onnxprune.metrics.detection import OVERLAPS, Detection

# side of the square that fractions are scaled to; areas matter only for COCO's size ranges, which
# are not evaluated
SIDE = 1000.0
_ALL_AREAS, _MOST_100 = 0, 2  # indices of pycocotools' area ranges and detection limits


class Official(Detection):
    """Box mAP as pycocotools computes it. Keeps all boxes; has no standard error."""

    def __init__(self, options: MetricOptions) -> None:
        super().__init__("coco-official", len(OVERLAPS), options)
        self._boxes: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []

    def add(self, detections: np.ndarray, truth: np.ndarray) -> None:
        """Add one image: detections (n, 6) and label rows (m, 6 or 7)."""
        self._boxes.append(detections)
        self._labels.append(truth)
        self._images += 1

    def estimate(
        self, weights: np.ndarray | None = None, classes: Sequence[int] | None = None
    ) -> MetricEstimate | None:
        """Return the metric over the chosen classes; None under weights."""
        return None if weights is not None else official_map(self._boxes, self._labels, classes)


def official_map(
    detections: Sequence[np.ndarray],
    truth: Sequence[np.ndarray],
    classes: Sequence[int] | None = None,
) -> MetricEstimate:
    """Return the mAP by pycocotools of detections (n, 6) and label rows (m, 6 or 7) per image.

    Raises
    ------
    MissingExtraError
        pycocotools is not installed.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError:
        raise MissingExtraError("pycocotools", "coco", "metric coco-official") from None
    present = [rows[:, 1] for rows in truth] + [rows[:, 5] for rows in detections]
    known: list[int] = np.unique(np.concatenate(present)).astype(int).tolist()

    def dataset(boxes: Iterator[dict[str, Any]]) -> Any:
        """Return a COCO object of these boxes."""
        coco = COCO()
        coco.dataset = {
            "images": [{"id": image} for image in range(len(truth))],
            "categories": [{"id": c} for c in known],
            # ids start at 1: pycocotools takes a match with 0 for none
            "annotations": [{"id": number + 1, **box} for number, box in enumerate(boxes)],
        }
        coco.createIndex()
        return coco

    chosen = [c for c in known if classes is None or c in classes]
    with contextlib.redirect_stdout(io.StringIO()):
        run = COCOeval(
            dataset(_label_boxes(truth)), dataset(_describe_detections(detections)), "bbox"
        )
        run.params.catIds = chosen
        run.evaluate()
        run.accumulate()
    precision = run.eval["precision"][:, :, :, _ALL_AREAS, _MOST_100]  # overlaps, recalls, classes
    counts, columns = {}, []
    for column, c in enumerate(chosen):
        count = sum(((rows[:, 1] == c) & (rows[:, 6:].sum(1) == 0)).sum() for rows in truth)
        if count:
            counts[c] = float(count)
            columns.append(column)
    per_class = {c: float(precision[:, :, k].mean()) for c, k in zip(counts, columns, strict=True)}
    shown = precision[:, :, columns]
    details = {
        "map": float(shown.mean()),
        "map50": float(shown[0].mean()),
        "map75": float(shown[5].mean()),
    }
    return MetricEstimate(details["map"], per_class, counts, details)


def _label_boxes(truth: Sequence[np.ndarray]) -> Iterator[dict[str, Any]]:
    """Yield the annotations of label rows."""
    for image, rows in enumerate(truth):
        for row, corners in zip(rows, center_to_corner(rows[:, 2:6]), strict=True):
            crowd = int(row[6]) if len(row) == 7 else 0
            yield {**_describe_box(image, row[1], corners), "iscrowd": crowd}


def _describe_detections(detections: Sequence[np.ndarray]) -> Iterator[dict[str, Any]]:
    """Yield the annotations of detections."""
    for image, rows in enumerate(detections):
        for row in rows:
            yield {**_describe_box(image, row[5], row[:4]), "score": float(row[4]), "iscrowd": 0}


def _describe_box(image: int, category: float, corners: np.ndarray) -> dict[str, Any]:
    """Return the fields that all annotations have."""
    x1, y1, x2, y2 = corners * SIDE
    box = [x1, y1, x2 - x1, y2 - y1]
    return {
        "image_id": image,
        "category_id": int(category),
        "bbox": box,
        "area": box[2] * box[3],
    }


def official(options: MetricOptions) -> Official:
    """Return box mAP by pycocotools."""
    return Official(options)
