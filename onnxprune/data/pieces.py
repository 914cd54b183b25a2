"""The samples that one array holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.data.input_shapes import Shape


@dataclass(frozen=True)
class Pieces:
    """How an array holds samples.

    Attributes
    ----------
    count
        Number of samples; None if the array is the same for any number of samples.
    shape
        Shape of one sample.
    axis
        Axis of the array along which samples are counted.
    feeds
        Whether axis 0 counts feeds, whose samples are along `axis`.
    """

    count: int | None
    shape: tuple[int, ...]
    axis: int = 0
    feeds: bool = False

    @property
    def contiguous(self) -> bool:
        """Whether samples are equal pieces of the array's bytes in C order."""
        return self.axis <= int(self.feeds)

    def view(self, array: np.ndarray) -> np.ndarray:
        """Return the array with samples on axis 0; a copy only of feeds with inner samples."""
        first = np.moveaxis(array, self.axis, int(self.feeds))
        shape = (1 if self.count is None else self.count, *self.shape)
        return first if first.shape == shape else first.reshape(shape)


def pieces_of_shared(expected: Shape, shape: tuple[int, ...]) -> Pieces:
    """Return the pieces of an array for an input without a batch axis, of equal rank.

    It has one value for all samples, unless an axis of length 1 in the model is longer: the states
    of one sequence at a time are often stacked there.
    """
    longer = [i for i, (e, d) in enumerate(zip(expected, shape, strict=True)) if e == 1 != d]
    # two longer axes leave open which of them counts samples
    if len(longer) != 1 or not fits(expected, _replace_size(shape, longer[0], 1)):
        return Pieces(None, shape)
    return Pieces(shape[longer[0]], _replace_size(shape, longer[0], 1), longer[0])


def fits(expected: Sequence[int | str | None], shape: Sequence[int]) -> bool:
    """Return whether a shape has the rank and the fixed sizes of another."""
    return len(expected) == len(shape) and all(
        e == d for e, d in zip(expected, shape, strict=True) if isinstance(e, int)
    )


def _replace_size(shape: tuple[int, ...], axis: int, size: int) -> tuple[int, ...]:
    """Return a shape with another size on one axis."""
    return (*shape[:axis], size, *shape[axis + 1 :])
