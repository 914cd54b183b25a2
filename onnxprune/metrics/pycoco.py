"""COCO's twelve figures by pycocotools, the reference implementation (extra coco)."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from onnxprune.errors import MissingExtraError
from onnxprune.metrics.base import MetricEstimate, MetricOptions
from onnxprune.metrics.boxes import center_to_corner
from onnxprune.metrics.detection import OVERLAPS, TWELVE, Detection

SQUARE = (1000, 1000)  # size of images of unknown size, whose ranges of areas are not reported
_ALL_AREAS, _MOST_100 = 0, 2  # indices of pycocotools' area ranges and detection limits


class Official(Detection):
    """Box mAP as pycocotools computes it. Keeps all boxes; has no standard error."""

    def __init__(self, options: MetricOptions) -> None:
        super().__init__("coco-official", len(OVERLAPS), options)
        self._boxes: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []
        self._sizes: list[tuple[int, int]] = []

    def add(
        self, detections: np.ndarray, truth: np.ndarray, size: tuple[int, int] | None = None
    ) -> None:
        """Add one image: detections (n, 6), label rows (m, 6, 7 or 8), height and width."""
        self._boxes.append(detections)
        self._labels.append(truth)
        self._sizes += [size] if size else []
        self._images += 1

    def estimate(
        self, weights: np.ndarray | None = None, classes: Sequence[int] | None = None
    ) -> MetricEstimate | None:
        """Return the metric over the chosen classes; None under weights."""
        if weights is not None:
            return None
        sizes = self._sizes if len(self._sizes) == self._images else None
        return official_map(self._boxes, self._labels, classes, sizes)


def official_map(
    detections: Sequence[np.ndarray],
    truth: Sequence[np.ndarray],
    classes: Sequence[int] | None = None,
    sizes: Sequence[tuple[int, int]] | None = None,
) -> MetricEstimate:
    """Return the figures by pycocotools of detections (n, 6) and label rows per image.

    Parameters
    ----------
    truth
        (m, 6, 7 or 8) per image, as for `Detection`.
    classes
        Class indices; None = all.
    sizes
        Height and width of each image in pixels; None leaves out ranges of areas.

    Raises
    ------
    MissingExtraError
        pycocotools is not installed.
    """
    present = [rows[:, 1] for rows in truth] + [rows[:, 5] for rows in detections]
    known: list[int] = np.unique(np.concatenate(present)).astype(int).tolist()
    chosen = [c for c in known if classes is None or c in classes]
    run = _run(detections, truth, sizes or [SQUARE] * len(truth), known, chosen)
    precision = run.eval["precision"][:, :, :, _ALL_AREAS, _MOST_100]  # overlaps, recalls, classes
    counts, columns = {}, []
    for column, c in enumerate(chosen):
        count = sum(((rows[:, 1] == c) & (rows[:, 6:].sum(1) == 0)).sum() for rows in truth)
        if count:
            counts[c] = float(count)
            columns.append(column)
    per_class = {c: float(precision[:, :, k].mean()) for c, k in zip(counts, columns, strict=True)}
    # -1 stands for no box
    figures = [math.nan if value < 0 else float(value) for value in run.stats]
    details = dict(zip(TWELVE, figures, strict=True))
    if sizes is None:
        unknown = [name for name in TWELVE if name.endswith(("small", "medium", "large"))]
        details |= dict.fromkeys(unknown, math.nan)
    return MetricEstimate(details["map"], per_class, counts, details)


def _run(
    detections: Sequence[np.ndarray],
    truth: Sequence[np.ndarray],
    sizes: Sequence[tuple[int, int]],
    known: Sequence[int],
    chosen: Sequence[int],
) -> Any:
    """Return the COCOeval object with the figures of the chosen classes, of all that are known."""
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError:
        raise MissingExtraError("pycocotools", "coco", "metric coco-official") from None

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

    # pycocotools prints its progress
    with contextlib.redirect_stdout(io.StringIO()):
        boxes = _describe_detections(detections, sizes)
        run = COCOeval(dataset(_label_boxes(truth, sizes)), dataset(boxes), "bbox")
        run.params.catIds = chosen
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run


def _label_boxes(
    truth: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]]
) -> Iterator[dict[str, Any]]:
    """Yield the annotations of label rows."""
    for image, rows in enumerate(truth):
        for row, corners in zip(rows, center_to_corner(rows[:, 2:6]), strict=True):
            fields = _describe_box(image, row[1], corners, sizes[image])
            fields["iscrowd"] = int(row[6]) if len(row) > 6 else 0
            if len(row) > 7 and row[7] > 0:
                fields["area"] = float(row[7])
            yield fields


def _describe_detections(
    detections: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]]
) -> Iterator[dict[str, Any]]:
    """Yield the annotations of detections."""
    for image, rows in enumerate(detections):
        for row in rows:
            fields = _describe_box(image, row[5], row[:4], sizes[image])
            yield {**fields, "score": float(row[4]), "iscrowd": 0}


def _describe_box(
    image: int, category: float, corners: np.ndarray, size: tuple[int, int]
) -> dict[str, Any]:
    """Return the fields that all annotations have."""
    height, width = size
    x1, y1, x2, y2 = corners * np.array([width, height, width, height], np.float64)
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
