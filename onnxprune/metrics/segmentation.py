"""Mean intersection over union and pixel accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from onnxprune.errors import DataError
from onnxprune.metrics.base import (
    BaseMetric,
    Labels,
    MetricEstimate,
    MetricOptions,
    Outputs,
    pick_labels,
    pick_output,
)


class Segmentation(BaseMetric):
    """Pixel counts by image and class; (images, 3, classes) are kept, not pixels.

    Outputs are class scores (n, C, H, W), resized bilinearly to the size of the labels, or class
    indices (n, H, W). Labels: `masks`, int (n, H, W); values outside 0 .. classes - 1 and `ignore`
    are not scored. Predictions outside the classes count as wrong.
    """

    def __init__(self, name: str, options: MetricOptions) -> None:
        super().__init__(options)
        self.name = name
        self._counts: list[np.ndarray] = []

    @property
    def n(self) -> int:
        """Return the number of images seen."""
        return len(self._counts)

    def update(self, outputs: Outputs, labels: Labels) -> None:
        """Add one batch of outputs and `masks`."""
        output = pick_output(outputs, self.options, self.name)
        masks = pick_labels(labels, self.options, "masks", self.name)
        if masks.ndim != 3 or output.ndim not in (3, 4) or len(output) != len(masks):
            raise DataError(
                "metric-shape",
                f"{self.name}: output {output.shape} and masks {masks.shape} must be (n, C, H, W) "
                "or (n, H, W), and (n, H, W)",
            )
        for image, mask in zip(output, masks, strict=True):
            predicted = self._predict(image, mask.shape)
            self._counts.append(self._count(predicted, mask.astype(np.int64)))

    def _predict(self, image: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
        """Return the class index of each pixel, at the size of the labels."""
        if image.ndim == 3:
            scores = image[self.options.class_offset :]
            if scores.shape[1:] != size:
                # scores can be interpolated; class indices in between would be other classes
                scores = resize(scores, size[0], size[1])
            return np.asarray(scores.argmax(0))
        if image.shape != size:
            raise DataError(
                "metric-shape",
                f"{self.name}: class indices of {image.shape} for masks of {size}; they must be of "
                "one size",
            )
        return image.astype(np.int64) - self.options.class_offset

    def _count(self, predicted: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Return correct, labeled and predicted pixels per class, float64 (3, classes)."""
        classes = self.options.classes
        # the first image fixes the number of classes, as counts are stacked
        if not classes and self._counts:
            classes = self._counts[0].shape[1]
        if not classes:
            classes = int(max(predicted.max(), mask.max())) + 1
        scored = (mask >= 0) & (mask < classes)
        if self.options.ignore is not None:
            scored &= mask != self.options.ignore
        mask, predicted = mask[scored], predicted[scored]
        # predictions of no class miss their label, but enlarge no union
        inside = predicted[(predicted >= 0) & (predicted < classes)]
        tally = [np.bincount(v, minlength=classes) for v in (mask[predicted == mask], mask, inside)]
        return np.asarray(tally, np.float64)

    def estimate(
        self, weights: np.ndarray | None = None, classes: Sequence[int] | None = None
    ) -> MetricEstimate:
        """Return the metric over the chosen classes with image weights; both are in its details."""
        counts = np.stack(self._counts)
        totals = counts.sum(0) if weights is None else np.tensordot(weights, counts, 1)
        right, labeled, predicted = totals
        chosen = np.arange(len(right))
        if classes is not None:
            # a class beyond those that were seen has no column
            chosen = np.asarray([c for c in classes if c < len(right)], np.int64)
        union = labeled + predicted - right
        # a class that is neither labeled nor predicted has no ratio
        iou = {int(c): float(right[c] / union[c]) for c in chosen if union[c]}
        recall = {int(c): float(right[c] / labeled[c]) for c in chosen if labeled[c]}
        total = labeled[chosen].sum()
        figures = {
            "miou": float(np.mean(list(iou.values()))) if iou else math.nan,
            "pixel_acc": float(right[chosen].sum() / total) if total else math.nan,
        }
        per_class = iou if self.name == "miou" else recall
        return MetricEstimate(
            figures[self.name], per_class, {c: float(labeled[c]) for c in per_class}, figures
        )


def resize(scores: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize (C, h, w) bilinearly to (C, height, width) float32.

    Pixel centers are at half, as in ONNX Resize by default and in torch without align_corners.
    """
    rows, columns = _weights(scores.shape[1], height), _weights(scores.shape[2], width)
    return np.asarray(rows @ scores.astype(np.float32) @ columns.T)


def _weights(size: int, target: int) -> np.ndarray:
    """Return the weight of each source position in each target position, (target, size)."""
    # beyond the outer pixel centers the border is repeated
    at = np.clip((np.arange(target) + 0.5) * size / target - 0.5, 0, size - 1)
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, size - 1)
    matrix = np.zeros((target, size), np.float32)
    # at the border both positions are one cell, which must have the sum of the weights
    np.add.at(matrix, (np.arange(target), low), 1 - (at - low))
    np.add.at(matrix, (np.arange(target), high), at - low)
    return matrix


def miou(options: MetricOptions) -> Segmentation:
    """Return mean intersection over union."""
    return Segmentation("miou", options)


def pixel_acc(options: MetricOptions) -> Segmentation:
    """Return pixel accuracy."""
    return Segmentation("pixel_acc", options)
