"""How much values differ between samples: the unit in which errors of different outputs can be added."""

from __future__ import annotations

import numpy as np

ALIKE = 1e-6  # of the energy of a position; where samples differ less, there is no spread worth dividing by
TINY = 1e-12  # least spread, of values that are all 0


class Spread:
    """Squared distance of a tensor's values from their mean over samples, batch by batch; from zero where samples hardly differ or differ in shape.

    Positions that hardly differ, such as a mask's large number, count for nothing beside others that do; neither do infinite values.
    """

    def __init__(self) -> None:
        self.samples = 0
        self._sums: dict[tuple[int, ...], np.ndarray] = {}
        self._squares: dict[tuple[int, ...], np.ndarray] = {}

    def add(self, values: np.ndarray) -> None:
        """A batch, (samples, ...)."""
        values = np.atleast_1d(np.asarray(values, np.float64))
        values = np.where(np.isfinite(values), values, 0.0)
        shape, sums, squares = values.shape[1:], values.sum(0), np.square(values).sum(0)
        self.samples += len(values)
        self._sums[shape] = self._sums.get(shape, 0.0) + sums
        self._squares[shape] = self._squares.get(shape, 0.0) + squares

    @property
    def total(self) -> float:
        """Over all samples; `TINY` at least."""
        found = 0.0
        if len(self._squares) == 1:
            ((shape, squares),) = self._squares.items()
            spread = squares - np.square(self._sums[shape]) / self.samples
            found = float(np.where(spread > ALIKE * squares, spread, 0.0).sum())
        return max(found or sum(float(s.sum()) for s in self._squares.values()), TINY)

    @property
    def scale(self) -> float:
        """1 over the square root of a sample's share of it; 1 where all values are 0."""
        return (self.samples / self.total) ** 0.5 if self.total > TINY else 1.0
