"""Top-1 and top-5 accuracy."""

from __future__ import annotations

import numpy as np

from onnxprune.errors import DataError, plural
from onnxprune.metrics.base import (
    Labels,
    MeanMetric,
    MetricOptions,
    Outputs,
    pick_labels,
    pick_output,
)


class TopK(MeanMetric):
    """Share of samples whose label is among the k largest outputs.

    Outputs are (n, classes), trailing axes of length 1 allowed; labels are int (n,). Of equal
    outputs the lower index is ranked first. An output that is NaN is never correct.
    """

    def __init__(self, k: int, options: MetricOptions) -> None:
        super().__init__(options)
        self.k = k
        self.name = f"top{k}"

    def update(self, outputs: Outputs, labels: Labels) -> None:
        """Add one batch of outputs and `labels`."""
        scores = rows(pick_output(outputs, self.options, self.name), self.name)
        # labels do not count outputs before class 0, such as a background
        scores = scores[:, self.options.class_offset :]
        truth = pick_labels(labels, self.options, "labels", self.name).astype(np.int64).reshape(-1)
        if len(truth) != len(scores):
            raise DataError(
                "data-labels",
                f"{self.name}: a batch has {plural(len(scores), 'output')} and "
                f"{plural(len(truth), 'label')}; they must be equally many",
            )
        # an empty batch has no minimum
        if len(truth) and not 0 <= truth.min() <= truth.max() < scores.shape[1]:
            raise DataError(
                "data-labels",
                f"{self.name}: labels {truth.min()} to {truth.max()} do not fit "
                f"{plural(scores.shape[1], 'class', 'classes')}, which are numbered from 0: "
                "correct the labels (--class-offset counts outputs before class 0)",
            )
        self.add(rank(scores, truth) < self.k, truth)


def rank(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return how many classes rank before the true one, int (n,); all if its output is NaN."""
    own = np.take_along_axis(scores, truth[:, None], 1)
    before = np.arange(scores.shape[1]) < truth[:, None]
    # NaN ranks before every label, so that a broken output never counts as correct
    above = (scores > own) | np.isnan(scores) | ((scores == own) & before)
    return np.asarray(np.where(np.isnan(own[:, 0]), scores.shape[1], above.sum(1)))


def rows(output: np.ndarray, metric: str) -> np.ndarray:
    """Return (n, classes) from (n, classes, 1, ...); DataError for other shapes."""
    if output.ndim < 2 or output.size != output.shape[0] * output.shape[1]:
        raise DataError(
            "metric-shape",
            f"{metric} needs one row of class scores per sample; the output has shape "
            f"{'x'.join(map(str, output.shape))}",
        )
    return output.reshape(output.shape[:2])


def top1(options: MetricOptions) -> TopK:
    """Return top-1 accuracy."""
    return TopK(1, options)


def top5(options: MetricOptions) -> TopK:
    """Return top-5 accuracy."""
    return TopK(5, options)
