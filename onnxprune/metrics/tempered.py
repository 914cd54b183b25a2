"""Divergence of class probabilities at a temperature at which the original is not saturated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# the mean maximum probability is at most this: above it the divergence of confident models is
# about 0 whatever was cut
MEAN_MAXIMUM = 0.9
# steps of sqrt(2) up to 1024; sums are kept for all of them, so that one pass over data is enough
TEMPERATURES = 2.0 ** (np.arange(21) / 2)
POSITIONS = 1024  # evenly spaced positions compared per sample of a dense output; below 2048
TINY = 1e-12  # least probability, for outputs that are probabilities
SUM_TOLERANCE = 1e-3  # float16 softmax


@dataclass(frozen=True)
class Divergence:
    """Divergence of two models' class probabilities.

    Attributes
    ----------
    kl
        KL(softmax(a / T) || softmax(b / T)) in nats, mean over rows.
    temperature
        T of `kl`.
    max_probability
        Largest probability of the original at temperature 1, mean over rows.
    """

    kl: float
    temperature: float
    max_probability: float


class Tempered:
    """Sums for the divergence at every temperature, so that rows need not be kept.

    The result is at the least of TEMPERATURES at which the original's mean maximum probability is
    <= MEAN_MAXIMUM. Outputs that are probabilities (each row of the first batch is non-negative and
    sums to 1) are converted to logits by their logarithm.
    """

    def __init__(self) -> None:
        self._rows = 0
        self._tops = np.zeros(len(TEMPERATURES))
        self._sums = np.zeros(len(TEMPERATURES))
        self._probabilities: bool | None = None

    def update(self, a: np.ndarray, b: np.ndarray) -> None:
        """Add values of the original and the pruned model, float (n, ..., classes)."""
        a, b = (_arrange_rows(v) for v in (a, b))
        if self._probabilities is None:
            self._probabilities = are_probabilities(a)
        if self._probabilities:
            a, b = np.log(np.maximum(a, TINY)), np.log(np.maximum(b, TINY))
        for k, temperature in enumerate(TEMPERATURES):
            p = log_softmax(a / temperature)
            self._tops[k] += np.exp(p.max(1)).sum()
            self._sums[k] += (np.exp(p) * (p - log_softmax(b / temperature))).sum()
        self._rows += len(a)

    def result(self) -> Divergence:
        """Return the divergence; at the last temperature if the original is saturated at all."""
        tops = self._tops / self._rows
        enough = np.flatnonzero(tops <= MEAN_MAXIMUM)
        chosen = int(enough[0]) if len(enough) else len(TEMPERATURES) - 1
        return Divergence(
            max(0.0, float(self._sums[chosen] / self._rows)),
            float(TEMPERATURES[chosen]),
            float(tops[0]),
        )


def _arrange_rows(values: np.ndarray) -> np.ndarray:
    """Return (rows, classes) of (n, ..., classes), with a limited number of positions per sample.

    The choice depends on the shape alone, so that both models are compared at the same positions.
    """
    positions = values.reshape(len(values), -1, values.shape[-1])
    step = max(1, positions.shape[1] // POSITIONS)
    return positions[:, ::step].reshape(-1, values.shape[-1])


def are_probabilities(rows: np.ndarray) -> bool:
    """Return True if each row is non-negative and sums to 1."""
    return bool((rows >= 0).all() and np.allclose(rows.sum(1), 1, atol=SUM_TOLERANCE))


def log_softmax(rows: np.ndarray) -> np.ndarray:
    """Return the logarithm of the softmax along the last axis."""
    shifted = rows - rows.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))
