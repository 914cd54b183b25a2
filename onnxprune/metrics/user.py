"""Metrics of the user, named by `module:function` or `FILE.py:function`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from onnxprune.errors import DataError, UsageError
from onnxprune.metrics.base import Labels, MeanMetric, Metric, MetricOptions, Outputs


class FunctionMetric(MeanMetric):
    """Mean of the values of `function(outputs, labels)`.

    The function returns one value per sample, float (batch,), or one number, which counts for every
    sample of its batch.
    """

    def __init__(
        self, name: str, function: Callable[[Outputs, Labels], Any], options: MetricOptions
    ) -> None:
        super().__init__(options)
        self.name = name
        # a function can have its direction as an attribute only
        self.higher_is_better = bool(getattr(function, "higher_is_better", True))
        self._function = function

    def update(self, outputs: Outputs, labels: Labels) -> None:
        """Add the function's values of one batch."""
        size = len(next(iter(outputs.values())))
        try:
            values = np.asarray(self._function(outputs, labels), np.float64)
        # the user's code may raise anything
        except Exception as problem:
            raise UsageError(
                "metric-failed", f"metric {self.name!r} failed: {type(problem).__name__}: {problem}"
            ) from problem
        if values.shape not in ((), (size,)):
            raise DataError(
                "metric-shape",
                f"metric {self.name!r} returned shape {values.shape} for a batch of {size}; return "
                f"({size},) or one number",
            )
        self.add(np.broadcast_to(values, (size,)))


def user_metric(name: str, target: Any, options: MetricOptions) -> Metric:
    """Return a metric from the object that the user named.

    Parameters
    ----------
    target
        A Metric class, a function of one argument that returns a Metric, or a function of outputs
        and labels.

    Raises
    ------
    UsageError
        The object is none of these.
    """
    if not callable(target):
        raise UsageError(
            "metric-kind", f"metric {name!r} is {type(target).__name__}, not a function or class"
        )
    # a class is a factory, however many parameters it has
    if not isinstance(target, type) and len(inspect.signature(target).parameters) == 2:
        return FunctionMetric(name, target, options)
    metric = target(options)
    if not isinstance(metric, Metric):
        raise UsageError(
            "metric-kind",
            f"metric {name!r} is neither a function (outputs, labels) -> values nor a Metric "
            "(name, higher_is_better, draws, n, update, estimate, outcomes, result)",
        )
    return metric
