"""Running a model over labeled data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.data.labeled import LabeledData
from onnxprune.errors import DataError
from onnxprune.ir.io import Model
from onnxprune.ir.runtime import Session
from onnxprune.metrics import find_metric
from onnxprune.metrics.base import NO_OPTIONS, Metric, MetricOptions, Score

BATCH_SIZE = 32


def evaluate(
    model: Model,
    data: LabeledData,
    metric: str,
    options: MetricOptions = NO_OPTIONS,
    *,
    threads: int = 1,
    batch_size: int = BATCH_SIZE,
) -> Score:
    """The metric of a model; see `find_metric` for names and errors. Memory does not grow with the outputs."""
    found = find_metric(metric, options)
    measure(model, data, [found], threads=threads, batch_size=batch_size)
    return found.result()


def measure(
    model: Model,
    data: LabeledData,
    metrics: Sequence[Metric],
    *,
    threads: int = 1,
    batch_size: int = BATCH_SIZE,
) -> None:
    """Run the model once over the data and update all metrics.

    Raises
    ------
    DataError
        An output has no batch axis.
    """
    session = Session(model, threads=threads)
    for batch in data.labeled_batches(batch_size):
        outputs = session.run(batch.feeds)
        filled = (
            len(next(iter(batch.feeds.values())))
            if any(np.ndim(f) for f in batch.feeds.values())
            else batch.count
        )
        if filled != batch.count:
            outputs = {
                name: _cut(name, value, filled, batch.count) for name, value in outputs.items()
            }
        for metric in metrics:
            metric.update(outputs, batch.labels)


def _cut(name: str, value: np.ndarray, filled: int, count: int) -> np.ndarray:
    """The rows of the real samples of a batch that was filled up."""
    if not np.ndim(value) or len(value) != filled:
        raise DataError(
            "data-batch",
            f"output {name!r} of shape {np.shape(value)} has no batch axis of {filled}; use a number of samples that fills the model's batch",
        )
    return value[:count]
