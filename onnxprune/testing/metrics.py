"""Contract of metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from onnxprune.errors import DataError
from onnxprune.metrics.base import Labels, Metric, Outputs
from onnxprune.testing.contract import ContractError

SAME = 1e-9  # float64 sums in another order


def check_metric(make: Callable[[], Metric], batches: Sequence[tuple[Outputs, Labels]]) -> None:
    """Check the contract of a metric.

    An empty one has no result, equal samples give equal results, the value is the mean of the
    outcomes, and weights tell how often a sample counts.

    Parameters
    ----------
    make
        Returns a new, empty metric.
    batches
        At least two batches of (outputs, labels) that the metric accepts, of one sample each.

    Raises
    ------
    ContractError
        The contract is violated.
    """
    empty = make()
    _require(
        isinstance(empty, Metric),
        "one of name, higher_is_better, draws, n, update, estimate, outcomes, result is missing",
    )
    _require(empty.n == 0, f"a new metric has n = {empty.n}")
    try:
        empty.result()
    except DataError:
        pass
    else:
        _require(False, "an empty metric returns a result; it must raise DataError")
    metric, again = _fill(make, batches), _fill(make, batches)
    result = metric.result()
    _require(
        metric.n == result.n == len(batches),
        f"{metric.n} samples were counted, {len(batches)} were given",
    )
    _require(
        again.result() == result and metric.result() == result,
        "equal samples give different results",
    )
    outcomes = metric.outcomes()
    if outcomes is not None:
        _require(
            outcomes.shape == (metric.n,),
            f"outcomes have shape {outcomes.shape} for {metric.n} samples",
        )
        _require(
            _is_close(float(outcomes.mean()), result.value),
            f"the value is {result.value}, the mean of the outcomes {outcomes.mean()}",
        )
    # the bootstrap for standard errors draws weights
    _check_weights(metric, _fill(make, batches[:-1]))


def _fill(make: Callable[[], Metric], batches: Sequence[tuple[Outputs, Labels]]) -> Metric:
    """Return a metric of the batches."""
    metric = make()
    for outputs, labels in batches:
        metric.update(outputs, labels)
    return metric


def _check_weights(metric: Metric, without_last: Metric) -> None:
    """Check estimates with weights of one and zero."""
    plain, ones = metric.estimate(), metric.estimate(np.ones(metric.n))
    _require(
        plain is not None and _is_close(plain.value, metric.result().value),
        "the estimate without weights is not the result",
    )
    if ones is None or plain is None:
        return
    _require(_is_close(ones.value, plain.value), "weights of one change the value")
    weights = (np.arange(metric.n) < metric.n - 1).astype(np.float64)
    weighted, partial = metric.estimate(weights), without_last.estimate()
    _require(
        weighted is not None and partial is not None and _is_close(weighted.value, partial.value),
        "a weight of zero is not the same as omitting the sample",
    )


def _is_close(a: float, b: float) -> bool:
    """Return True if two values differ by rounding only."""
    return bool(np.isclose(a, b, rtol=SAME, atol=SAME, equal_nan=True))


def _require(holds: bool, sentence: str) -> None:
    """Raise ContractError unless a condition holds."""
    if not holds:
        raise ContractError("metric-contract", f"metric contract: {sentence}")
