"""Mean average precision of boxes, after COCO (Lin et al. 2014; cocoapi's cocoeval).

Boxes of an image are matched when the image is seen; what is kept of a detection is its image, class, score and at which overlaps it was right. The curves
can then be drawn again under any weights of the images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from onnxprune.errors import DataError, UsageError
from onnxprune.metrics.base import (
    BaseMetric,
    Labels,
    MetricEstimate,
    MetricOptions,
    Outputs,
    pick_labels,
)
from onnxprune.metrics.boxes import center_to_corner, detections_of, overlap

OVERLAPS = np.arange(0.5, 0.96, 0.05)  # 0.50 .. 0.95
RECALLS = np.linspace(0, 1, 101)
MOST_PER_CLASS = 100  # detections of one class in one image, as COCO's maxDets
LABEL_COLUMNS = (6, 7)


class Detection(BaseMetric):
    """COCO box mAP.

    Detections: by `options.decoder`, or the model's own. Labels: `boxes` float (m, 6): sample within the batch, class, center x, center y, width, height as
    fractions of the image; a seventh column marks crowds, which are neither right nor wrong to find. The mean is over the classes that have a box.
    Equal to pycocotools (area "all") for boxes without ties in score; with `curve="anchored"` each curve begins at (0, 1).
    """

    draws = 100

    def __init__(self, name: str, overlaps: int, options: MetricOptions) -> None:
        super().__init__(options)
        if options.curve not in ("coco", "anchored"):
            raise UsageError("metric-curve", f"curve {options.curve!r} is not coco or anchored")
        self.name = name
        self._overlaps = overlaps
        self._images = 0
        self._found: list[np.ndarray] = []
        self._truth: list[np.ndarray] = []

    @property
    def n(self) -> int:
        return self._images

    def update(self, outputs: Outputs, labels: Labels) -> None:
        """Outputs of one batch and `boxes`."""
        truth = check_boxes(pick_labels(labels, self.options, "boxes", self.name), self.name)
        for index, detections in enumerate(detections_of(outputs, labels, self.options)):
            self.add(detections, truth[truth[:, 0] == index])

    def add(self, detections: np.ndarray, truth: np.ndarray) -> None:
        """One image: detections (n, 6) and label rows (m, 6 or 7)."""
        corners, crowd = (
            center_to_corner(truth[:, 2:6]),
            truth[:, 6] > 0 if truth.shape[1] == 7 else np.zeros(len(truth), bool),
        )
        for c in np.union1d(detections[:, 5], truth[:, 1]):
            of_class = truth[:, 1] == c
            mine = detections[detections[:, 5] == c]
            mine = mine[np.argsort(-mine[:, 4], kind="stable")][:MOST_PER_CLASS]
            right, ignored = match(mine, corners[of_class], crowd[of_class])
            if len(mine):
                head = np.stack([np.full(len(mine), self._images), mine[:, 5], mine[:, 4]], 1)
                self._found.append(np.concatenate([head, right, ignored], 1))
            if count := int((of_class & ~crowd).sum()):
                self._truth.append(np.array([[self._images, c, count]]))
        self._images += 1
        self.__dict__.pop("_by_class", None)

    @cached_property
    def _by_class(self) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """Class -> (rows of `_truth`, rows of `_found` by falling score), for the classes that have a box."""
        truth = np.concatenate(self._truth) if self._truth else np.zeros((0, 3))
        found = np.concatenate(self._found) if self._found else np.zeros((0, 3 + 2 * len(OVERLAPS)))
        found = found[np.argsort(-found[:, 2], kind="stable")]
        return {
            int(c): (truth[truth[:, 1] == c], found[found[:, 1] == c])
            for c in np.unique(truth[:, 1])
        }

    def estimate(
        self, weights: np.ndarray | None = None, classes: Sequence[int] | None = None
    ) -> MetricEstimate:
        weights = np.ones(self._images) if weights is None else weights
        curves, counts, peaks = {}, {}, {}
        for c, (truth, found) in self._by_class.items():
            total = float(weights[truth[:, 0].astype(int)] @ truth[:, 2])
            if total and (classes is None or c in classes):
                counts[c] = total
                curves[c], peaks[c] = self._curve(found, weights, total)
        per_class = {c: float(v[: self._overlaps].mean()) for c, v in curves.items()}
        if not curves:
            return MetricEstimate(math.nan)
        mean = np.mean(list(curves.values()), 0)
        precision, recall = np.mean(list(peaks.values()), 0)
        details = {
            "map": float(mean.mean()),
            "map50": float(mean[0]),
            "map75": float(mean[5]),
            "precision": float(precision),
            "recall": float(recall),
        }
        return MetricEstimate(float(mean[: self._overlaps].mean()), per_class, counts, details)

    def _curve(
        self, found: np.ndarray, weights: np.ndarray, total: float
    ) -> tuple[np.ndarray, tuple[float, float]]:
        """Average precision (overlaps,) of one class, and precision and recall at overlap 0.5 where their harmonic mean is largest."""
        steps = len(OVERLAPS)
        counted = weights[found[:, 0].astype(int)][:, None] * (1 - found[:, 3 + steps :])
        right = np.cumsum(counted * found[:, 3 : 3 + steps], 0)
        shown = np.cumsum(counted, 0)
        precision = np.divide(right, shown, out=np.zeros_like(right), where=shown > 0)
        recall = right / total
        areas = area(recall, precision, self.options.curve)
        if not len(found):
            return areas, (0.0, 0.0)
        best = int(
            np.argmax(
                precision[:, 0] * recall[:, 0] / np.maximum(precision[:, 0] + recall[:, 0], 1e-12)
            )
        )
        return areas, (float(precision[best, 0]), float(recall[best, 0]))


def match(
    detections: np.ndarray, truth: np.ndarray, crowd: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Which detections of one class in one image are right, and which do not count, at each overlap: two float (n, overlaps) of 0 and 1.

    Greedy by falling score: a detection takes the free box that it overlaps most, if by enough; failing that it may lie in a crowd.
    """
    steps = len(OVERLAPS)
    right, ignored = np.zeros((len(detections), steps)), np.zeros((len(detections), steps))
    if not len(truth):
        return right, ignored
    single = overlap(detections, truth[~crowd])
    inside = overlap(detections, truth[crowd], of_first=True).max(1, initial=0.0)
    free = np.ones((steps, single.shape[1]), bool)
    for row in range(len(detections)):
        if single.shape[1] and single[row].max() >= OVERLAPS[0]:
            shares = np.where(free, single[row], -1.0)
            best = shares.argmax(1)
            hit = shares[np.arange(steps), best] >= OVERLAPS
            free[hit, best[hit]] = False
            right[row] = hit
        ignored[row] = (right[row] == 0) & (inside[row] >= OVERLAPS)
    return right, ignored


def area(recall: np.ndarray, precision: np.ndarray, curve: str = "coco") -> np.ndarray:
    """Mean over the 101 recalls of the largest precision at that recall or above, for each column.

    recall, precision: (n, columns) by falling score. "anchored" adds the points (0, 1) and (1, 0).
    """
    if curve == "anchored":
        ends = np.zeros((1, recall.shape[1])), np.ones((1, recall.shape[1]))
        recall, precision = (
            np.concatenate([ends[0], recall, ends[1]]),
            np.concatenate([ends[1], precision, ends[0]]),
        )
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    reached = np.searchsorted(RECALLS, recall, side="right")  # how many of the 101 lie at or below
    return np.asarray((envelope * np.diff(reached, axis=0, prepend=0)).sum(0) / len(RECALLS))


def check_boxes(boxes: np.ndarray, metric: str) -> np.ndarray:
    """Label rows as float64 (m, 6 or 7); DataError for other shapes."""
    boxes = np.asarray(boxes, np.float64)
    if boxes.ndim != 2 or boxes.shape[1] not in LABEL_COLUMNS:
        raise DataError(
            "data-labels",
            f"{metric}: boxes are {boxes.shape}; they must be (m, 6): sample, class, center x, center y, width, height",
        )
    return boxes


def coco(options: MetricOptions) -> Detection:
    """Box mAP over IoU 0.50 to 0.95; map50, map75, precision and recall are in its details."""
    return Detection("coco", len(OVERLAPS), options)


def map50(options: MetricOptions) -> Detection:
    """Box mAP at IoU 0.50."""
    return Detection("map50", 1, options)
