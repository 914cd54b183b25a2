"""Mean average precision of boxes as defined by COCO (Lin et al. 2014), and its twelve figures.

The boxes of an image are matched when the image is seen, for boxes of any size and for each range
of sizes. Kept per detection are its image, class, score, rank, and the overlaps at which it is
correct, so that the curves can be drawn again under any weights of the images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from onnxprune.data.label_geometry import IMAGE_SIZE
from onnxprune.errors import DataError, UsageError
from onnxprune.metrics.base import (
    BaseMetric,
    Labels,
    MetricEstimate,
    MetricOptions,
    Outputs,
    pick_labels,
)
from onnxprune.metrics.boxes import center_to_corner, overlap
from onnxprune.metrics.decoding import detections_of

BOX_METRICS = ("coco", "coco-official", "map50")  # names of the metrics of boxes
OVERLAPS = np.arange(0.5, 0.96, 0.05)  # 0.50 .. 0.95
RECALLS = np.linspace(0, 1, 101)
MOST_PER_CLASS = 100  # detections of one class in one image, as COCO's maxDets
LABEL_COLUMNS = (6, 7, 8)
CURVES = ("coco", "anchored")
# ranges of the area of boxes in pixels of the original image; the first holds all
AREAS = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2)}
AREAS["large"] = (96.0**2, 1e10)
DETECTION_LIMITS = (1, 10, 100)  # detections of one class in one image, for average recall
# columns of a kept detection: image, class, score, and its rank by score in its image and class
_IMAGE, _CLASS, _SCORE, _RANK = 0, 1, 2, 3
# details of a score -> titles of COCO's twelve figures, in the order of its table
TWELVE = {
    "map": "AP",
    "map50": "AP50",
    "map75": "AP75",
    **{f"ap_{area}": f"AP {area[0].upper()}" for area in ("small", "medium", "large")},
    **{f"ar_{limit}": f"AR {limit}" for limit in DETECTION_LIMITS},
    **{f"ar_{area}": f"AR {area[0].upper()}" for area in ("small", "medium", "large")},
}


class _Class(NamedTuple):
    """All that is known of one class.

    Attributes
    ----------
    truth
        Image and number of boxes that count per range of areas, (rows, 1 + areas).
    detections
        Image, class, score and rank, (n, 4), by falling score.
    right, ignored
        Whether a detection is correct, and whether it does not count, bool (n, areas, overlaps).
    """

    truth: np.ndarray
    detections: np.ndarray
    right: np.ndarray
    ignored: np.ndarray


class Detection(BaseMetric):
    """Box mAP, equal to pycocotools for boxes without ties in score.

    Detections come from `options.decoder`, or from the outputs. Labels: `boxes`, float (m, 6):
    sample within the batch, class, center x, center y, width, height as fractions of the image. A
    seventh column marks crowds, which count neither as hits nor as misses; an eighth is the area of
    the object in pixels (0: that of its box). Ranges of areas need the label `image_size`, int
    (n, 2): height and width of the original images. The mean is over the classes that have a box.
    With `curve="anchored"` each curve starts at (0, 1).
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
        self._flags: list[np.ndarray] = []  # right and ignored, bool (n, 2, areas, overlaps)
        self._truth: list[np.ndarray] = []  # image, class, boxes per range of areas
        self._sized = True  # whether the size of every image was known

    @property
    def n(self) -> int:
        """Return the number of images seen."""
        return self._images

    def update(self, outputs: Outputs, labels: Labels) -> None:
        """Add one batch of outputs and `boxes`."""
        truth = check_boxes(pick_labels(labels, self.options, "boxes", self.name), self.name)
        sizes = labels.get(IMAGE_SIZE)
        for index, detections in enumerate(detections_of(outputs, labels, self.options)):
            size = None if sizes is None else (int(sizes[index][0]), int(sizes[index][1]))
            self.add(detections, truth[truth[:, 0] == index], size)

    def add(
        self, detections: np.ndarray, truth: np.ndarray, size: tuple[int, int] | None = None
    ) -> None:
        """Add one image.

        Parameters
        ----------
        detections
            Rows (n, 6).
        truth
            Label rows (m, 6, 7 or 8).
        size
            Height and width in pixels; without it, areas are not known.
        """
        self._sized &= size is not None
        pixels = float(size[0] * size[1]) if size else 1.0
        boxes = _read_truth(truth, pixels)
        for c in np.union1d(detections[:, 5], truth[:, 1]):
            own = boxes.of_class(truth[:, 1] == c)
            rows = detections[detections[:, 5] == c]
            # stable, so that ties in score are resolved in the order of the outputs
            rows = rows[np.argsort(-rows[:, 4], kind="stable")][:MOST_PER_CLASS]
            right, ignored = match(rows, own, pixels)
            if len(rows):
                head = [np.full(len(rows), self._images), rows[:, 5], rows[:, 4], range(len(rows))]
                self._detections.append(np.stack(head, 1))
                self._flags.append(np.stack([right, ignored], 1))
            counts = own.counted().sum(1)
            if counts.any():
                self._truth.append(np.array([[self._images, c, *counts]], np.float64))
        self._images += 1
        self.__dict__.pop("_by_class", None)  # the cached tables lack this image

    @cached_property
    def _by_class(self) -> dict[int, _Class]:
        """Return the tables of each class that has a box."""
        steps = (len(AREAS), len(OVERLAPS))
        truth = np.concatenate([np.zeros((0, 2 + len(AREAS))), *self._truth])
        detections = np.concatenate([np.zeros((0, 4)), *self._detections])
        flags = np.concatenate([np.zeros((0, 2, *steps), bool), *self._flags])
        order = np.argsort(-detections[:, _SCORE], kind="stable")
        tables = {}
        for c in np.unique(truth[:, 1]):
            own = order[detections[order, _CLASS] == c]
            rows = np.delete(truth[truth[:, 1] == c], 1, axis=1)
            tables[int(c)] = _Class(rows, detections[own], flags[own, 0], flags[own, 1])
        return tables

    def estimate(
        self, weights: np.ndarray | None = None, classes: Sequence[int] | None = None
    ) -> MetricEstimate | None:
        """Return the mAP over the chosen classes with image weights.

        Details are map, map50, map75, and precision and recall at overlap 0.5 where their harmonic
        mean is largest; without weights also the other figures of COCO's table.
        """
        full = weights is None
        weights = np.ones(self._images) if weights is None else weights
        curves, counts, peaks = {}, {}, {}
        tables = {c: t for c, t in self._by_class.items() if classes is None or c in classes}
        for c, table in tables.items():
            total = float(weights[table.truth[:, 0].astype(int)] @ table.truth[:, 1])
            if total:
                counts[c] = total
                curves[c], peaks[c] = self._curve(table, weights, total)
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
        if full:
            # 100 draws of these would take several times as long as those of the mAP
            details |= self._measure_ranges(list(tables.values()))
        return MetricEstimate(float(mean[: self._overlaps].mean()), per_class, counts, details)

    def _measure_ranges(self, tables: Sequence[_Class]) -> dict[str, float]:
        """Return average precision by area, and average recall by area and detection limit.

        NaN where no image has a box of the area, or sizes of images are not known.
        """
        figures = {}
        for limit in DETECTION_LIMITS:
            figures[f"ar_{limit}"] = _mean([_measure_range(t, 0, limit)[1] for t in tables])
        for index, name in enumerate(AREAS):
            if index:
                pairs = [_measure_range(t, index, MOST_PER_CLASS) for t in tables]
                known = pairs if self._sized else []
                figures[f"ap_{name}"] = _mean([p for p, _ in known])
                figures[f"ar_{name}"] = _mean([r for _, r in known])
        return figures

    def _curve(
        self, table: _Class, weights: np.ndarray, total: float
    ) -> tuple[np.ndarray, tuple[float, float]]:
        """Return the average precision of one class, and its best precision and recall.

        Parameters
        ----------
        total
            Weighted number of boxes of the class.

        Returns
        -------
        tuple
            Average precision (overlaps,); (precision, recall) at overlap 0.5 where their harmonic
            mean is largest.
        """
        own = weights[table.detections[:, _IMAGE].astype(int)]
        precision, recall = trace(table.right[:, 0], table.ignored[:, 0], own, total)
        areas = area(recall, precision, self.options.curve)
        if not len(precision):
            return areas, (0.0, 0.0)
        p, r = precision[:, 0], recall[:, 0]
        # 1e-12 avoids 0 / 0 where nothing is correct
        best = int(np.argmax(p * r / np.maximum(p + r, 1e-12)))
        return areas, (float(p[best]), float(r[best]))


def trace(
    right: np.ndarray, ignored: np.ndarray, weights: np.ndarray, total: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return precision and recall after each detection, at each overlap, (n, overlaps).

    Parameters
    ----------
    right, ignored
        Bool (n, overlaps), by falling score.
    weights
        Weight of each detection's image, (n,).
    total
        Weighted number of boxes.
    """
    counted = weights[:, None] * ~ignored
    hits, shown = np.cumsum(counted * right, 0), np.cumsum(counted, 0)
    precision = np.divide(hits, shown, out=np.zeros_like(hits), where=shown > 0)
    return precision, hits / total


def _measure_range(table: _Class, index: int, limit: int) -> tuple[float, float]:
    """Return average precision and recall of a class in a range of areas.

    Parameters
    ----------
    index
        Number of the range in AREAS.
    limit
        Number of detections per image that count.

    Returns
    -------
    tuple of float
        Means over the overlaps; NaN without a box in the range.
    """
    total = float(table.truth[:, 1 + index].sum())
    if not total:
        return math.nan, math.nan
    first = table.detections[:, _RANK] < limit
    right, ignored = table.right[first, index], table.ignored[first, index]
    precision, recall = trace(right, ignored, np.ones(len(right)), total)
    last = float(recall[-1].mean()) if len(recall) else 0.0
    return float(area(recall, precision).mean()), last


def _mean(values: Sequence[float]) -> float:
    """Return the mean of the values that are not NaN; NaN if there are none."""
    known = [v for v in values if not math.isnan(v)]
    return float(np.mean(known)) if known else math.nan


class Truth(NamedTuple):
    """Labeled boxes of one image.

    Attributes
    ----------
    corners
        (m, 4), fractions.
    crowd
        Whether a box is a crowd, bool (m,).
    area
        In pixels, (m,).
    """

    corners: np.ndarray
    crowd: np.ndarray
    area: np.ndarray

    def of_class(self, chosen: np.ndarray) -> Truth:
        """Return some of the boxes."""
        return Truth(self.corners[chosen], self.crowd[chosen], self.area[chosen])

    def counted(self) -> np.ndarray:
        """Return whether a box counts in each range of areas, bool (areas, m)."""
        low, high = np.array(list(AREAS.values())).T[:, :, None]
        return np.asarray((self.area >= low) & (self.area <= high) & ~self.crowd)


def _read_truth(truth: np.ndarray, pixels: float) -> Truth:
    """Return the boxes of label rows of one image that has so many pixels."""
    crowd = truth[:, 6] > 0 if truth.shape[1] > 6 else np.zeros(len(truth), bool)
    own = truth[:, 4] * truth[:, 5] * pixels
    if truth.shape[1] > 7:
        own = np.where(truth[:, 7] > 0, truth[:, 7], own)
    return Truth(center_to_corner(truth[:, 2:6]), crowd, own)


def match(
    detections: np.ndarray, truth: Truth, pixels: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Match the detections of one class in one image to boxes, per range of areas and overlap.

    Greedy by falling score: a detection takes the free box of the range that it overlaps most, if
    by enough; otherwise it may be on a box of another size or in a crowd, and does not count.

    Parameters
    ----------
    detections
        Rows (n, 6) by falling score.
    truth
        Boxes of the class.
    pixels
        Pixels of the image.

    Returns
    -------
    tuple of ndarray
        Correct detections and detections that do not count, bool (n, areas, overlaps).
    """
    shape = (len(detections), len(AREAS), len(OVERLAPS))
    right, ignored = np.zeros(shape, bool), np.zeros(shape, bool)
    if not len(detections):
        return right, ignored
    counted = truth.counted()
    shares = overlap(detections, truth.corners)
    # a detection lies in a crowd by its own area, however large the crowd is
    crowds = truth.corners[truth.crowd]
    shares[:, truth.crowd] = overlap(detections, crowds, of_first=True)
    free = np.ones((*shape[1:], shares.shape[1]), bool)
    # most detections overlap no box by the least threshold, and need no search
    for row in np.flatnonzero(shares.max(1, initial=0.0) >= OVERLAPS[0]):
        usable = free & (shares[row] >= OVERLAPS[:, None])
        # a box of the range comes before one of another size, however much that overlaps
        rank = np.where(usable, shares[row] + counted[:, None], -1.0)
        best = rank.argmax(2)
        hit = np.take_along_axis(usable, best[..., None], 2)[..., 0]
        at = np.nonzero(hit)
        # any number of detections may lie in a crowd
        free[(*at, best[at])] = truth.crowd[best[at]]
        is_counted = np.take_along_axis(counted, best, 1)
        right[row], ignored[row] = hit & is_counted, hit & ~is_counted
    missed = ~(right | ignored)
    low, high = np.array(list(AREAS.values())).T
    own = (detections[:, 2:4] - detections[:, :2]).prod(1)[:, None] * pixels
    elsewhere = (own < low) | (own > high)
    return right, ignored | (missed & elsewhere[:, :, None])


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
            "center y, width, height, or (m, 7) with a crowd flag, (m, 8) with an area in pixels",
        )
    return boxes


def coco(options: MetricOptions) -> Detection:
    """Return box mAP over IoU 0.50 to 0.95."""
    return Detection("coco", len(OVERLAPS), options)


def map50(options: MetricOptions) -> Detection:
    """Return box mAP at IoU 0.50."""
    return Detection("map50", 1, options)
