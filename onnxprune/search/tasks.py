"""Losses by task: label-free, one per head, or functions of the user.

A head with class scores has the cross-entropy against the dense model's own probabilities, at a
temperature at which that model is not saturated; uncut, it equals the dense model's entropy. Any
other head has 1 + its divergence (see `HeadDivergence`). Both are positive for the uncut model, so
that a relative loss is defined.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from onnxprune.errors import UsageError
from onnxprune.ir.heads import Head
from onnxprune.metrics.base import find_function
from onnxprune.metrics.head_divergence import (
    HeadDivergence,
    are_scores,
    errors_of,
    position_weights,
)
from onnxprune.metrics.tempered import (
    MEAN_MAXIMUM,
    TEMPERATURES,
    TINY,
    are_probabilities,
    log_softmax,
)

Outputs = Mapping[str, np.ndarray]
UserLosses = Callable[[Outputs, np.ndarray], Mapping[str, Any]]


class Losses(Protocol):
    """Losses that are sums over batches."""

    def batch(self, number: int, outputs: Outputs) -> Mapping[str, float]:
        """Return the share of batch `number` in the loss of each task.

        The sum over all batches is the loss.
        """

    def least(self, number: int) -> Mapping[str, float]:
        """Return a lower bound of the share of batch `number` per task; empty if unknown."""


def summed(losses: Losses, outputs: Sequence[Outputs]) -> dict[str, float]:
    """Return the losses by task of a run over all batches."""
    sums: dict[str, float] = {}
    for number, batch in enumerate(outputs):
        for name, share in losses.batch(number, batch).items():
            sums[name] = sums.get(name, 0.0) + share
    return sums


class HeadLosses:
    """A label-free loss for each head.

    Parameters
    ----------
    expected
        Values of the dense model per batch: those of all heads and of what weights their positions.
    heads
        What is compared, and how; None = each float tensor of `expected` on its own.

    Attributes
    ----------
    heads
        Heads by tensor.

    Raises
    ------
    UsageError
        The model has no float output.
    """

    def __init__(self, expected: Sequence[Outputs], heads: Sequence[Head] | None = None) -> None:
        self.expected = expected
        if heads is None:
            heads = [Head(name, output=name) for name in expected[0]]
        # integer outputs, such as indices, have no distance
        self.heads = {h.tensor: h for h in heads if expected[0][h.tensor].dtype.kind == "f"}
        if not self.heads:
            raise UsageError(
                "tasks-none",
                "the model has no float output to measure; give --losses module:function",
            )
        self.temperature: dict[str, float] = {}
        self.variation: dict[str, float] = {}
        self.rows: dict[str, int] = {}
        for name, head in self.heads.items():
            values = [np.asarray(e[name], np.float64) for e in expected]
            # a scalar output counts as one row
            self.rows[name] = sum(len(np.atleast_1d(v)) for v in values)
            # one row of class scores per sample: compared as probabilities
            if are_scores(head, values[0]):
                self.temperature[name] = _choose_temperature(
                    _convert_to_logits(_arrange(np.concatenate(values)))
                )
                continue
            divergence = HeadDivergence(head)
            for batch in expected:
                divergence.describe(batch)
            self.variation[name] = divergence.variation

    def batch(self, number: int, outputs: Outputs) -> Mapping[str, float]:
        """Return the share of batch `number` in the loss of each head."""
        shares = {}
        reference = self.expected[number]
        for name, head in self.heads.items():
            a = np.atleast_1d(np.asarray(reference[name], np.float64))
            b = np.atleast_1d(np.asarray(outputs[name], np.float64))
            if a.shape != b.shape:
                raise UsageError(
                    "tasks-shape",
                    f"output {name!r} changes its shape from {a.shape} to {b.shape}; give --losses "
                    "module:function",
                )
            if name in self.temperature:
                p, q = (self._log(name, v) for v in (a, b))
                shares[name] = float(-(np.exp(p) * q).sum()) / self.rows[name]
            else:
                error = errors_of(head, a, b, position_weights(head, reference))
                # the constant 1 is spread over the samples
                shares[name] = len(a) / self.rows[name] + float(error.sum()) / self.variation[name]
        return shares

    def _log(self, name: str, values: np.ndarray) -> np.ndarray:
        """Return the logarithm of the probabilities of a head's classes."""
        return log_softmax(_convert_to_logits(_arrange(values)) / self.temperature[name])

    def least(self, number: int) -> Mapping[str, float]:
        """Return the dense model's own share.

        Its entropy is the least cross-entropy, and an error is not below 0.
        """
        return self.batch(number, self.expected[number])


class OwnLosses:
    """Losses by a function of the user.

    Parameters
    ----------
    where
        `module:function` or `FILE.py:function`: (outputs, indices of the samples in their source)
        -> task -> loss per sample, float (n,), or their mean.
    samples
        Indices of the samples of each batch.
    """

    def __init__(self, where: str, samples: Sequence[np.ndarray]) -> None:
        self.where, self.samples = where, samples
        self.function: UserLosses = find_function(where, "losses")
        self.total = sum(map(len, samples))

    def batch(self, number: int, outputs: Outputs) -> Mapping[str, float]:
        """Return the share of batch `number` in the loss of each task."""
        index = self.samples[number]
        try:
            values = dict(self.function(outputs, index))
            means = {str(n): float(np.mean(np.asarray(v, np.float64))) for n, v in values.items()}
        # the user's code may raise anything
        except Exception as problem:
            raise UsageError(
                "losses-failed",
                f"losses {self.where!r} failed: {type(problem).__name__}: {problem}",
            ) from problem
        if not means or not all(np.isfinite(v) for v in means.values()):
            raise UsageError(
                "losses-value",
                f"losses {self.where!r} returned {values!r}; return finite numbers by task name",
            )
        # batches can differ in size, so their means are weighted
        return {n: v * len(index) / self.total for n, v in means.items()}

    def least(self, number: int) -> Mapping[str, float]:
        """Return no bounds: those of a user's function are unknown."""
        return {}


def _arrange(values: np.ndarray) -> np.ndarray:
    """Return class scores as (samples, classes)."""
    return values.reshape(len(values), -1)


def _convert_to_logits(values: np.ndarray) -> np.ndarray:
    """Return logits; of probabilities their logarithm."""
    return np.log(np.maximum(values, TINY)) if are_probabilities(values) else values


def _choose_temperature(logits: np.ndarray) -> float:
    """Return the least of TEMPERATURES at which the mean maximum probability is <= MEAN_MAXIMUM."""
    for temperature in TEMPERATURES:
        if np.exp(log_softmax(logits / temperature).max(1)).mean() <= MEAN_MAXIMUM:
            return float(temperature)
    return float(TEMPERATURES[-1])
