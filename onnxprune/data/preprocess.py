"""Preprocessing of images to model inputs: geometry, color order, normalization, layout."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxprune.data.image_fit import PADDING, plan_fit
from onnxprune.data.presets import LETTERBOX
from onnxprune.errors import DataError, MissingExtraError, UsageError, plural, unknown
from onnxprune.ir.example_sizes import image_channel_axis

LAYOUTS = ("auto", "nchw", "nhwc")
ORDERS = ("rgb", "bgr")
# our name -> Pillow's filter
INTERPOLATIONS = {
    "nearest": "NEAREST",
    "bilinear": "BILINEAR",
    "bicubic": "BICUBIC",
    "area": "BOX",
}

Dims = Sequence[int | str | None]


@dataclass(frozen=True)
class Preprocess:
    """Conversion of 8-bit images to model inputs.

    The steps are resize, crop, color order, `(x * scale - mean) / std * post`, layout. The defaults
    stretch an image to the model's height and width and scale RGB pixels to 0..1. Pass the mean and
    std of the training: statistics of wrongly scaled inputs select the wrong channels.

    Parameters
    ----------
    resize
        (height, width) stretches; one number is the length of the shorter side and keeps the aspect
        ratio; "letterbox" keeps it too and pads with gray to the model's height and width; None
        takes the model's height and width (no resize where these are dynamic or `crop` is given).
    crop
        Center crop after the resize: (height, width), or one number for a square. With a one-number
        `resize` it defaults to the model's size.
    interp
        "nearest", "bilinear", "bicubic" or "area": Pillow's filters, which average when they reduce
        (cv2.INTER_LINEAR does not).
    scale, mean, std, post
        Numbers of the formula, in float32. `mean` and `std`: one number, or one per channel in the
        order of the model's channels (after `order`).
    order
        "rgb" or "bgr": the order of the model's color channels. The source is always read as RGB.
    layout
        "nchw", "nhwc", or "auto": NCHW if axis 1 of the input has 1, 3 or 4 channels (or is
        dynamic), else NHWC.
    preset
        Name of the preset that the numbers are from, for descriptions only.

    Raises
    ------
    UsageError
        A value is invalid.
    """

    resize: int | tuple[int, int] | str | None = None
    crop: int | tuple[int, int] | None = None
    interp: str = "bilinear"
    scale: float = 1 / 255
    mean: float | tuple[float, ...] = (0.0,)
    std: float | tuple[float, ...] = (1.0,)
    post: float = 1.0
    order: str = "rgb"
    layout: str = "auto"
    preset: str | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check the values and bring them to one form, so that equal settings compare equal."""
        for key, known in (("interp", INTERPOLATIONS), ("order", ORDERS), ("layout", LAYOUTS)):
            if getattr(self, key) not in known:
                raise unknown(key, str(getattr(self, key)), known)
        for key in ("resize", "crop"):
            # the class is frozen
            object.__setattr__(self, key, _parse_size(key, getattr(self, key)))
        if self.resize == LETTERBOX and self.crop is not None:
            raise UsageError(
                "preprocess-size",
                "preprocess: a letterbox shows entire images, so crop does not apply; omit it, or "
                "give another resize",
            )
        for key in ("scale", "mean", "std", "post"):
            numbers = _parse_numbers(key, getattr(self, key))
            if key in ("scale", "post") and len(numbers) != 1:
                raise UsageError(
                    "preprocess-number", f"preprocess: {key} is one number, not {len(numbers)}"
                )
            if key != "mean" and 0.0 in numbers:
                raise UsageError("preprocess-number", f"preprocess: {key} must not be 0")
            object.__setattr__(self, key, numbers if key in ("mean", "std") else numbers[0])

    def describe(self) -> str:
        """Return the settings in one line, resize and crop only if set."""
        keys = [key for key in ("resize", "crop") if getattr(self, key) is not None]
        keys += ["scale", "mean", "std", "post"]
        parts = [*(f"{key} {_spell(getattr(self, key))}" for key in keys), self.order]
        return ", ".join(parts) if self.preset is None else f"{self.preset}: {', '.join(parts)}"

    def normalize(self, pixels: np.ndarray) -> np.ndarray:
        """Apply the formula to 8-bit pixels.

        Parameters
        ----------
        pixels
            (..., channels), RGB.

        Returns
        -------
        np.ndarray
            float32 of the same shape.

        Raises
        ------
        UsageError
            `mean` or `std` has neither one number nor one per channel.
        """
        channels = pixels.shape[-1]
        x: np.ndarray = self.ordered(pixels).astype(np.float32)
        for key in ("mean", "std"):
            count = len(getattr(self, key))
            if count not in (1, channels):
                raise UsageError(
                    "preprocess-number",
                    f"preprocess: {key} has {plural(count, 'number')}, the image has "
                    f"{plural(channels, 'channel')}",
                )
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        x = (x * np.float32(self.scale) - mean) / std
        return np.asarray(x * np.float32(self.post), np.float32)

    def restore(self, values: np.ndarray) -> np.ndarray:
        """Return what `normalize` was applied to, not rounded and not limited to 0..255.

        Parameters
        ----------
        values
            (..., channels), in the model's channel order.

        Returns
        -------
        np.ndarray
            float32 of the same shape, RGB.
        """
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        x = np.asarray(values, np.float32) / np.float32(self.post) * std + mean
        # reversing the order of the channels undoes itself
        return self.ordered(np.asarray(x / np.float32(self.scale)))

    def ordered(self, pixels: np.ndarray) -> np.ndarray:
        """Return pixels (..., channels), RGB or RGBA, in the model's channel order."""
        # gray images have no order of channels
        if self.order == "rgb" or pixels.shape[-1] < 3:
            return pixels
        # alpha stays last
        return pixels[..., [2, 1, 0, *range(3, pixels.shape[-1])]]

    def keeps_numbers(self) -> bool:
        """Return whether scale, mean, std and post are the defaults."""
        keys = ("scale", "mean", "std", "post")
        return all(getattr(self, key) == getattr(DEFAULT, key) for key in keys)


@dataclass(frozen=True)
class ImageAxes:
    """Axes of an image input of rank 4 that hold its channels, height and width."""

    channels: int
    height: int
    width: int


def image_axes(shape: Dims, layout: str) -> ImageAxes | None:
    """Return the axes of an image input; None if `shape` (batch axis included) is not an image."""
    axis = image_channel_axis(shape, layout)
    if axis is None:
        return None
    return ImageAxes(1, 2, 3) if axis == 1 else ImageAxes(3, 1, 2)


def channels_of(shape: Dims, axes: ImageAxes) -> int:
    """Return the channels an image needs; 3 if the model leaves them open."""
    channels = shape[axes.channels]
    return channels if isinstance(channels, int) else 3


def channels_last(pixels: np.ndarray, channels: int, where: str) -> np.ndarray:
    """Return an 8-bit image with its channels last.

    Parameters
    ----------
    pixels
        (height, width[, channels]) or (channels, height, width).

    Raises
    ------
    DataError
        Neither the last nor the first axis has the model's channels.
    """
    if pixels.ndim == 2 and channels == 1:
        return pixels[..., None]
    # channels last is tried first: that is how images are decoded
    if pixels.ndim == 3 and pixels.shape[-1] == channels:
        return pixels
    if pixels.ndim == 3 and pixels.shape[0] == channels:
        return pixels.transpose(1, 2, 0)
    raise DataError(
        "data-shape",
        f"{where}: an image of shape {_spell(pixels.shape)} does not have the {channels} channels "
        "of the model's input; repeat gray images: numpy.stack([x] * 3, -1)",
    )


def image_input(
    pixels: np.ndarray, shape: Dims, dtype: np.dtype[Any], preprocess: Preprocess, where: str
) -> np.ndarray:
    """Return one sample of an image input.

    Parameters
    ----------
    pixels
        8-bit image (height, width, channels), RGB.
    shape, dtype
        Of the model's input, batch axis included.
    where
        Origin of the image, for messages.

    Raises
    ------
    DataError
        The size after resize and crop is not the model's, or the input is of another integer type.
    UsageError
        mean, std, scale or post are set for a uint8 input.
    """
    axes = image_axes(shape, preprocess.layout)
    if axes is None:
        raise DataError(
            "data-shape",
            f"{where}: the model's input {_spell(shape)} is not an image of 1, 3 or 4 channels in "
            f"layout {preprocess.layout}",
        )
    pixels = _fit(pixels, (shape[axes.height], shape[axes.width]), preprocess, where)
    if dtype.kind == "f":
        values = preprocess.normalize(pixels).astype(dtype)
    elif dtype != np.uint8:
        raise DataError(
            "data-dtype",
            f"{where}: images cannot feed an input of type {dtype}; use .npz or a loader",
        )
    elif not preprocess.keeps_numbers():
        raise UsageError(
            "preprocess-uint8",
            "the model takes uint8 images, so scale, mean, std and post do not apply; remove them",
        )
    else:
        values = preprocess.ordered(pixels)
    return values if axes.channels == 3 else values.transpose(2, 0, 1)


def _fit(
    pixels: np.ndarray,
    target: tuple[int | str | None, int | str | None],
    preprocess: Preprocess,
    where: str,
) -> np.ndarray:
    """Resize and crop to the model's size, as far as that is static."""
    given = (pixels.shape[0], pixels.shape[1])
    fit = plan_fit(given, target, preprocess.resize, preprocess.crop)
    pixels = _resize(pixels, fit.size, preprocess.interp)
    if min(fit.start) < 0 and preprocess.resize != LETTERBOX:
        raise DataError(
            "data-shape",
            f"{where}: {_spell(fit.size)} after resize is smaller than the crop "
            f"{_spell(fit.shown)}; set a larger resize",
        )
    pixels = fit.show(pixels, PADDING)
    known = [side if isinstance(side, int) else None for side in target]
    if any(side not in (None, actual) for side, actual in zip(known, fit.shown, strict=True)):
        raise DataError(
            "data-shape",
            f"{where}: resize and crop give {_spell(fit.shown)}, "
            f"the model takes {'x'.join(map(str, target))}",
        )
    return pixels


def _resize(pixels: np.ndarray, size: tuple[int, int], interp: str) -> np.ndarray:
    if pixels.shape[:2] == size:
        return pixels
    # Pillow has gray images without an axis of channels only
    gray = pixels.shape[-1] == 1
    image = pillow().fromarray(pixels[..., 0] if gray else np.ascontiguousarray(pixels))
    kernel = getattr(pillow().Resampling, INTERPOLATIONS[interp])
    # Pillow's sizes are width and height
    resized = np.asarray(image.resize((size[1], size[0]), kernel))
    return resized[..., None] if resized.ndim == 2 else resized


def pillow() -> Any:
    """Return the module PIL.Image.

    Raises
    ------
    MissingExtraError
        Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as problem:
        raise MissingExtraError("pillow", "images", "reading and resizing images") from problem
    return Image


def _parse_size(key: str, value: Any) -> int | tuple[int, int] | str | None:
    """Return a size as one number or (height, width)."""
    if value is None or (key == "resize" and value == LETTERBOX):
        return None if value is None else LETTERBOX
    sides: list[Any] = []
    if isinstance(value, int):
        sides = [value]
    elif isinstance(value, Sequence) and not isinstance(value, str):
        sides = list(value)
    # True is an int in Python
    valid = all(isinstance(s, int) and not isinstance(s, bool) and s > 0 for s in sides)
    if len(sides) not in (1, 2) or not valid:
        raise UsageError(
            "preprocess-size",
            f"preprocess: {key} is one positive integer or (height, width), not {value!r}",
        )
    return (sides[0], sides[1]) if len(sides) == 2 else sides[0]


def _parse_numbers(key: str, value: Any) -> tuple[float, ...]:
    """Return finite numbers as a tuple."""
    try:
        numbers = tuple(float(v) for v in np.atleast_1d(value))
    except (TypeError, ValueError):
        numbers = ()
    if not numbers or not all(math.isfinite(n) for n in numbers):
        raise UsageError(
            "preprocess-number",
            f"preprocess: {key} is a finite number or a list of them, not {value!r}",
        )
    return numbers


def _spell(value: Any) -> str:
    """Return numbers in short form, lists of numbers separated by spaces, sizes by x."""
    if not isinstance(value, (tuple, list)):
        return f"{value:.6g}" if isinstance(value, float) else str(value)
    separator = " " if any(isinstance(v, float) for v in value) else "x"
    return separator.join(map(_spell, value))


DEFAULT = Preprocess()
