"""What every metric must keep; a plug-in's tests call `check_metric`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from onnxprune.errors import DataError
from onnxprune.metrics.base import Labels, Metric, Outputs

SAME = 1e-9  # float64 sums in another order


def check_metric(make: Callable[[], Metric], batches: Sequence[tuple[Outputs, Labels]]) -> None:
    """Raise AssertionError, with a sentence, where a metric breaks the protocol.

    Parameters
    ----------
    make
        Gives a new, empty metric.
    batches
        At least two batches of (outputs, labels) that the metric takes, of one sample each.
    """
    empty = make()
    _say(
        isinstance(empty, Metric),
        "it has not all of name, higher_is_better, draws, n, update, estimate, outcomes, result",
    )
    _say(empty.n == 0, "a new metric has seen samples")
    try:
        empty.result()
    except DataError:
        pass
    else:
        _say(False, "an empty metric gives a result instead of a DataError")
    metric, again = make(), make()
    for one in (metric, again):
        for outputs, labels in batches:
            one.update(outputs, labels)
    found = metric.result()
    _say(
        metric.n == found.n == len(batches),
        f"{metric.n} samples were counted, {len(batches)} were given",
    )
    _say(
        again.result() == found and metric.result() == found, "the same samples give another result"
    )
    outcomes = metric.outcomes()
    if outcomes is not None:
        _say(outcomes.shape == (metric.n,), f"outcomes are {outcomes.shape} for {metric.n} samples")
        _say(
            _same(float(outcomes.mean()), found.value), "the value is not the mean of the outcomes"
        )
    _check_weights(make, metric, batches)


def _check_weights(
    make: Callable[[], Metric], metric: Metric, batches: Sequence[tuple[Outputs, Labels]]
) -> None:
    """Weights say how often a sample counts."""
    plain, ones = metric.estimate(), metric.estimate(np.ones(metric.n))
    _say(
        plain is not None and _same(plain.value, metric.result().value),
        "the estimate without weights is not the result",
    )
    if ones is None or plain is None:
        return
    _say(_same(ones.value, plain.value), "weights of one change the value")
    part = make()
    for outputs, labels in batches[:-1]:
        part.update(outputs, labels)
    weighted, left = (
        metric.estimate((np.arange(metric.n) < metric.n - 1).astype(np.float64)),
        part.estimate(),
    )
    _say(
        weighted is not None and left is not None and _same(weighted.value, left.value),
        "a weight of zero is not the same as leaving the sample out",
    )


def _same(a: float, b: float) -> bool:
    return bool(np.isclose(a, b, rtol=SAME, atol=SAME, equal_nan=True))


def _say(holds: bool, sentence: str) -> None:
    if not holds:
        raise AssertionError(f"metric contract: {sentence}")
