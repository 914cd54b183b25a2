"""Divergence between two models' class probabilities at a temperature where there is something to compare."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# mean maximum probability at most: above it the divergence of confident models is about 0 whatever was cut
MEAN_MAXIMUM = 0.9
# steps of sqrt(2) up to 1024: the least of them that suffices is used, so that one pass over the data is enough
TEMPERATURES = 2.0 ** (np.arange(21) / 2)
POSITIONS = 1024  # of a dense output, evenly spaced, that are compared in each sample, at most 2047
TINY = 1e-12  # least probability, where outputs are probabilities already
SUM_TOLERANCE = 1e-3  # float16 softmax


@dataclass(frozen=True)
class Divergence:
    """kl: nats, mean over rows, at `temperature`; max_probability: mean over rows of the original's largest, at temperature 1."""

    kl: float
    temperature: float
    max_probability: float


class Tempered:
    """KL(softmax(a/T) || softmax(b/T)), T the least of TEMPERATURES at which the original's mean maximum probability is <= 0.9.

    Sums are kept for every temperature, so rows need not be. Outputs that are probabilities already (each row of the first batch non-negative with
    sum 1) are taken as logits through their logarithm.
    """

    def __init__(self) -> None:
        self._rows = 0
        self._tops = np.zeros(len(TEMPERATURES))
        self._sums = np.zeros(len(TEMPERATURES))
        self._probabilities: bool | None = None

    def update(self, a: np.ndarray, b: np.ndarray) -> None:
        """Original's and pruned model's values, float (n, ..., classes); a row is one position of a sample."""
        a, b = (_rows(v) for v in (a, b))
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
        """The divergence; at the last temperature where none suffices."""
        tops = self._tops / self._rows
        enough = np.flatnonzero(tops <= MEAN_MAXIMUM)
        chosen = int(enough[0]) if len(enough) else len(TEMPERATURES) - 1
        return Divergence(
            max(0.0, float(self._sums[chosen] / self._rows)),
            float(TEMPERATURES[chosen]),
            float(tops[0]),
        )


def _rows(values: np.ndarray) -> np.ndarray:
    """(rows, classes) of (n, ..., classes), at most so many positions a sample; the choice depends on the shape alone."""
    places = values.reshape(len(values), -1, values.shape[-1])
    return places[:, :: max(1, places.shape[1] // POSITIONS)].reshape(-1, values.shape[-1])


def are_probabilities(rows: np.ndarray) -> bool:
    """Whether each row is non-negative with sum 1."""
    return bool((rows >= 0).all() and np.allclose(rows.sum(1), 1, atol=SUM_TOLERANCE))


def log_softmax(rows: np.ndarray) -> np.ndarray:
    """Along the last axis."""
    shifted = rows - rows.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))
