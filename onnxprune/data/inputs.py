"""A model's inputs, and the conversion of samples to feeds that fit them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxprune.data.preprocess import (
    DEFAULT,
    ImageAxes,
    Preprocess,
    channels_last,
    channels_of,
    image_axes,
    image_input,
)
from onnxprune.errors import DataError, UsageError, unknown
from onnxprune.ir.example_sizes import is_anonymous

Feeds = Mapping[str, np.ndarray]
Shape = tuple[int | str | None, ...]

# onnxruntime's type string -> numpy's name
TYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(bool)": "bool",
    **{f"tensor({t}{n})": f"{t}{n}" for t in ("int", "uint") for n in (8, 16, 32, 64)},
}


@dataclass(frozen=True)
class Input:
    """One input of the model.

    Attributes
    ----------
    name
        Its name.
    shape
        With the batch axis and with overrides applied; str or None where dynamic.
    dtype
        Element type.
    shared
        Whether the array belongs to a feed as a whole instead of being stacked from samples
        (scalars, thresholds, models without a common batch axis).
    """

    name: str
    shape: Shape
    dtype: np.dtype[Any]
    shared: bool = False

    def sample_shape(self) -> Shape:
        """Return the shape of one sample: without the batch axis, unless shared."""
        return self.shape if self.shared else self.shape[1:]


@dataclass(frozen=True)
class Inputs:
    """All inputs of a model and how samples become feeds.

    Attributes
    ----------
    items
        Inputs by name.
    batch
        Number of samples in a feed, None if the model takes any number.
    preprocess
        Preprocessing of uint8 images.
    """

    items: Mapping[str, Input]
    batch: int | None = None
    preprocess: Preprocess = field(default=DEFAULT)

    def image(self, name: str) -> ImageAxes | None:
        """Return the axes of an image input (rank 4, floats or uint8); None for others."""
        item = self.items[name]
        if item.dtype.kind != "f" and item.dtype != np.uint8:
            return None
        return image_axes(item.shape, self.preprocess.layout)

    def pieces(
        self, name: str, shape: Sequence[int], dtype: np.dtype[Any], where: str
    ) -> tuple[int | None, tuple[int, ...]]:
        """Return how many samples an array of a shape holds, and the shape of one.

        The samples are equal pieces of the array's bytes in C order. Accepted are the model's shape
        (first axis = samples), one axis less (a single sample), one axis more (first axis = feeds);
        for a shared input its own shape (count None: the same for all samples) or one axis more.

        Raises
        ------
        DataError
            The array has another rank.
        """
        item, shape = self.items[name], tuple(shape)
        # axes that the array has more than the input
        extra = len(shape) - len(item.shape)
        if item.shared:
            if extra == 0:
                return None, shape
            if extra == 1:
                return shape[0], shape[1:]
        elif extra == 0 or (extra == -1 and self._is_gray_stack(name, shape, dtype)):
            return shape[0], shape[1:]
        elif extra == -1:
            return 1, shape
        elif extra == 1:
            return shape[0] * shape[1], shape[2:]
        raise DataError(
            "data-shape",
            f"{where}: {name!r} has shape {spell(shape)}, "
            f"the model takes rank {len(item.shape)}: {spell(item.shape)}",
        )

    def sample(self, raw: Mapping[str, Any], where: str) -> dict[str, np.ndarray]:
        """Convert one sample to what the model takes, and check it.

        Floats are converted to any float type, integers to any integer type that holds their
        values, and uint8 images to floats by `preprocess`. Other integers are not converted to
        floats, because their scale is not known here.

        Raises
        ------
        DataError
            A name is missing or unknown, or a shape, dtype or value does not fit.
        """
        check_names(raw, self.items, where)
        sizes: dict[str, tuple[str, int]] = {}
        sample = {}
        for name, item in self.items.items():
            value = self._convert(item, np.asarray(raw[name]), f"{where}: {name!r}")
            self._check_shape(item, value, sizes, where)
            sample[name] = value
        return sample

    def stackable(self, first: Feeds, second: Feeds) -> bool:
        """Return whether two samples fit in one feed: equal sizes and equal shared values."""
        for name, item in self.items.items():
            a, b = first[name], second[name]
            if a.shape != b.shape or (item.shared and not np.array_equal(a, b)):
                return False
        return True

    def stack(self, samples: Sequence[Feeds]) -> dict[str, np.ndarray]:
        """Return one feed of stackable samples."""
        feed = {}
        for name, item in self.items.items():
            rows = [s[name] for s in samples]
            feed[name] = np.array(rows[0]) if item.shared else np.stack(rows)
        return feed

    def signature(self) -> list[Any]:
        """Return the names, shapes and types of the inputs as plain data."""
        return [
            [i.name, list(map(str, i.shape)), i.dtype.name, i.shared] for i in self.items.values()
        ]

    def _is_gray_stack(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> bool:
        """Return whether a uint8 array of rank 3 is a stack of gray images, not a single image."""
        axes = self.image(name)
        gray = axes is not None and channels_of(self.items[name].shape, axes) == 1
        return gray and dtype == np.uint8 and 1 not in (shape[0], shape[-1])

    def _convert(self, item: Input, value: np.ndarray, where: str) -> np.ndarray:
        axes = self.image(item.name)
        pixels = value.dtype == np.uint8 and item.dtype.kind == "f"
        if pixels and axes is not None and not item.shared:
            image = channels_last(value, channels_of(item.shape, axes), where)
            value = image_input(image, item.shape, item.dtype, self.preprocess, where)
        return convert(value, item.dtype, where)

    def _check_shape(
        self, item: Input, value: np.ndarray, sizes: dict[str, tuple[str, int]], where: str
    ) -> None:
        """Compare a sample's shape with the model's.

        Parameters
        ----------
        sizes
            Symbol -> (input, size) of the axes seen so far: a symbol must have one size everywhere.
        """
        expected = item.sample_shape()
        fits = len(value.shape) == len(expected) and all(
            not isinstance(e, int) or e == size
            for e, size in zip(expected, value.shape, strict=True)
        )
        if not fits:
            raise DataError(
                "data-shape",
                f"{where}: {item.name!r} has shape {spell(value.shape)} per sample, "
                f"the model takes {spell(expected)}",
            )
        for symbol, size in zip(expected, value.shape, strict=True):
            if isinstance(symbol, str) and not is_anonymous(symbol):
                first, before = sizes.setdefault(symbol, (item.name, size))
                if before != size:
                    raise DataError(
                        "data-shape",
                        f"{where}: size {symbol!r} is {before} in {first!r} and {size} in "
                        f"{item.name!r}; they must be equal",
                    )


def read_inputs(
    inputs: Mapping[str, tuple[Sequence[Any], str]],
    preprocess: Preprocess = DEFAULT,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Inputs:
    """Determine types, shapes and the batch axis of a model's inputs.

    Parameters
    ----------
    inputs
        name -> (shape, onnxruntime's type string such as "tensor(float)"), as in `Session.inputs`.
    preprocess
        Preprocessing of uint8 images.
    shapes
        name -> full shape, batch axis included, for dynamic sizes; -1 keeps a size of the model. A
        symbolic size that is fixed for one input is fixed for all.

    Raises
    ------
    UsageError
        An override names no input or contradicts the model.
    DataError
        An input is not a tensor of numbers.
    """
    declared: dict[str, Shape] = {n: tuple(map(_dimension, s)) for n, (s, _) in inputs.items()}
    for name, (_, kind) in inputs.items():
        if kind not in TYPES:
            raise DataError(
                "data-type",
                f"input {name!r} is {kind}; data can only be given for tensors of float16/32/64, "
                "integers and bool",
            )
    sized = _apply_overrides(declared, shapes or {})
    batch, shared = _find_batch_axis(sized)
    items = {n: Input(n, sized[n], np.dtype(TYPES[inputs[n][1]]), n in shared) for n in inputs}
    return Inputs(items, batch, preprocess)


def convert(value: np.ndarray, dtype: np.dtype[Any], where: str) -> np.ndarray:
    """Return `value` as `dtype` if that preserves its meaning (see `Inputs.sample`).

    Raises
    ------
    DataError
        There is no such conversion, or values are out of range, NaN or infinite.
    """
    have = value.dtype
    if have.kind == dtype.kind == "f" or have == dtype:
        # overflow to infinity is detected by the check below
        with np.errstate(over="ignore"):
            result = value.astype(dtype, copy=False)
        if dtype.kind == "f" and not np.isfinite(result).all():
            bad = int(result.size - np.isfinite(result).sum())
            cause = "NaN or infinity"
            if np.isfinite(value).all():
                cause = f"values beyond the range of {dtype}"
            raise DataError(
                "data-not-finite",
                f"{where} has {cause} in {bad} of {result.size} values; clean the data",
            )
        return result
    if have.kind in "iu" and dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if value.size and not (limits.min <= int(value.min()) and int(value.max()) <= limits.max):
            raise DataError(
                "data-dtype",
                f"{where} has values {value.min()}..{value.max()}, "
                f"the model takes {dtype} ({limits.min}..{limits.max})",
            )
        return value.astype(dtype)
    hint = ""
    if have.kind in "iub" and dtype.kind == "f":
        hint = (
            " (only uint8 images are converted; if the numbers need no scaling, "
            "save them as float32)"
        )
    raise DataError("data-dtype", f"{where} is {have}, the model takes {dtype}{hint}")


def check_names(given: Mapping[str, Any], expected: Mapping[str, Any], where: str) -> None:
    """Check that every input is given and nothing else.

    Raises
    ------
    DataError
        A name is missing or unknown.
    """
    for name in expected:
        if name not in given:
            names = ", ".join(map(repr, given)) or "none"
            raise DataError(
                "data-names", f"{where}: no array for input {name!r}; its arrays: {names}"
            )
    for name in given:
        if name not in expected:
            near = difflib.get_close_matches(str(name), list(expected), 1)
            hint = f"the model takes {', '.join(map(repr, expected))}"
            if near:
                hint = f"did you mean {near[0]!r}?"
            raise DataError("data-names", f"{where}: {name!r} is not an input of the model; {hint}")


def common_count(counts: Mapping[str, int | None], where: str) -> int:
    """Return the number of samples that all inputs have.

    Parameters
    ----------
    counts
        Number of samples by input; None for an input that is the same in any number of samples.

    Raises
    ------
    DataError
        The numbers differ.
    """
    known = {n: c for n, c in counts.items() if c is not None}
    if len(set(known.values())) > 1:
        spelled = ", ".join(f"{n!r} {c}" for n, c in known.items())
        raise DataError(
            "data-shape", f"{where}: inputs have different numbers of samples: {spelled}"
        )
    return next(iter(known.values()), 1)


def spell(shape: Sequence[Any]) -> str:
    """Return a shape as text: 1x3xHx224, "scalar" for rank 0."""
    return "x".join("?" if d is None else str(d) for d in shape) or "scalar"


def _dimension(size: Any) -> int | str | None:
    """Return a size from onnxruntime as a number, a symbol, or None if unknown."""
    return size if isinstance(size, str) or (isinstance(size, int) and size >= 0) else None


def _apply_overrides(
    declared: Mapping[str, Shape], overrides: Mapping[str, Sequence[int]]
) -> dict[str, Shape]:
    """Return the shapes with overrides in them, and the symbols so fixed replaced everywhere."""
    symbols: dict[str, int] = {}
    given: dict[str, Shape] = {}
    for name, sizes in overrides.items():
        option = f"shape {name}:{spell(sizes)}"
        if name not in declared:
            raise unknown("input", name, declared)
        # an input without a declared shape also reads as rank 0
        shape: Shape = declared[name] or (None,) * len(sizes)
        if len(shape) != len(sizes):
            raise UsageError(
                "shape-override",
                f"{option} has rank {len(sizes)}, the model's input has {len(shape)}: "
                f"{spell(shape)}",
            )
        merged = []
        for have, size in zip(shape, sizes, strict=True):
            if size == -1:
                merged.append(have)
                continue
            if size < 1 or (isinstance(have, int) and have != size):
                raise UsageError(
                    "shape-override", f"{option} does not fit the model's input {spell(shape)}"
                )
            named = have if isinstance(have, str) and not is_anonymous(have) else None
            if named is not None and symbols.setdefault(named, size) != size:
                raise UsageError(
                    "shape-override",
                    f"{option}: size {named!r} is already {symbols[named]} and must be the same "
                    "everywhere",
                )
            merged.append(size)
        given[name] = tuple(merged)
    result: dict[str, Shape] = {}
    for name, shape in declared.items():
        dims = given.get(name, shape)
        result[name] = tuple(symbols.get(d, d) if isinstance(d, str) else d for d in dims)
    return result


def _find_batch_axis(shapes: Mapping[str, Shape]) -> tuple[int | None, frozenset[str]]:
    """Return (samples in a feed or None, names of shared inputs).

    Axis 0 is the sample axis if all inputs of rank 2 or more agree on it (one number, one symbol,
    or anonymous dynamic sizes) and the symbol is on no other axis. Otherwise (time-major nets,
    states) nothing is stacked: a sample is an entire feed. Scalars and vectors of another length
    (thresholds, sizes) are shared.
    """
    # vectors count only if there is nothing else
    ranked = {n: s for n, s in shapes.items() if len(s) > 1}
    if not ranked:
        ranked = {n: s for n, s in shapes.items() if len(s) == 1}
    first = {_named(s[0]) for s in ranked.values()}
    # a symbol that is also an inner axis is a length, not a batch
    inner = {d for s in shapes.values() for d in s[1:] if isinstance(d, str)}
    axis = next(iter(first), None)
    if len(first) != 1 or axis in inner:
        return 1, frozenset(shapes)
    shared = {
        n for n, s in shapes.items() if n not in ranked and not (s and _named(s[0]) in (axis, None))
    }
    return axis if isinstance(axis, int) else None, frozenset(shared)


def _named(size: int | str | None) -> int | str | None:
    """Return the size, None if its name is generated."""
    return None if not isinstance(size, int) and is_anonymous(size) else size
