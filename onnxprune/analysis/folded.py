"""Axes of dynamic length that hold positions which can be cut, as heads merged into the batch.

A product of axes has ids only if its length is a number. With a dynamic factor it is a `Folded`:
the reason of a frozen axis, with the factors. Code that knows nothing of factors sees a frozen
axis; the pass freezes the factors before such code runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from onnxprune.ir.values import Dim, product

Axis = int | np.ndarray  # an int may be a `Folded`, which has ids among its factors
Places = tuple[tuple[str, int], ...]  # (tensor, axis) of axes that have the same length

MERGED = "merged with a dynamic axis"  # reason where the factors are not followed


class Part(NamedTuple):
    """One factor of an axis.

    Attributes
    ----------
    axis
        Reason of a frozen factor, or the ids of its positions.
    length
        Number of its positions.
    places
        (tensor, axis) that have a dynamic length, if any is known.
    """

    axis: Axis
    length: Dim
    places: Places = ()


class Folded(int):
    """Reason of an axis of dynamic length, with its factors in row-major order.

    Attributes
    ----------
    parts
        Factors: ids or frozen axes of fixed length, and frozen axes of dynamic length.
    """

    parts: tuple[Part, ...]

    def __new__(cls, why: int, parts: Sequence[Part]) -> Folded:
        """Return the axis of a product of parts, frozen as a whole for a reason."""
        axis = super().__new__(cls, why)
        axis.parts = tuple(parts)
        return axis

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """Ids of the factors that can be cut."""
        return tuple(p.axis for p in self.parts if isinstance(p.axis, np.ndarray))

    @property
    def lengths(self) -> list[Dim]:
        """Length per factor; adjacent dynamic factors are one."""
        lengths: list[Dim] = []
        for part in self.parts:
            # adjacent dynamic factors cannot be told apart: only their product is known
            if lengths and not isinstance(part.length, int) and not isinstance(lengths[-1], int):
                lengths[-1] = product([lengths[-1], part.length])
            else:
                lengths.append(part.length)
        return lengths

    @property
    def factors(self) -> list[Axis]:
        """Axis per entry of `lengths`."""
        axes: list[Axis] = []
        for part, before in zip(self.parts, (None, *self.parts), strict=False):
            adjacent = before is not None and not isinstance(before.length, int)
            if not adjacent or isinstance(part.length, int):
                axes.append(part.axis if isinstance(part.length, int) else int(part.axis))
        return axes

    def matches(self, other: Folded) -> bool:
        """Return whether an axis of the same length has the same factors.

        A single dynamic factor follows from the length and the fixed factors.
        """
        fixed = [
            [d if isinstance(d, int) else None for d in axis.lengths] for axis in (self, other)
        ]
        return self.lengths == other.lengths or (fixed[0] == fixed[1] and fixed[0].count(None) == 1)


class KeptPositions(NamedTuple):
    """Kept positions of an axis, also of one whose length is known only per run.

    Attributes
    ----------
    factors
        Mask of the kept positions per factor of the axis, in row-major order; None for a dynamic
        factor, which keeps all.
    """

    factors: tuple[np.ndarray | None, ...]

    @property
    def solvable(self) -> bool:
        """True if the length of the axis gives the length of every factor."""
        return sum(factor is None for factor in self.factors) <= 1

    def positions(self, length: int) -> np.ndarray:
        """Return the kept positions of an axis of this length."""
        fixed = math.prod(len(factor) for factor in self.factors if factor is not None)
        mask = np.ones(1, bool)
        for factor in self.factors:
            # the dynamic factor takes what the fixed ones leave of the length
            part = np.ones(length // fixed, bool) if factor is None else factor
            mask = np.outer(mask, part).ravel()
        return np.flatnonzero(mask)


def arrays_of(axis: Axis | None) -> tuple[np.ndarray, ...]:
    """Return the ids in an axis: its own, or those of its factors."""
    if isinstance(axis, np.ndarray):
        return (axis,)
    return axis.arrays if isinstance(axis, Folded) else ()
