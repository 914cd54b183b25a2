"""Figures of fidelity of one output, summed batch by batch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from onnxprune.errors import UsageError
from onnxprune.metrics.tempered import Tempered

IMAGE_CHANNELS = (1, 3)
# values of an output converted to float64 at a time: 8 MB, of which a few temporaries exist
PIECE_VALUES = 1 << 20
ROUNDING = 1e-9  # variance below this share of the power is rounding error


@dataclass(frozen=True)
class OutputFidelity:
    """Figures of one output, original a against pruned b, over all values of all samples.

    Attributes
    ----------
    relative_error
        ||a - b|| / ||a||.
    nmse
        ||a - b||^2 / ||a - mean of its channel||^2; 1 if b is as good as a constant per channel.
    max_abs
        Largest |a - b|.
    top1_agreement
        Share of rows with the same largest value.
    kl
        Mean over rows of KL(softmax(a / T) || softmax(b / T)) in nats.
    temperature
        T of `kl`.
    max_probability
        Mean over rows of the original's largest probability at temperature 1.
    location_agreement
        Share of positions with the same largest channel.
    relative_error_error, agreement_error
        Standard errors over samples of `relative_error` and of the agreement; 0 if all answers are
        equal, which is no bound on further ones.
    """

    relative_error: float
    nmse: float | None
    max_abs: float
    top1_agreement: float | None = None
    kl: float | None = None
    temperature: float | None = None
    max_probability: float | None = None
    location_agreement: float | None = None
    relative_error_error: float | None = None
    agreement_error: float | None = None


class RatioSums:
    """Numerator and denominator of a ratio of sums, per sample, for its standard error."""

    def __init__(self) -> None:
        self._rows: list[np.ndarray] = []

    def add(self, numerators: np.ndarray, denominators: np.ndarray) -> None:
        """Add the values of some samples, with the samples on axis 0."""
        axes = tuple(range(1, numerators.ndim))
        self._rows.append(np.stack([v.sum(axes, np.float64) for v in (numerators, denominators)]))

    def result(self) -> float | None:
        """Return the standard error of the ratio by linearization (Cochran 1977, 6.4).

        None for fewer than two samples, or values that are not finite.
        """
        if not self._rows:
            return None
        rows = np.concatenate(self._rows, 1)
        total = float(rows[1].sum())
        if rows.shape[1] < 2 or not total or not np.isfinite(rows).all():
            return None
        residuals = rows[0] - rows[0].sum() / total * rows[1]
        return math.sqrt(rows.shape[1]) * float(np.std(residuals, ddof=1)) / total


class OutputSums:
    """Running sums of one output.

    Attributes
    ----------
    axis
        Class axis; None if there is none.
    locations
        Whether the output is a score map.
    error, power, largest
        Sums of (a - b)^2 and a^2, largest |a - b|.
    channel_sums, channel_count
        Sum of a per channel and number of values per channel; None if the number of channels
        changes between batches.
    same, rows
        Rows or positions with the same largest class, and all.
    """

    def __init__(self, name: str, first: np.ndarray, axis: int | None) -> None:
        if axis is not None and not -first.ndim <= axis < first.ndim:
            raise UsageError(
                "fidelity-axis",
                f"class_axes: output {name!r} of shape {first.shape} has no axis {axis}",
            )
        flat = first.ndim >= 2 and first.shape[1] > 1 and math.prod(first.shape[2:]) == 1
        self.axis = 1 if axis is None and flat else axis
        is_map = first.ndim == 4 and first.shape[1] not in IMAGE_CHANNELS
        self.locations = self.axis is None and is_map
        self.error = self.power = self.largest = 0.0
        self.channel_sums: np.ndarray | None = np.zeros(first.shape[1] if first.ndim > 1 else 1)
        self.channel_count = 0
        self.same = self.rows = 0
        self.tempered = Tempered() if self.axis is not None else None
        self.error_ratio, self.agreement_ratio = RatioSums(), RatioSums()

    def update(self, a: np.ndarray, b: np.ndarray) -> None:
        """Add one batch of both models, converted to float64 a few samples at a time."""
        step = len(a)
        # a class axis of 0 cannot be split
        if self.axis is None or self.axis % a.ndim:
            step = max(1, PIECE_VALUES // max(1, a[:1].size))
        for start in range(0, len(a), step):
            piece = slice(start, start + step)
            self._add(a[piece].astype(np.float64), b[piece].astype(np.float64))

    def _add(self, a: np.ndarray, b: np.ndarray) -> None:
        """Add float64 values."""
        gap = np.abs(a - b)
        self.error += float(np.sum(gap * gap))
        self.power += float(np.sum(a * a))
        self.error_ratio.add(gap * gap, a * a)
        # Python's max may drop NaN
        if np.isnan(gap).any():
            self.largest = math.nan
        else:
            self.largest = max(self.largest, float(gap.max(initial=0.0)))
        self._add_channels(a)
        axis = 1 if self.locations else self.axis
        if axis is not None:
            # argmax of NaN is the NaN, which must not count as agreement
            agree = (a.argmax(axis) == b.argmax(axis)) & ~np.isnan(b).any(axis)
            self.same, self.rows = self.same + int(agree.sum()), self.rows + agree.size
            if axis % a.ndim:  # axis 0 of the result counts samples
                self.agreement_ratio.add(agree, np.ones_like(agree))
        if self.tempered is not None and self.axis is not None:
            self.tempered.update(*(np.moveaxis(v, self.axis, -1) for v in (a, b)))

    def _add_channels(self, a: np.ndarray) -> None:
        """Add the sums per channel (axis 1), unless its length changes between batches."""
        if self.channel_sums is None:
            return
        if a.ndim > 1:
            sums = a.sum(tuple(k for k in range(a.ndim) if k != 1))
        else:
            sums = a.sum(keepdims=True).reshape(1)
        same_shape = sums.shape == self.channel_sums.shape
        self.channel_sums = self.channel_sums + sums if same_shape else None
        self.channel_count += a.size // max(1, len(sums))

    def result(self) -> OutputFidelity:
        """Return the figures of the output."""
        if self.power:
            relative = math.sqrt(self.error / self.power)
        else:
            relative = 0.0 if self.error == 0 else math.inf
        variance = 0.0
        if self.channel_sums is not None and self.channel_count:
            variance = self.power - float((self.channel_sums**2).sum()) / self.channel_count
        nmse = self.error / variance if variance > ROUNDING * self.power else None
        agreement = self.same / self.rows if self.rows else None
        errors = (self._estimate_relative_error_error(relative), self.agreement_ratio.result())
        if self.tempered is None:
            return OutputFidelity(
                relative, nmse, self.largest, None, None, None, None, agreement, *errors
            )
        divergence = self.tempered.result()
        return OutputFidelity(
            relative,
            nmse,
            self.largest,
            agreement,
            divergence.kl,
            divergence.temperature,
            divergence.max_probability,
            None,
            *errors,
        )

    def _estimate_relative_error_error(self, relative: float) -> float | None:
        """Return the standard error of the relative error, whose square is a ratio of sums."""
        error = self.error_ratio.result()
        # by the derivative of the square root
        return None if error is None or not relative else error / (2 * relative)
