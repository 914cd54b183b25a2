"""How much values differ between samples: the unit in which errors of different outputs can be added."""

from __future__ import annotations

import numpy as np

ALIKE = 1e-6  # of the energy; samples that differ less have no spread worth dividing by
TINY = 1e-12  # least spread, of values that are all 0


class Spread:
    """Squared distance of a tensor's values from their mean over samples, batch by batch; from zero where samples hardly differ or differ in shape."""

    def __init__(self) -> None:
        self.samples, self._energy, self._sums = 0, 0.0, dict[tuple[int, ...], np.ndarray]()

    def add(self, values: np.ndarray) -> None:
        """A batch, (samples, ...)."""
        values = np.atleast_1d(np.asarray(values, np.float64))
        self.samples += len(values)
        self._energy += float(np.square(values).sum())
        self._sums[values.shape[1:]] = self._sums.get(values.shape[1:], 0.0) + values.sum(0)

    @property
    def total(self) -> float:
        """Over all samples; `TINY` at least."""
        spread = self._energy
        if len(self._sums) == 1:
            (sums,) = self._sums.values()
            spread -= float(np.square(sums).sum()) / self.samples
        return max(spread if spread > ALIKE * self._energy else self._energy, TINY)

    @property
    def scale(self) -> float:
        """1 over the square root of a sample's share of it; 1 where all values are 0."""
        return (self.samples / self.total) ** 0.5 if self.total > TINY else 1.0
