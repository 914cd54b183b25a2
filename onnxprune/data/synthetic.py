"""Random inputs that any model runs on, for when there is no data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence

import numpy as np

from onnxprune.data.inputs import Input, Inputs, anonymous

SIDE = 128  # dynamic height and width of images: divides by every common stride, and is cheap
LENGTH = 32  # any other dynamic size: sequences, points
INTEGERS = 2  # integers are 0 or 1: valid as token, type, mask and index wherever there are two of anything
WARNING = (
    "no data: statistics come from random inputs (normal floats, integers 0 or 1), which do not look like real ones. "
    "Channels that are chosen or repaired by activations can cost much accuracy, and the output error that is measured says little "
    "about real inputs. Give data: unlabeled inputs are enough."
)


class Synthetic:
    """Samples drawn from the generator that (seed, index of the input, index of the sample) seeds.

    Floats are standard normal, booleans fair, uint8 images 0..255, other integers 0 or 1.
    """

    sequential = False
    checked = True
    warning = WARNING

    def __init__(self, inputs: Inputs, count: int, seed: int) -> None:
        self.inputs, self.count, self.seed = inputs, count, seed
        self.shapes = concrete_shapes(inputs)

    def read(self, indices: Sequence[int]) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        """Samples; a shared input has the same values in all of them."""
        for index in indices:
            sample = {}
            for number, (name, item) in enumerate(self.inputs.items.items()):
                own = 0 if item.shared and self.inputs.batch != 1 else index
                generator = np.random.default_rng([self.seed, number, own])
                high = (
                    256
                    if item.dtype == np.uint8 and self.inputs.image(name) is not None
                    else INTEGERS
                )
                sample[name] = draw(generator, self.shapes[name], item.dtype, high)
            yield f"synthetic sample {index}", sample

    def describe(self) -> str:
        """ "synthetic inputs (x 3x224x224)"."""
        shapes = ", ".join(
            f"{n} {'x'.join(map(str, s)) or 'scalar'}" for n, s in self.shapes.items()
        )
        return f"synthetic inputs ({shapes})"

    def digest(self, indices: Sequence[int]) -> str:
        """Of what determines the values."""
        return hashlib.sha256(
            json.dumps(
                [self.seed, {n: list(s) for n, s in self.shapes.items()}, list(indices)]
            ).encode()
        ).hexdigest()


def open_synthetic(location: str, inputs: Inputs, samples: int, seed: int) -> Synthetic:
    """Seeded random inputs; `location` is not used."""
    return Synthetic(inputs, samples, seed)


def draw(
    generator: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[np.generic], high: int
) -> np.ndarray:
    """Random values of any type a model takes; integers below `high`."""
    if dtype.kind == "f":
        return np.asarray(generator.standard_normal(shape), np.float32).astype(dtype)
    if dtype.kind == "b":
        return np.asarray(generator.integers(0, 2, shape), np.bool_)
    return np.asarray(generator.integers(0, high, shape), dtype)


def concrete_shapes(inputs: Inputs) -> dict[str, tuple[int, ...]]:
    """A size for every dynamic axis of a sample: the same symbol is the same size everywhere.

    Height and width of images 128, channels 3, other sizes 32; a leading axis that is not stacked 1. Sums of symbols and numbers
    ("past + 1") are added up.
    """
    symbols: dict[str, int] = {}
    plain = {}
    for name, item in inputs.items.items():
        plain[name] = [
            d if isinstance(d, int) else _size(inputs, item, axis)
            for axis, d in enumerate(item.shape)
        ]
        for size, symbol in zip(plain[name], item.shape, strict=False):
            if isinstance(symbol, str) and not anonymous(symbol):
                symbols[symbol] = min(size, symbols.get(symbol, size))
    sums = {s: _sum(s, symbols) for s in symbols}
    shapes = {
        n: tuple(
            sums.get(d, size) if isinstance(d, str) else size
            for d, size in zip(i.shape, plain[n], strict=False)
        )
        for n, i in inputs.items.items()
    }
    return {n: shapes[n] if i.shared else shapes[n][1:] for n, i in inputs.items.items()}


def _size(inputs: Inputs, item: Input, axis: int) -> int:
    """A size for one dynamic axis by its place."""
    if axis == 0:
        return 1
    image = inputs.image(item.name)
    if image is None:
        return LENGTH
    return 3 if axis == image.channels else SIDE


def _sum(symbol: str, symbols: dict[str, int]) -> int:
    """The size of "a + b + 1" where its symbols are known, else the symbol's own."""
    terms = [t.strip() for t in symbol.split("+")]
    if len(terms) > 1 and all(t.isdecimal() or t in symbols for t in terms):
        return sum(int(t) if t.isdecimal() else symbols[t] for t in terms)
    return symbols[symbol]
