"""A model's inputs, and the conversion of samples to feeds that fit them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from onnxprune.data.batch_axis import find_batch_axes
from onnxprune.data.input_shapes import Shape, apply_overrides, dimension, spell
from onnxprune.data.pieces import Pieces, fits, pieces_of_shared
from onnxprune.data.preprocess import (
    DEFAULT,
    ImageAxes,
    Preprocess,
    channels_last,
    channels_of,
    image_axes,
    image_input,
)
from onnxprune.data.separable import is_separable
from onnxprune.errors import DataError
from onnxprune.ir.example_sizes import is_anonymous
from onnxprune.ir.model import ModelView

Feeds = Mapping[str, np.ndarray]

# onnxruntime's type string -> numpy's name
MOST_NAMES = 20  # of a message
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
    axis
        Batch axis, along which samples are stacked; None if the array belongs to a feed as a
        whole (scalars, thresholds, states, models without a batch axis).
    """

    name: str
    shape: Shape
    dtype: np.dtype[Any]
    axis: int | None = 0

    @property
    def shared(self) -> bool:
        """Whether the array belongs to a feed as a whole instead of being stacked from samples."""
        return self.axis is None

    def sample_shape(self) -> Shape:
        """Return the shape of one sample: without the batch axis, unless shared."""
        if self.axis is None:
            return self.shape
        return self.shape[: self.axis] + self.shape[self.axis + 1 :]


class Batch(dict[str, np.ndarray]):
    """One feed by input name, with the number of its samples.

    Attributes
    ----------
    samples
        Number of samples.
    axes
        Batch axis by input, None for inputs without one.
    """

    def __init__(self, arrays: Feeds, samples: int, axes: Mapping[str, int | None]) -> None:
        super().__init__(arrays)
        self.samples, self.axes = samples, axes


def samples_of(feeds: Feeds) -> int:
    """Return the number of samples in a feed: its own, or the length of axis 0."""
    if isinstance(feeds, Batch):
        return feeds.samples
    return next((len(a) for a in feeds.values() if a.ndim), 1)


def rows_of(feeds: Feeds, part: slice) -> dict[str, np.ndarray]:
    """Return some samples of a feed; inputs without a batch axis are unchanged.

    Inputs of a plain dict have their samples on axis 0 if it has the length of all samples.
    """
    count = samples_of(feeds)
    if isinstance(feeds, Batch):
        axes = feeds.axes
    else:
        axes = {n: 0 if a.ndim and len(a) == count else None for n, a in feeds.items()}
    arrays = {}
    for name, array in feeds.items():
        axis = axes[name]
        index = () if axis is None else (*[slice(None)] * axis, part)
        arrays[name] = array[index]
    # the slice may end beyond the last sample
    return Batch(arrays, len(range(count)[part]), axes)


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
    model
        The model, if its graph is known: it bounds the values of random inputs.
    """

    items: Mapping[str, Input]
    batch: int | None = None
    preprocess: Preprocess = field(default=DEFAULT)
    model: ModelView | None = field(default=None, repr=False, compare=False)

    def image(self, name: str) -> ImageAxes | None:
        """Return the axes of an image input (rank 4, floats or uint8); None for others."""
        item = self.items[name]
        if item.dtype.kind != "f" and item.dtype != np.uint8:
            return None
        return image_axes(item.shape, self.preprocess.layout)

    def pieces(self, name: str, shape: Sequence[int], dtype: np.dtype[Any], where: str) -> Pieces:
        """Return how an array of a shape holds samples.

        Accepted are the model's shape (the batch axis = samples), one axis less (a single sample),
        one axis more (first axis = feeds); for an input without a batch axis its own shape (the
        same for all samples), one axis more, or samples along an axis that has length 1 in the
        model.

        Raises
        ------
        DataError
            The array has another rank.
        """
        item, shape = self.items[name], tuple(shape)
        # axes that the array has more than the input
        extra = len(shape) - len(item.shape)
        if item.axis is None:
            if extra == 0:
                return pieces_of_shared(item.shape, shape)
            if extra == 1:
                return Pieces(shape[0], shape[1:])
        elif extra == -1 and item.axis == 0 and self._is_gray_stack(name, shape, dtype):
            return Pieces(shape[0], shape[1:])
        # one axis less than the model's can only be a single sample
        elif extra == -1:
            return Pieces(1, shape)
        elif extra in (0, 1):
            axis = extra + item.axis
            if extra == 0 and axis and fits(item.sample_shape(), shape[1:]):
                # samples first, although the model has them on another axis
                fits_model = fits(item.sample_shape(), shape[:axis] + shape[axis + 1 :])
                axis = axis if fits_model else 0
            count = shape[axis] * (shape[0] if extra else 1)
            return Pieces(count, shape[extra:axis] + shape[axis + 1 :], axis, feeds=bool(extra))
        raise DataError(
            "data-shape",
            f"{where}: {name!r} has shape {spell(shape)}, "
            f"the model takes rank {len(item.shape)}: {spell(item.shape)}",
        )

    def common_count(self, pieces: Mapping[str, Pieces], where: str) -> int:
        """Return the number of samples that all inputs have.

        Raises
        ------
        DataError
            The numbers differ, or one array for all samples may as well hold one sample per row.
        """
        known = {n: p.count for n, p in pieces.items() if p.count is not None}
        if len(set(known.values())) > 1:
            spelled = ", ".join(f"{n!r} {c}" for n, c in known.items())
            feeds = min(known.values())
            # rows that belong to one feed, such as the nodes and edges of a graph, multiply
            whole = any(p.feeds for p in pieces.values()) and not any(
                count % max(feeds, 1) for count in known.values()
            )
            hint = f"; if these are {feeds} whole inputs, pass --batch-axis none" if whole else ""
            raise DataError(
                "data-shape",
                f"{where}: inputs have different numbers of samples: {spelled}{hint}",
            )
        count = next(iter(known.values()), 1)
        for name, part in pieces.items():
            # a fixed leading size cannot be a number of samples
            rows = part.shape[0] if part.count is None and len(part.shape) > 1 else 1
            if rows == count > 1 and not isinstance(self.items[name].shape[0], int):
                raise DataError(
                    "data-shape",
                    f"{where}: {name!r} has shape {spell(part.shape)}, which is one value for all "
                    f"{count} samples or one row per sample; pass --batch-axis {name}:0 for rows, "
                    "or repeat the value along a new first axis",
                )
        return count

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
            # a feed holds a shared array once, so it must suit all samples
            if a.shape != b.shape or (item.shared and not np.array_equal(a, b)):
                return False
        return True

    def stack(self, samples: Sequence[Feeds]) -> Batch:
        """Return one feed of stackable samples."""
        feed = {}
        for name, item in self.items.items():
            rows = [s[name] for s in samples]
            feed[name] = np.array(rows[0]) if item.axis is None else np.stack(rows, item.axis)
        return Batch(feed, len(samples), {n: item.axis for n, item in self.items.items()})

    @property
    def divisible(self) -> bool:
        """Whether a feed can be divided along axis 0 of its arrays and of what they lead to."""
        return self.batch is None and not any(item.axis for item in self.items.values())

    def signature(self) -> list[Any]:
        """Return the names, shapes, types and batch axes of the inputs as plain data."""
        return [
            [i.name, list(map(str, i.shape)), i.dtype.name, i.shared, *([i.axis] if i.axis else [])]
            for i in self.items.values()
        ]

    def _is_gray_stack(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> bool:
        """Return whether a uint8 array of rank 3 is a stack of gray images, not a single image."""
        axes = self.image(name)
        # an axis of length 1 would be that of the channels: then it is a single image
        gray = axes is not None and channels_of(self.items[name].shape, axes) == 1
        return gray and dtype == np.uint8 and 1 not in (shape[0], shape[-1])

    def _convert(self, item: Input, value: np.ndarray, where: str) -> np.ndarray:
        axes = self.image(item.name)
        # a uint8 input takes pixels as they are: its graph scales them
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
        if not fits(expected, value.shape):
            raise DataError(
                "data-shape",
                f"{where}: {item.name!r} has shape {spell(value.shape)} per sample, "
                f"the model takes {spell(expected)}{_explain_layout(expected, value.shape)}",
            )
        for symbol, size in zip(expected, value.shape, strict=True):
            # anonymous sizes are unrelated to each other
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
    batch_axes: Mapping[str, int | str] | None = None,
    model: ModelView | None = None,
) -> Inputs:
    """Determine types, shapes and the batch axes of a model's inputs.

    Parameters
    ----------
    inputs
        name -> (shape, onnxruntime's type string such as "tensor(float)"), as in `Session.inputs`.
    preprocess
        Preprocessing of uint8 images.
    shapes
        name -> full shape, batch axis included, for dynamic sizes; -1 keeps a size of the model. A
        symbolic size that is fixed for one input is fixed for all.
    batch_axes
        name -> axis that counts samples, or "none"; "*" stands for all inputs. Axes of other inputs
        are derived.
    model
        Runs for a moment where names and sizes of the axes leave doubt which is the batch's.

    Raises
    ------
    UsageError
        An override names no input or contradicts the model.
    DataError
        An input is not a tensor of numbers.
    """
    declared: dict[str, Shape] = {n: tuple(map(dimension, s)) for n, (s, _) in inputs.items()}
    for name, (_, kind) in inputs.items():
        if kind not in TYPES:
            raise DataError(
                "data-type",
                f"input {name!r} is {kind}; data can only be given for tensors of float16/32/64, "
                "integers and bool",
            )
    sized = apply_overrides(declared, shapes or {})
    trial = None if model is None else partial(is_separable, model, sized)
    batch, axes = find_batch_axes(sized, batch_axes, trial)
    items = {n: Input(n, sized[n], np.dtype(TYPES[inputs[n][1]]), axes[n]) for n in inputs}
    return Inputs(items, batch, preprocess, model)


def _explain_layout(expected: Shape, shape: Sequence[int]) -> str:
    """Return what brings an image's channels to where the model has them, "" if that is no help."""
    if len(shape) != 3 or len(expected) != 3 or None in expected:
        return ""
    orders = {"last": (2, 0, 1), "first": (1, 2, 0)}
    for place, order in orders.items():
        # a square gray image fits in any order, but then no order is wrong
        if fits(expected, [shape[axis] for axis in order]):
            axes = ", ".join(str(axis + 1) for axis in order)
            return f"; its channels are {place}: store x.transpose(0, {axes})"
    return ""


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
        # Python integers compare exactly, whatever the two types
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
            names = ", ".join(map(repr, islice(given, MOST_NAMES))) or "none"
            if len(given) > MOST_NAMES:
                names += f" and {len(given) - MOST_NAMES} more"
            raise DataError(
                "data-names",
                f"{where}: no array for input {name!r}; its arrays: {names}; save each under the "
                f"name of its input: {', '.join(map(repr, expected))}",
            )
    for name in given:
        if name not in expected:
            near = difflib.get_close_matches(str(name), list(expected), 1)
            hint = f"the model takes {', '.join(map(repr, expected))}"
            if near:
                hint = f"did you mean {near[0]!r}?"
            raise DataError("data-names", f"{where}: {name!r} is not an input of the model; {hint}")
