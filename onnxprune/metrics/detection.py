"""Mean average precision of boxes as defined by COCO (Lin et al. 2014).

The boxes of an image are matched when the image is seen. Kept per detection are its image, class,
score, and the overlaps at which it is correct, so that the curves can be drawn again under any
weights of the images.
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
CURVES = ("coco", "anchored")
# columns of a kept detection, followed by `right` and `ignored` at each overlap
_IMAGE, _CLASS, _SCORE, _HEAD = 0, 1, 2, 3


class Detection(BaseMetric):
    """Box mAP, equal to pycocotools (area "all") for boxes without ties in score.

    Detections come from `options.decoder`, or from the outputs. Labels: `boxes`, float (m, 6):
    sample within the batch, class, center x, center y, width, height as fractions of the image. A
    seventh column marks crowds, which count neither as hits nor as misses. The mean is over the
    classes that have a box. With `curve="anchored"` each curve starts at (0, 1).
    """

    draws = 100

    def __init__(self, name: str, overlaps: int, options: MetricOptions) -> None:
        super().__init__(options)
        if options.curve not in CURVES:
            raise UsageError(
                "metric-curve", f"curve {options.curve!r} is not {' or '.join(CURVES)}"
            )
        self.name = name
        self._overlaps = overlaps
        self._images = 0
        self._detections: list[np.ndarray] = []
        self._truth: list[np.ndarray] = []

    @property
    def n(self) -> int:
        """Return the number of images seen."""
        return self._images

    def update(self, outputs: Outputs, labels: Labels) -> None:
        """Add one batch of outputs and `boxes`."""
        truth = check_boxes(pick_labels(labels, self.options, "boxes", self.name), self.name)
        for index, detections in enumerate(detections_of(outputs, labels, self.options)):
            self.add(detections, truth[truth[:, 0] == index])

    def add(self, detections: np.ndarray, truth: np.ndarray) -> None:
        """Add one image: detections (n, 6) and label rows (m, 6 or 7)."""
        corners, crowd = center_to_corner(truth[:, 2:6]), np.zeros(len(truth), bool)
        if truth.shape[1] == 7:
            crowd = truth[:, 6] > 0
        for c in np.union1d(detections[:, 5], truth[:, 1]):
            of_class = truth[:, 1] == c
            rows = detections[detections[:, 5] == c]
            # stable, so that ties in score are resolved in the order of the outputs
            rows = rows[np.argsort(-rows[:, 4], kind="stable")][:MOST_PER_CLASS]
            right, ignored = match(rows, corners[of_class], crowd[of_class])
            if len(rows):
                head = np.stack([np.full(len(rows), self._images), rows[:, 5], rows[:, 4]], 1)
                self._detections.append(np.concatenate([head, right, ignored], 1))
            if count := int((of_class & ~crowd).sum()):
                self._truth.append(np.array([[self._images, c, count]]))
        self._images += 1
        self.__dict__.pop("_by_class", None)  # the cached tables lack this image

    @cached_property
    def _by_class(self) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """Return class -> (rows of `_truth`, rows of `_detections` by falling score).

        Only classes that have a box are listed.
        """
        truth, detections = np.zeros((0, 3)), np.zeros((0, _HEAD + 2 * len(OVERLAPS)))
        if self._truth:
            truth = np.concatenate(self._truth)
        if self._detections:
            detections = np.concatenate(self._detections)
        detections = detections[np.argsort(-detections[:, _SCORE], kind="stable")]
        return {
            int(c): (truth[truth[:, 1] == c], detections[detections[:, _CLASS] == c])
            for c in np.unique(truth[:, 1])
        }

    def estimate(
        self, weights: np.ndarray | None = None, classes: Sequence[int] | None = None
    ) -> MetricEstimate | None:
        """Return the mAP over the chosen classes with image weights.

        Details are map, map50, map75, and precision and recall at overlap 0.5 where their harmonic
        mean is largest.
        """
        weights = np.ones(self._images) if weights is None else weights
        curves, counts, peaks = {}, {}, {}
        for c, (truth, detections) in self._by_class.items():
            total = float(weights[truth[:, 0].astype(int)] @ truth[:, 2])
            if total and (classes is None or c in classes):
                counts[c] = total
                curves[c], peaks[c] = self._curve(detections, weights, total)
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
        self, detections: np.ndarray, weights: np.ndarray, total: float
    ) -> tuple[np.ndarray, tuple[float, float]]:
        """Return the average precision of one class, and its best precision and recall.

        Parameters
        ----------
        detections
            Rows of one class by falling score.
        total
            Weighted number of boxes of the class.

        Returns
        -------
        tuple
            Average precision (overlaps,); (precision, recall) at overlap 0.5 where their harmonic
            mean is largest.
        """
        steps = len(OVERLAPS)
        right, ignored = detections[:, _HEAD : _HEAD + steps], detections[:, _HEAD + steps :]
        counted = weights[detections[:, _IMAGE].astype(int)][:, None] * (1 - ignored)
        hits = np.cumsum(counted * right, 0)
        shown = np.cumsum(counted, 0)
        precision = np.divide(hits, shown, out=np.zeros_like(hits), where=shown > 0)
        recall = hits / total
        areas = area(recall, precision, self.options.curve)
        if not len(detections):
            return areas, (0.0, 0.0)
        p, r = precision[:, 0], recall[:, 0]
        # 1e-12 avoids 0 / 0 where nothing is correct
        best = int(np.argmax(p * r / np.maximum(p + r, 1e-12)))
        return areas, (float(p[best]), float(r[best]))


def match(
    detections: np.ndarray, truth: np.ndarray, crowd: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Match the detections of one class in one image to boxes, at each overlap.

    Greedy by falling score: a detection takes the free box that it overlaps most, if by enough;
    otherwise it may lie in a crowd.

    Parameters
    ----------
    detections
        Rows (n, 6) by falling score.
    truth
        Corners (m, 4).
    crowd
        Whether a box is a crowd, (m,) bool.

    Returns
    -------
    tuple of ndarray
        Correct detections and detections that do not count, float (n, overlaps) of 0 and 1.
    """
    steps = len(OVERLAPS)
    right, ignored = np.zeros((len(detections), steps)), np.zeros((len(detections), steps))
    if not len(truth):
        return right, ignored
    single = overlap(detections, truth[~crowd])
    inside = overlap(detections, truth[crowd], of_first=True).max(1, initial=0.0)
    free = np.ones((steps, single.shape[1]), bool)
    for row in range(len(detections)):
        # most detections overlap no box by the least threshold, and need no search
        if single.shape[1] and single[row].max() >= OVERLAPS[0]:
            shares = np.where(free, single[row], -1.0)
            best = shares.argmax(1)
            hit = shares[np.arange(steps), best] >= OVERLAPS
            free[hit, best[hit]] = False
            right[row] = hit
        ignored[row] = (right[row] == 0) & (inside[row] >= OVERLAPS)
    return right, ignored


def area(recall: np.ndarray, precision: np.ndarray, curve: str = "coco") -> np.ndarray:
    """Return the 101-point average precision of each column.

    It is the mean over RECALLS of the largest precision at that recall or above.

    Parameters
    ----------
    recall, precision
        (n, columns) by falling score.
    curve
        "anchored" adds the points (0, 1) and (1, 0).
    """
    if curve == "anchored":
        zeros, ones = np.zeros((1, recall.shape[1])), np.ones((1, recall.shape[1]))
        recall = np.concatenate([zeros, recall, ones])
        precision = np.concatenate([ones, precision, zeros])
    # precision made monotonic: the largest at this recall or above
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    reached = np.searchsorted(RECALLS, recall, side="right")  # number of RECALLS at or below
    return np.asarray((envelope * np.diff(reached, axis=0, prepend=0)).sum(0) / len(RECALLS))


def check_boxes(boxes: np.ndarray, metric: str) -> np.ndarray:
    """Return label rows as float64 (m, 6 or 7); DataError for other shapes."""
    boxes = np.asarray(boxes, np.float64)
    if boxes.ndim != 2 or boxes.shape[1] not in LABEL_COLUMNS:
        raise DataError(
            "data-labels",
            f"{metric}: boxes are {boxes.shape}; they must be (m, 6): sample, class, center x, "
            "center y, width, height, or (m, 7) with a crowd flag",
        )
    return boxes


def coco(options: MetricOptions) -> Detection:
    """Return box mAP over IoU 0.50 to 0.95."""
    return Detection("coco", len(OVERLAPS), options)


def map50(options: MetricOptions) -> Detection:
    """Return box mAP at IoU 0.50."""
    return Detection("map50", 1, options)
