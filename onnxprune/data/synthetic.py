"""Random inputs that fit any model, for runs without data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence

import numpy as np

from onnxprune.data.inputs import Inputs
from onnxprune.ir.example_sizes import example_shapes

INTEGERS = 2  # integers are 0 or 1, valid as token, type, mask and index in most models
WARNING = (
    "no data: statistics are computed on random inputs (normal floats, integers 0 or 1), which do "
    "not resemble real ones. Channels selected or repaired by activations can cost much accuracy, "
    "and the measured output error says little about real inputs. Pass --data: unlabeled inputs "
    "are enough."
)


class Synthetic:
    """Samples drawn from generators seeded by (seed, index of the input, index of the sample).

    Floats are standard normal, booleans fair, uint8 images 0..255, other integers 0 or 1.
    """

    sequential = False
    checked = True
    warning = WARNING

    def __init__(self, inputs: Inputs, count: int, seed: int) -> None:
        self.inputs, self.count, self.seed = inputs, count, seed
        self.shapes = concrete_shapes(inputs)

    def read(self, indices: Sequence[int]) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        """Yield samples; a shared input has the same values in all of them."""
        for index in indices:
            sample = {}
            for number, (name, item) in enumerate(self.inputs.items.items()):
                own = 0 if item.shared and self.inputs.batch != 1 else index
                generator = np.random.default_rng([self.seed, number, own])
                pixels = item.dtype == np.uint8 and self.inputs.image(name) is not None
                high = 256 if pixels else INTEGERS
                sample[name] = draw(generator, self.shapes[name], item.dtype, high)
            yield f"synthetic sample {index}", sample

    def describe(self) -> str:
        """Return a phrase such as "synthetic inputs (x 3x224x224)"."""
        shapes = ", ".join(
            f"{n} {'x'.join(map(str, s)) or 'scalar'}" for n, s in self.shapes.items()
        )
        return f"synthetic inputs ({shapes})"

    def digest(self, indices: Sequence[int]) -> str:
        """Return the hex sha256 of what determines the values."""
        parts = [self.seed, {n: list(s) for n, s in self.shapes.items()}, list(indices)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def open_synthetic(location: str, inputs: Inputs, samples: int, seed: int) -> Synthetic:
    """Return seeded random inputs; `location` is not used."""
    return Synthetic(inputs, samples, seed)


def draw(
    generator: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[np.generic], high: int
) -> np.ndarray:
    """Draw random values of any type a model takes; integers are below `high`."""
    if dtype.kind == "f":
        return np.asarray(generator.standard_normal(shape), np.float32).astype(dtype)
    if dtype.kind == "b":
        return np.asarray(generator.integers(0, 2, shape), np.bool_)
    return np.asarray(generator.integers(0, high, shape), dtype)


def concrete_shapes(inputs: Inputs) -> dict[str, tuple[int, ...]]:
    """Return the shape of a sample per input, with a size for every dynamic axis.

    The sizes are those of `example_shapes`; a leading axis that is not stacked has size 1.
    """
    images = {name: inputs.image(name) for name in inputs.items}
    channels = {name: axes.channels if axes else None for name, axes in images.items()}
    full = example_shapes({n: item.shape for n, item in inputs.items.items()}, channels)
    shapes = {}
    for name, item in inputs.items.items():
        axis = len(item.shape) if item.axis is None else item.axis
        shapes[name] = full[name][:axis] + full[name][axis + 1 :]
    return shapes
