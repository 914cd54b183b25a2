"""Evaluation of a model on labeled data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.data.labeled import LabeledData
from onnxprune.errors import DataError
from onnxprune.ir.io import Model
from onnxprune.ir.runtime import Session
from onnxprune.metrics import find_metric
from onnxprune.metrics.base import NO_OPTIONS, Metric, MetricOptions, Score
from onnxprune.parallel import ordered_map

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
    """Return a metric of a model; see `find_metric` for names and errors.

    Memory does not grow with the outputs.
    """
    measured = find_metric(metric, options)
    measure(model, data, [measured], threads=threads, batch_size=batch_size)
    return measured.result()


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
        The last batch is padded and an output has no batch axis.
    """
    session = Session(model, threads=threads)
    batches = data.labeled_batches(batch_size)
    results = ordered_map(lambda batch: (batch, session.run(batch.feeds)), batches, threads)
    for batch, outputs in results:
        rows = batch.count
        # inputs that are scalars have no rows
        if any(np.ndim(f) for f in batch.feeds.values()):
            rows = len(next(iter(batch.feeds.values())))
        # a model with a fixed batch gets its last batch padded
        if rows != batch.count:
            outputs = {n: _drop_padding(n, v, rows, batch.count) for n, v in outputs.items()}
        for metric in metrics:
            metric.update(outputs, batch.labels)


def _drop_padding(name: str, value: np.ndarray, rows: int, count: int) -> np.ndarray:
    """Return the first `count` rows of an output of a padded batch of `rows`."""
    if not np.ndim(value) or len(value) != rows:
        raise DataError(
            "data-batch",
            f"output {name!r} of shape {np.shape(value)} has no batch axis of {rows}; use a number "
            "of samples that is a multiple of the model's batch",
        )
    return value[:count]
