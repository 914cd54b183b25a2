"""Random inputs that fit any model, for runs without data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence

import numpy as np

from onnxprune.data.inputs import Inputs
from onnxprune.ir.example_sizes import example_shapes
from onnxprune.ir.input_ranges import BINARY, integer_ranges

PIXELS = (0, 256)
WARNING = (
    "no data: statistics are computed on random inputs (normal floats, integers that fit the "
    "graph), which do not resemble real ones. Channels selected or repaired by activations can "
    "cost much accuracy, and the measured output error says little about real inputs. Pass --data: "
    "unlabeled inputs are enough."
)


class Synthetic:
    """Samples drawn from generators seeded by (seed, index of the input, index of the sample).

    Floats are standard normal, uint8 images 0..255, other integers and booleans within the range
    that the graph allows (`integer_ranges`; without a graph, 0 or 1).
    """

    sequential = False
    checked = True
    warning = WARNING

    def __init__(self, inputs: Inputs, count: int, seed: int) -> None:
        self.inputs, self.count, self.seed = inputs, count, seed
        self.shapes = concrete_shapes(inputs)
        self.ranges = _find_ranges(inputs)

    def read(self, indices: Sequence[int]) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        """Yield samples; a shared input has the same values in all of them."""
        for index in indices:
            sample = {}
            for number, (name, item) in enumerate(self.inputs.items.items()):
                # samples share a feed only if shared values are equal; a feed of one sample is free
                own = 0 if item.shared and self.inputs.batch != 1 else index
                # a generator per value, so that a sample does not depend on which others are read
                generator = np.random.default_rng([self.seed, number, own])
                sample[name] = draw(
                    generator, self.shapes[name], item.dtype, self.ranges.get(name, BINARY)
                )
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
        # the default ranges follow from types and shapes; only the graph gives others
        unusual = {n: r for n, r in self.ranges.items() if r not in (BINARY, PIXELS)}
        parts += [unusual] if unusual else []
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def open_synthetic(location: str, inputs: Inputs, samples: int, seed: int) -> Synthetic:
    """Return seeded random inputs; `location` is not used."""
    return Synthetic(inputs, samples, seed)


def draw(
    generator: np.random.Generator,
    shape: tuple[int, ...],
    dtype: np.dtype[np.generic],
    limits: tuple[int, int],
) -> np.ndarray:
    """Draw random values of any type a model takes; integers within [low, high)."""
    if dtype.kind == "f":
        return np.asarray(generator.standard_normal(shape), np.float32).astype(dtype)
    return np.asarray(generator.integers(*limits, shape), dtype)


def _find_ranges(inputs: Inputs) -> dict[str, tuple[int, int]]:
    """Return the range of values per integer or boolean input."""
    if inputs.model is not None:
        ranges = integer_ranges(inputs.model, _complete_shapes(inputs))
    else:
        ranges = {n: BINARY for n, item in inputs.items.items() if item.dtype.kind in "iub"}
    for name, item in inputs.items.items():
        # graphs bound indices, not pixels: an image may have any byte
        if item.dtype == np.uint8 and inputs.image(name) is not None:
            ranges[name] = PIXELS
    return ranges


def concrete_shapes(inputs: Inputs) -> dict[str, tuple[int, ...]]:
    """Return the shape of a sample per input, with a size for every dynamic axis.

    The sizes are those of `example_shapes`; a leading axis that is not stacked has size 1.
    """
    full = _complete_shapes(inputs)
    shapes = {}
    for name, item in inputs.items.items():
        # slices beyond the end keep every axis of a shared input
        axis = len(item.shape) if item.axis is None else item.axis
        shapes[name] = full[name][:axis] + full[name][axis + 1 :]
    return shapes


def _complete_shapes(inputs: Inputs) -> dict[str, tuple[int, ...]]:
    """Return a shape per input, with a size for every dynamic axis."""
    images = {name: inputs.image(name) for name in inputs.items}
    channels = {name: axes.channels if axes else None for name, axes in images.items()}
    return example_shapes({n: item.shape for n, item in inputs.items.items()}, channels)
