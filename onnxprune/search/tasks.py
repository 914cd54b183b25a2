"""What a network is for, as losses by name: one for each output head without labels, or the user's own.

Without labels a head with classes has the cross-entropy against the dense model's own probabilities, at a temperature where that model is not sure
(METHODS.md section 1, step 4): it is the dense model's entropy where nothing was cut. Any other head has 1 + its squared error over the spread of the
dense model's values. Both are positive at the start, so that a loss relative to its start says something.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from onnxprune.errors import UsageError
from onnxprune.metrics.base import find_function
from onnxprune.metrics.tempered import (
    MEAN_MAXIMUM,
    TEMPERATURES,
    TINY,
    are_probabilities,
    log_softmax,
)
from onnxprune.statistics.scale import Spread

Outputs = Mapping[str, np.ndarray]
UserLosses = Callable[[Outputs, np.ndarray], Mapping[str, Any]]


class Losses(Protocol):
    """Losses of one batch after the other."""

    def batch(self, number: int, outputs: Outputs) -> Mapping[str, float]:
        """The share of batch `number` in each task's loss: the sum over all batches is the loss."""

    def least(self, number: int) -> Mapping[str, float]:
        """The smallest share that batch `number` can have, by task; empty where that is not known."""


def summed(losses: Losses, outputs: Sequence[Outputs]) -> dict[str, float]:
    """Losses of a run over all batches."""
    sums: dict[str, float] = {}
    for number, batch in enumerate(outputs):
        for name, share in losses.batch(number, batch).items():
            sums[name] = sums.get(name, 0.0) + share
    return sums


class HeadLosses:
    """A label-free loss for each float output; UsageError where there is none."""

    def __init__(self, expected: Sequence[Outputs]) -> None:
        self.expected = expected
        self.heads = [n for n, v in expected[0].items() if v.dtype.kind == "f"]
        if not self.heads:
            raise UsageError(
                "tasks-none",
                "the model has no float output to measure; give --losses module:function",
            )
        self.temperature: dict[str, float] = {}
        self.scale: dict[str, float] = {}
        for name in self.heads:
            values, spread = [np.asarray(e[name], np.float64) for e in expected], Spread()
            if values[0].ndim == 2 and values[0].shape[1] > 1:
                self.temperature[name] = _temperature(_logits(np.concatenate(values)))
                continue
            for batch in values:
                spread.add(batch)
            self.scale[name] = spread.total
        self.rows = {n: sum(len(np.atleast_1d(e[n])) for e in expected) for n in self.heads}

    def batch(self, number: int, outputs: Outputs) -> Mapping[str, float]:
        """As of Losses."""
        found = {}
        for name in self.heads:
            a, b = (
                np.atleast_1d(np.asarray(o[name], np.float64))
                for o in (self.expected[number], outputs)
            )
            if a.shape != b.shape:
                raise UsageError(
                    "tasks-shape",
                    f"output {name!r} changes its shape from {a.shape} to {b.shape}; give --losses module:function",
                )
            if name in self.temperature:
                p, q = (log_softmax(_logits(v) / self.temperature[name]) for v in (a, b))
                found[name] = float(-(np.exp(p) * q).sum()) / self.rows[name]
            else:
                found[name] = (
                    len(a) / self.rows[name] + float(np.square(b - a).sum()) / self.scale[name]
                )
        return found

    def least(self, number: int) -> Mapping[str, float]:
        """The dense model's own share: entropy is the least cross-entropy, and no squared error is below 0."""
        return self.batch(number, self.expected[number])


class OwnLosses:
    """Losses by `module:function`: (outputs, indices of the samples in their source) -> task -> loss of each sample (n,), or their mean."""

    def __init__(self, where: str, samples: Sequence[np.ndarray]) -> None:
        self.where, self.samples = where, samples
        self.function: UserLosses = find_function(where, "losses")
        self.total = sum(map(len, samples))

    def batch(self, number: int, outputs: Outputs) -> Mapping[str, float]:
        """As of Losses."""
        index = self.samples[number]
        try:
            found = dict(self.function(outputs, index))
            means = {str(n): float(np.mean(np.asarray(v, np.float64))) for n, v in found.items()}
        except Exception as problem:
            raise UsageError(
                "losses-failed",
                f"losses {self.where!r} failed: {type(problem).__name__}: {problem}",
            ) from problem
        if not means or not all(np.isfinite(v) for v in means.values()):
            raise UsageError(
                "losses-value",
                f"losses {self.where!r} must give finite numbers by task name, not {found!r}",
            )
        return {n: v * len(index) / self.total for n, v in means.items()}

    def least(self, number: int) -> Mapping[str, float]:
        """Not known."""
        return {}


def _logits(values: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(values, TINY)) if are_probabilities(values) else values


def _temperature(logits: np.ndarray) -> float:
    """The least of TEMPERATURES at which the mean maximum probability is at most 0.9."""
    sure = (
        t for t in TEMPERATURES if np.exp(log_softmax(logits / t).max(1)).mean() <= MEAN_MAXIMUM
    )
    return float(next(sure, TEMPERATURES[-1]))
