"""Standard deviation of model outputs, the unit in which errors of different outputs are added."""

from __future__ import annotations

import numpy as np

# Of a position's sum of squares. Where samples agree to float32 precision, the centered sum of
# squares is cancellation noise and must not be divided by.
CONSTANT_TOLERANCE = 1e-6
MIN_TOTAL = 1e-12  # returned for outputs that are zero everywhere, so that callers can divide


class ScaleStatistics:
    """Squared distance of a tensor from its mean over samples, accumulated batch by batch.

    The mean is taken per position. Positions that hardly vary, such as the large constants of an
    attention mask, count as zero as long as another position varies; infinite values and NaN count
    as zero. Falls back to the sum of squares (distance from zero) if no position varies or if
    samples differ in shape.

    Attributes
    ----------
    samples
        Number of samples added.
    """

    def __init__(self) -> None:
        self.samples = 0
        # by shape of a sample
        self._sums: dict[tuple[int, ...], np.ndarray] = {}
        self._squares: dict[tuple[int, ...], np.ndarray] = {}

    def add(self, values: np.ndarray) -> None:
        """Add a batch of shape (samples, ...)."""
        values = np.atleast_1d(np.asarray(values, np.float64))
        values = np.where(np.isfinite(values), values, 0.0)
        shape, sums, squares = values.shape[1:], values.sum(0), np.square(values).sum(0)
        self.samples += len(values)
        self._sums[shape] = self._sums.get(shape, 0.0) + sums
        self._squares[shape] = self._squares.get(shape, 0.0) + squares

    @property
    def total(self) -> float:
        """Squared distance summed over samples and positions, at least `MIN_TOTAL`."""
        centered = 0.0
        if len(self._squares) == 1:
            ((shape, squares),) = self._squares.items()
            variation = squares - np.square(self._sums[shape]) / self.samples
            varies = variation > CONSTANT_TOLERANCE * squares
            centered = float(np.where(varies, variation, 0.0).sum())
        return max(centered or sum(float(s.sum()) for s in self._squares.values()), MIN_TOTAL)

    @property
    def scale(self) -> float:
        """1 / sqrt(total per sample); 1 if all values are zero."""
        return (self.samples / self.total) ** 0.5 if self.total > MIN_TOTAL else 1.0
