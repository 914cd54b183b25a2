"""The same mAP by pycocotools, the reference implementation (extra coco)."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxprune.errors import MissingExtraError
from onnxprune.metrics.base import (
    BaseMetric,
    Labels,
    MetricEstimate,
    MetricOptions,
    Outputs,
    pick_labels,
)
from onnxprune.metrics.boxes import center_to_corner, detections_of
from onnxprune.metrics.detection import check_boxes

# side of the square that fractions are scaled to; areas only matter for COCO's size ranges, which are not asked for
SIDE = 1000.0


class Official(BaseMetric):
    """Box mAP as pycocotools computes it. Keeps all boxes; has no spread."""

    name = "coco-official"

    def __init__(self, options: MetricOptions) -> None:
        super().__init__(options)
        self._found: list[np.ndarray] = []
        self._truth: list[np.ndarray] = []

    @property
    def n(self) -> int:
        return len(self._found)

    def update(self, outputs: Outputs, labels: Labels) -> None:
        """Outputs of one batch and `boxes`."""
        truth = check_boxes(pick_labels(labels, self.options, "boxes", self.name), self.name)
        for index, detections in enumerate(detections_of(outputs, labels, self.options)):
            self._found.append(detections)
            self._truth.append(truth[truth[:, 0] == index])

    def estimate(
        self, weights: np.ndarray | None = None, classes: Sequence[int] | None = None
    ) -> MetricEstimate | None:
        """The metric over the chosen classes; None under weights."""
        return None if weights is not None else official_map(self._found, self._truth, classes)


def official_map(
    detections: Sequence[np.ndarray],
    truth: Sequence[np.ndarray],
    classes: Sequence[int] | None = None,
) -> MetricEstimate:
    """MAP by pycocotools of detections (n, 6) and label rows (m, 6 or 7), a pair for each image.

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
    every = sorted(
        {int(c) for t in truth for c in t[:, 1]} | {int(c) for d in detections for c in d[:, 5]}
    )
    with contextlib.redirect_stdout(io.StringIO()):
        answer = COCO()
        answer.dataset = {
            "images": [{"id": i + 1} for i in range(len(truth))],
            "categories": [{"id": c} for c in every],
            "annotations": _annotations(truth),
        }
        answer.createIndex()
        run = COCOeval(answer, _results(answer, detections, COCO), "bbox")
        run.params.catIds = [c for c in every if classes is None or c in classes]
        run.evaluate()
        run.accumulate()
    precision = run.eval["precision"][
        :, :, :, 0, 2
    ]  # (overlaps, recalls, classes), area "all", 100 detections
    counts = {
        c: float(sum(((t[:, 1] == c) & (t[:, 6:].sum(1) == 0)).sum() for t in truth))
        for c in run.params.catIds
    }
    present = [k for k, c in enumerate(run.params.catIds) if counts[c]]
    per_class = {run.params.catIds[k]: float(precision[:, :, k].mean()) for k in present}
    shown = precision[:, :, present]
    details = {
        "map": float(shown.mean()),
        "map50": float(shown[0].mean()),
        "map75": float(shown[5].mean()),
    }
    return MetricEstimate(details["map"], per_class, {c: counts[c] for c in per_class}, details)


def _annotations(truth: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for image, rows in enumerate(truth):
        for row, (x1, y1, x2, y2) in zip(rows, center_to_corner(rows[:, 2:6]) * SIDE, strict=False):
            crowd = int(row[6]) if len(row) == 7 else 0
            box = [x1, y1, x2 - x1, y2 - y1]
            found.append(
                {
                    "id": len(found) + 1,
                    "image_id": image + 1,
                    "category_id": int(row[1]),
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": crowd,
                }
            )
    return found


def _results(answer: Any, detections: Sequence[np.ndarray], coco: Any) -> Any:
    """A COCO object of the detections; `loadRes` refuses an empty list."""
    rows = []
    for image, found in enumerate(detections):
        for x1, y1, x2, y2, score, c in found:
            box = [x1 * SIDE, y1 * SIDE, (x2 - x1) * SIDE, (y2 - y1) * SIDE]
            rows.append(
                {"image_id": image + 1, "category_id": int(c), "bbox": box, "score": float(score)}
            )
    if rows:
        return answer.loadRes(rows)
    empty = coco()
    empty.dataset = {**answer.dataset, "annotations": []}
    empty.createIndex()
    return empty


def official(options: MetricOptions) -> Official:
    """Box mAP by pycocotools."""
    return Official(options)
