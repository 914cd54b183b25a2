"""What a model takes, and making sure that it gets that: the sample axis, shapes, types, values."""

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

Feeds = Mapping[str, np.ndarray]
Shape = tuple[int | str | None, ...]

# onnxruntime's type strings -> numpy's names
TYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(bool)": "bool",
    **{
        f"tensor({sign}int{bits})": f"{sign}int{bits}"
        for sign in ("", "u")
        for bits in (8, 16, 32, 64)
    },
}


@dataclass(frozen=True)
class Input:
    """One input of the model.

    shape: with the batch axis, overrides applied, str or None where dynamic; shared: the array belongs to a feed as a whole and
    is not stacked from samples (scalars, thresholds, models without a common batch axis).
    """

    name: str
    shape: Shape
    dtype: np.dtype[Any]
    shared: bool = False

    def sample_shape(self) -> Shape:
        """Of one sample: without the batch axis, unless shared."""
        return self.shape if self.shared else self.shape[1:]


@dataclass(frozen=True)
class Inputs:
    """All inputs of a model and how samples become feeds.

    batch: samples in a feed, None where any number may be; preprocess: for uint8 images.
    """

    items: Mapping[str, Input]
    batch: int | None = None
    preprocess: Preprocess = field(default=DEFAULT)

    def image(self, name: str) -> ImageAxes | None:
        """The axes of an image input (rank 4, floats or uint8); None for another."""
        item = self.items[name]
        return (
            image_axes(item.shape, self.preprocess.layout)
            if item.dtype.kind == "f" or item.dtype == np.uint8
            else None
        )

    def pieces(
        self, name: str, shape: Sequence[int], dtype: np.dtype[Any], where: str
    ) -> tuple[int | None, tuple[int, ...]]:
        """How many samples an array of that shape holds and the shape of one: as bytes in C order it is so many equal pieces.

        Accepted are the model's shape (first axis = samples), one axis less (one sample), one axis more (first axis = feeds);
        for a shared input its own shape (count None: the same for all samples) or one axis more.

        Raises
        ------
        DataError
            Another rank.
        """
        item, shape = self.items[name], tuple(shape)
        extra = len(shape) - len(item.shape)
        if item.shared:
            if extra in (0, 1):
                return (shape[0], shape[1:]) if extra else (None, shape)
        elif extra == 0 or (extra == -1 and self._gray_stack(name, shape, dtype)):
            return shape[0], shape[1:]
        elif extra == -1:
            return 1, shape
        elif extra == 1:
            return shape[0] * shape[1], shape[2:]
        raise DataError(
            "data-shape",
            f"{where}: {name!r} has shape {spell(shape)}, the model takes rank {len(item.shape)}: {spell(item.shape)}",
        )

    def sample(self, raw: Mapping[str, Any], where: str) -> dict[str, np.ndarray]:
        """One sample that fits the model: every input, converted and checked.

        Floats are converted to any float type; integers to any integer type that holds their values; uint8 images to floats
        by `preprocess`. Other integers are never made floats: what they mean is not known here.

        Raises
        ------
        DataError
            A name is missing or unknown; shape, dtype or values do not fit.
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
        """Whether two samples can be in one feed: same sizes, and the same shared values."""
        for name, item in self.items.items():
            a, b = first[name], second[name]
            if a.shape != b.shape or (item.shared and not np.array_equal(a, b)):
                return False
        return True

    def stack(self, samples: Sequence[Feeds]) -> dict[str, np.ndarray]:
        """One feed of samples that are stackable."""
        return {
            n: np.array(samples[0][n]) if item.shared else np.stack([s[n] for s in samples])
            for n, item in self.items.items()
        }

    def signature(self) -> list[Any]:
        """Plain data that tells two models' inputs apart."""
        return [
            [i.name, [str(d) for d in i.shape], i.dtype.name, i.shared] for i in self.items.values()
        ]

    def _gray_stack(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> bool:
        """Whether a uint8 array of rank 3 is a stack of gray images and not one image with its channels."""
        axes = self.image(name)
        gray = axes is not None and channels_of(self.items[name].shape, axes) == 1
        return gray and dtype == np.uint8 and 1 not in (shape[0], shape[-1])

    def _convert(self, item: Input, value: np.ndarray, where: str) -> np.ndarray:
        axes = self.image(item.name)
        if (
            value.dtype == np.uint8
            and item.dtype.kind == "f"
            and axes is not None
            and not item.shared
        ):
            pixels = channels_last(value, channels_of(item.shape, axes), where)
            value = image_input(pixels, item.shape, item.dtype, self.preprocess, where)
        return converted(value, item.dtype, where)

    def _check_shape(
        self, item: Input, value: np.ndarray, sizes: dict[str, tuple[str, int]], where: str
    ) -> None:
        """The sample's shape against the model's; a symbolic size must be the same on all axes that carry it."""
        wanted = item.sample_shape()
        if len(value.shape) != len(wanted) or any(
            isinstance(w, int) and w != v for w, v in zip(wanted, value.shape, strict=False)
        ):
            raise DataError(
                "data-shape",
                f"{where}: {item.name!r} has shape {spell(value.shape)} a sample, the model takes {spell(wanted)}",
            )
        for symbol, size in zip(wanted, value.shape, strict=False):
            if isinstance(symbol, str) and not anonymous(symbol):
                first, before = sizes.setdefault(symbol, (item.name, size))
                if before != size:
                    both = f"{before} in {first!r} and {size} in {item.name!r}"
                    raise DataError(
                        "data-shape", f"{where}: size {symbol!r} is {both}; they must be equal"
                    )


def read_inputs(
    inputs: Mapping[str, tuple[Sequence[Any], str]],
    preprocess: Preprocess = DEFAULT,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Inputs:
    """Types, overrides and the batch axis of a model's inputs.

    Parameters
    ----------
    inputs
        name -> (shape, onnxruntime's type string such as "tensor(float)"), as `Session.inputs` has it.
    shapes
        name -> whole shape, batch axis included, for dynamic sizes; -1 leaves a size as the model has it. A symbolic size that is fixed
        for one input is fixed for all.

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
                f"input {name!r} is {kind}; data can be given for tensors of float16/32/64, integers and bool",
            )
    sized = _override(declared, shapes or {})
    batch, shared = _batch_axis(sized)
    items = {n: Input(n, sized[n], np.dtype(TYPES[inputs[n][1]]), n in shared) for n in inputs}
    return Inputs(items, batch, preprocess)


def converted(value: np.ndarray, dtype: np.dtype[Any], where: str) -> np.ndarray:
    """`value` as `dtype` where that loses no meaning (see `Inputs.sample`), and finite.

    Raises
    ------
    DataError
        No such conversion, values out of range, NaN or infinity.
    """
    have = value.dtype
    if have.kind == dtype.kind == "f" or have == dtype:
        with np.errstate(over="ignore"):
            result = value.astype(dtype, copy=False)
        if dtype.kind == "f" and not np.isfinite(result).all():
            bad = int(result.size - np.isfinite(result).sum())
            cause = (
                "NaN or infinity"
                if not np.isfinite(value).all()
                else f"values beyond the range of {dtype}"
            )
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
                f"{where} holds {value.min()}..{value.max()}, the model takes {dtype} ({limits.min}..{limits.max})",
            )
        return value.astype(dtype)
    hint = ""
    if have.kind in "iub" and dtype.kind == "f":
        hint = " (only uint8 images are converted; if the numbers are meant as they are, save them as float32)"
    raise DataError("data-dtype", f"{where} is {have}, the model takes {dtype}{hint}")


def check_names(given: Mapping[str, Any], wanted: Mapping[str, Any], where: str) -> None:
    """Every input is given and nothing else; DataError otherwise."""
    for name in wanted:
        if name not in given:
            raise DataError(
                "data-names",
                f"{where}: no array for input {name!r}; found {', '.join(map(repr, given)) or 'nothing'}",
            )
    for name in given:
        if name not in wanted:
            near = difflib.get_close_matches(str(name), list(wanted), 1)
            hint = (
                f"did you mean {near[0]!r}?"
                if near
                else f"the model takes {', '.join(map(repr, wanted))}"
            )
            raise DataError("data-names", f"{where}: {name!r} is no input of the model; {hint}")


def common_count(counts: Mapping[str, int | None], where: str) -> int:
    """The number of samples that all inputs have (None: the same for any number); DataError where they differ."""
    known = {n: c for n, c in counts.items() if c is not None}
    if len(set(known.values())) > 1:
        spelled = ", ".join(f"{n!r} {c}" for n, c in known.items())
        raise DataError(
            "data-shape", f"{where}: inputs have different numbers of samples: {spelled}"
        )
    return next(iter(known.values()), 1)


def anonymous(symbol: str | None) -> bool:
    """A dynamic size whose name says nothing: two of them may differ or be equal."""
    return symbol is None or symbol in ("", "?") or symbol.startswith("unk__")


def spell(shape: Sequence[Any]) -> str:
    """1x3xHx224; "scalar" for rank 0."""
    return "x".join("?" if d is None else str(d) for d in shape) or "scalar"


def _dimension(size: Any) -> int | str | None:
    """A size as onnxruntime gives it: a number, a symbol, or None where nothing is known."""
    return size if isinstance(size, str) or (isinstance(size, int) and size >= 0) else None


def _override(declared: dict[str, Shape], shapes: Mapping[str, Sequence[int]]) -> dict[str, Shape]:
    """The shapes with what was asked for in them, and its symbols replaced everywhere."""
    symbols: dict[str, int] = {}
    given: dict[str, Shape] = {}
    for name, wanted in shapes.items():
        asked = f"shape {name}:{spell(wanted)}"
        if name not in declared:
            raise unknown("input", name, declared)
        shape: Shape = declared[name] or (None,) * len(
            wanted
        )  # an input without a declared shape also reads as rank 0
        if len(shape) != len(wanted):
            raise UsageError(
                "shape-override",
                f"{asked} has rank {len(wanted)}, the model's input has {len(shape)}: {spell(shape)}",
            )
        for have, want in zip(shape, wanted, strict=False):
            if want != -1 and (want < 1 or (isinstance(have, int) and have != want)):
                raise UsageError(
                    "shape-override", f"{asked} does not fit the model's input {spell(shape)}"
                )
            if (
                want != -1
                and isinstance(have, str)
                and not anonymous(have)
                and symbols.setdefault(have, want) != want
            ):
                raise UsageError(
                    "shape-override",
                    f"{asked}: size {have!r} is already {symbols[have]} and must be the same everywhere",
                )
        given[name] = tuple(
            have if want == -1 else want for have, want in zip(shape, wanted, strict=False)
        )
    return {
        n: tuple(symbols.get(d, d) if isinstance(d, str) else d for d in given.get(n, s))
        for n, s in declared.items()
    }


def _batch_axis(shapes: Mapping[str, Shape]) -> tuple[int | None, frozenset[str]]:
    """(samples in a feed or None, names of shared inputs).

    Axis 0 is the sample axis when all inputs of rank 2 or more agree on it: one number, one symbol, or nameless dynamic sizes; and the symbol
    is on no other axis. Else (time-major recurrences, states) nothing is stacked: a sample is a whole feed.
    Scalars and vectors of another length (thresholds, sizes) are shared.
    """
    ranked = {n: s for n, s in shapes.items() if len(s) > 1} or {
        n: s for n, s in shapes.items() if len(s) == 1
    }
    first = {_known(s[0]) for s in ranked.values()}
    inner = {d for s in shapes.values() for d in s[1:] if isinstance(d, str)}
    axis = next(iter(first), None)
    if len(first) != 1 or axis in inner:
        return 1, frozenset(shapes)
    shared = {
        n for n, s in shapes.items() if n not in ranked and not (s and _known(s[0]) in (axis, None))
    }
    return axis if isinstance(axis, int) else None, frozenset(shared)


def _known(size: int | str | None) -> int | str | None:
    """None for a dynamic size whose name says nothing."""
    return None if not isinstance(size, int) and anonymous(size) else size
