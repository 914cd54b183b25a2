"""Divergence of heads: the share of what a head says that a change of the network loses.

Errors are divided by the same measure of the original from its own mean, so that heads of any kind
and scale can be added: 0 for no change, 1 where a constant would do as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from onnxprune.ir.heads import BINARY, CLASSES, SCORES, VALUES, Head, has_one_row
from onnxprune.metrics.scale import ScaleStatistics
from onnxprune.metrics.tempered import Tempered, log_softmax

# weight of a position where nothing is detected, beside probabilities of detections
BACKGROUND = 0.01
POSITIONS = 4096  # per sample, of heads whose positions all count alike
TINY = 1e-12  # least probability, and least variation that is divided by
CONSTANT = 1e-6  # of the power; a variation below it is rounding error


@dataclass(frozen=True)
class HeadFigures:
    """Figures of one head.

    Attributes
    ----------
    output
        Output that it reaches.
    kind
        How it is compared; see `HeadDivergence`.
    relative_error
        Square root of the divergence.
    relative_error_error
        Its standard error over samples.
    weights
        Tensor whose probabilities weight the positions; "" if all count alike.
    """

    output: str
    kind: str
    relative_error: float
    relative_error_error: float | None = None
    weights: str = ""


class HeadDivergence:
    """Divergence of one head, summed batch by batch.

    Parameters
    ----------
    head
        What to compare, and how. Kind `SCORES`: Kullback-Leibler divergence at a temperature at
        which the original is not saturated. `CLASSES` and `BINARY`: that of the distributions at
        each position, as a share of their information: the divergence of the original from its
        mean distribution. `VALUES`: squared error, as a share of the variance over samples; of
        weighted positions, per channel.
    variation
        That of the original on all samples, if it is known; 0 = computed from them.

    Attributes
    ----------
    errors
        Divergence of each sample of each batch, not yet divided.
    """

    def __init__(self, head: Head, variation: float = 0.0) -> None:
        self.head, self._known = head, variation
        self.errors: list[np.ndarray] = []
        self._tempered: Tempered | None = None
        plain = head.kind in (VALUES, SCORES) and head.score is None
        self._scale = ScaleStatistics() if plain else None
        # sums of weights and of entropies; per channel, of weighted values and their squares
        self._weight = self._own = 0.0
        self._mean: np.ndarray | float = 0.0
        self._power: np.ndarray | float = 0.0

    def update(
        self, expected: np.ndarray, actual: np.ndarray, weights: np.ndarray | None = None
    ) -> None:
        """Add a batch of the original's and the changed network's values.

        Parameters
        ----------
        weights
            (samples, positions) of `position_weights`; None = all alike.
        """
        if not self.errors and are_scores(self.head, expected):
            self._tempered = self._tempered or Tempered()
            self._tempered.update(*(v.reshape(len(v), -1) for v in (expected, actual)))
            return
        self.errors.append(errors_of(self.head, expected, actual, weights))
        if not self._known:
            self._describe(expected, weights)

    def describe(self, values: Mapping[str, np.ndarray]) -> None:
        """Add a batch of the original alone, for `variation`."""
        self._describe(values[self.head.tensor], position_weights(self.head, values))

    def _describe(self, values: np.ndarray, weights: np.ndarray | None) -> None:
        """Add weights and variation of a batch of the original."""
        a = _arrange(values, self.head, weights is None)
        w = np.ones(a.shape[:2]) if weights is None else weights
        self._weight += float(w.sum())
        self._add_variation(np.where(np.isfinite(a), a, 0.0), w)

    def _add_variation(self, a: np.ndarray, w: np.ndarray) -> None:
        """Add what the variation of the original is computed from."""
        kind = self.head.kind
        if self._scale is not None:
            self._scale.add(a)
            return
        if kind == VALUES:
            self._mean = self._mean + np.einsum("np,npc->c", w, a)
            self._power = self._power + np.einsum("np,npc->c", w, np.square(a))
            return
        if kind == CLASSES:
            logs = _to_logits(self.head, a)
            p = np.exp(log_softmax(logs))
            entropy = -(p * log_softmax(logs)).sum(2)
        else:
            logits = _to_logits(self.head, a)
            p = _sigmoid(logits)
            entropy = (_softplus(logits) - p * logits).sum(2)
        self._mean = self._mean + np.einsum("np,npc->c", w, p)
        self._own += float((w * entropy).sum())

    @property
    def variation(self) -> float:
        """Divergence of the original from its mean, summed as the error is."""
        if self._known:
            return self._known
        total = max(self._weight, TINY)
        mean = np.asarray(self._mean) / total
        if self._scale is not None:
            return self._scale.total
        if self.head.kind == VALUES:
            power = np.asarray(self._power)
            centered = power - total * np.square(mean)
            centered = np.where(centered > CONSTANT * power, centered, 0.0)
            return float(centered.sum()) or float(power.sum()) or TINY
        if self.head.kind == CLASSES:
            entropy = -float((mean * np.log(np.maximum(mean, TINY))).sum())
        else:
            p = np.clip(mean, TINY, 1 - TINY)
            entropy = -float((p * np.log(p) + (1 - p) * np.log1p(-p)).sum())
        information = total * entropy - self._own
        # heads that always say the same have an error, but no information
        return information if information > CONSTANT * total else total

    def result(self) -> float:
        """Return the divergence."""
        if self._tempered is not None:
            return self._tempered.result().kl
        return float(sum(float(e.sum()) for e in self.errors)) / self.variation

    def figures(self) -> HeadFigures:
        """Return the figures of the head."""
        value = self.result()
        relative = math.sqrt(value) if value >= 0 else math.nan
        score = self.head.score
        return HeadFigures(
            self.head.output,
            self.head.kind,
            relative,
            self._estimate_error(relative),
            score.tensor if score else "",
        )

    def _estimate_error(self, relative: float) -> float | None:
        """Return the standard error of the relative error, None for fewer than two samples."""
        errors = np.concatenate(self.errors) if self.errors else np.zeros(0)
        if len(errors) < 2 or not np.isfinite(errors).all() or not relative:
            return None
        error = math.sqrt(len(errors)) * float(np.std(errors, ddof=1)) / self.variation
        # by the derivative of the square root
        return error / (2 * relative)


def errors_of(
    head: Head, expected: np.ndarray, actual: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """Return the error of each sample, (samples,), not divided by the variation."""
    a, b = (_arrange(v, head, weights is None) for v in (expected, actual))
    error = _measure(head, a, b)
    return np.asarray((error if weights is None else weights * error).sum(1))


def position_weights(head: Head, values: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """Return the weight of each position of a head in the original, (samples, positions).

    It is the largest probability of the head that says what is detected there; None without one.
    """
    if head.score is None:
        return None
    score = head.score
    array = _arrange(values[score.tensor], score, False)
    return np.asarray(BACKGROUND + _to_probabilities(score, array).max(2))


def are_scores(head: Head, values: np.ndarray) -> bool:
    """Return True for one row of class scores per sample; the values show what shapes may not."""
    plain = head.kind == SCORES or (head.kind == VALUES and head.tensor == head.output)
    return plain and has_one_row(values.shape)


def _measure(head: Head, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the error at each position, (samples, positions); a and b with channels last."""
    if head.kind in (VALUES, SCORES):
        return np.asarray(np.square(a - b).sum(2))
    x, y = _to_logits(head, a), _to_logits(head, b)
    if head.kind == CLASSES:
        p = log_softmax(x)
        return np.asarray((np.exp(p) * (p - log_softmax(y))).sum(2))
    # log of the other network's probabilities by softplus, which loses no digits at 0 and 1
    return np.asarray((_softplus(y) - _softplus(x) - _sigmoid(x) * (y - x)).sum(2))


def _arrange(values: np.ndarray, head: Head, some: bool) -> np.ndarray:
    """Return float64 (samples, positions, channels).

    Parameters
    ----------
    some
        Take evenly spaced positions where there are many.
    """
    values = np.asarray(values)
    if values.ndim < 2:
        return values.reshape(len(np.atleast_1d(values)), 1, 1).astype(np.float64)
    axis = head.axis % values.ndim or 1
    moved = np.moveaxis(values, axis, -1)
    flat = moved.reshape(len(moved), -1, moved.shape[-1])
    if some and head.kind in (BINARY, CLASSES):
        flat = flat[:, :: max(1, flat.shape[1] // POSITIONS)]
    return flat.astype(np.float64)


def _to_logits(head: Head, a: np.ndarray) -> np.ndarray:
    """Return logits of a head's values."""
    if not head.probabilities:
        return a
    if head.kind == CLASSES:
        return np.asarray(np.log(np.maximum(a, TINY)))
    # float32 has no probability between 1 - 6e-8 and 1
    p = np.clip(a, 1e-7, 1 - 1e-7)
    return np.asarray(np.log(p) - np.log1p(-p))


def _to_probabilities(head: Head, a: np.ndarray) -> np.ndarray:
    """Return probabilities of a head's values."""
    return a if head.probabilities else _sigmoid(a)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    """Return 1 / (1 + exp(-x)) without overflow."""
    return np.asarray(0.5 + 0.5 * np.tanh(0.5 * x))


def _softplus(x: np.ndarray) -> np.ndarray:
    """Return log(1 + exp(x)) without overflow."""
    return np.asarray(np.logaddexp(0.0, x))
