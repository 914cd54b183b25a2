"""From an image to what a model takes: geometry, color order, numbers, layout."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.errors import DataError, MissingExtraError, UsageError, unknown

IMAGE_CHANNELS = (1, 3, 4)  # gray, color, color with alpha: other channel counts are feature maps
LAYOUTS = ("auto", "nchw", "nhwc")
ORDERS = ("rgb", "bgr")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "area")

Dims = Sequence[int | str | None]


@dataclass(frozen=True)
class Preprocess:
    """How 8-bit images become model inputs: resize, crop, color order, then `(x * scale - mean) / std * post`, then layout.

    The defaults stretch an image to the model's height and width and bring pixels to 0..1 in RGB. Give mean and std of the training
    where there were any: statistics that are taken on wrongly scaled inputs choose wrong channels.

    Parameters
    ----------
    resize
        (height, width) stretches; one number makes the shorter side that long and keeps the proportions;
        None takes the model's height and width (no resize where they are dynamic or where `crop` is given).
    crop
        Center crop after the resize: (height, width), or one number for a square. With a one-number `resize` it defaults to the model's size.
    interp
        "nearest", "bilinear", "bicubic" or "area"; Pillow's filters, which average when they reduce (cv2.INTER_LINEAR does not).
    scale, mean, std, post
        Numbers of the formula, in float32. `mean` and `std`: one number, or one a channel in the order of the model's channels (after `order`).
    order
        "rgb" or "bgr": the order of the model's color channels. The source is always taken as RGB.
    layout
        "nchw", "nhwc", or "auto": NCHW where axis 1 of the input has 1, 3 or 4 channels (or is dynamic), else NHWC.

    Raises
    ------
    UsageError
        A value makes no sense.
    """

    resize: int | tuple[int, int] | None = None
    crop: int | tuple[int, int] | None = None
    interp: str = "bilinear"
    scale: float = 1 / 255
    mean: float | tuple[float, ...] = (0.0,)
    std: float | tuple[float, ...] = (1.0,)
    post: float = 1.0
    order: str = "rgb"
    layout: str = "auto"

    def __post_init__(self) -> None:
        for key, known in (("interp", INTERPOLATIONS), ("order", ORDERS), ("layout", LAYOUTS)):
            if getattr(self, key) not in known:
                raise unknown(key, str(getattr(self, key)), known)
        for key in ("resize", "crop"):
            object.__setattr__(self, key, _size(key, getattr(self, key)))
        for key in ("scale", "mean", "std", "post"):
            numbers = _numbers(key, getattr(self, key))
            if key in ("scale", "post") and len(numbers) != 1:
                raise UsageError(
                    "preprocess-number", f"preprocess: {key} is one number, not {len(numbers)}"
                )
            if key != "mean" and 0.0 in numbers:
                raise UsageError("preprocess-number", f"preprocess: {key} must not be 0")
            object.__setattr__(self, key, numbers if key in ("mean", "std") else numbers[0])

    def describe(self) -> str:
        """The settings in one line, geometry only where it was asked for."""
        geometry = [
            f"{key} {_spell(getattr(self, key))}"
            for key in ("resize", "crop")
            if getattr(self, key) is not None
        ]
        numbers = [
            f"{key} {_spell(getattr(self, key))}" for key in ("scale", "mean", "std", "post")
        ]
        return ", ".join([*geometry, *numbers, self.order])

    def normalize(self, pixels: np.ndarray) -> np.ndarray:
        """The formula on 8-bit pixels whose last axis is the channels (RGB); float32 of the same shape.

        Raises
        ------
        UsageError
            `mean` or `std` has neither one number nor one a channel.
        """
        channels = pixels.shape[-1]
        x: np.ndarray = self.ordered(pixels).astype(np.float32)
        for key in ("mean", "std"):
            if len(getattr(self, key)) not in (1, channels):
                raise UsageError(
                    "preprocess-number",
                    f"preprocess: {key} has {len(getattr(self, key))} numbers, the image has {channels} channels",
                )
        x = (x * np.float32(self.scale) - np.asarray(self.mean, np.float32)) / np.asarray(
            self.std, np.float32
        )
        return np.asarray(x * np.float32(self.post), np.float32)

    def ordered(self, pixels: np.ndarray) -> np.ndarray:
        """Channels (last axis, RGB or RGBA) in the model's order; a view."""
        if self.order == "rgb" or pixels.shape[-1] < 3:
            return pixels
        return pixels[..., [2, 1, 0, *range(3, pixels.shape[-1])]]

    def keeps_numbers(self) -> bool:
        """Whether scale, mean, std and post are the defaults."""
        return (self.scale, self.mean, self.std, self.post) == (
            DEFAULT.scale,
            DEFAULT.mean,
            DEFAULT.std,
            DEFAULT.post,
        )


@dataclass(frozen=True)
class ImageAxes:
    """Where an image input of rank 4 has its channels, height and width."""

    channels: int
    height: int
    width: int


def image_axes(shape: Dims, layout: str) -> ImageAxes | None:
    """The axes of an image input; None where `shape` (batch axis included) is no image."""
    if len(shape) != 4:
        return None
    for name, axes in (("nchw", ImageAxes(1, 2, 3)), ("nhwc", ImageAxes(3, 1, 2))):
        channels = shape[axes.channels]
        if layout in ("auto", name) and (
            not isinstance(channels, int) or channels in IMAGE_CHANNELS
        ):
            return axes
    return None


def channels_of(shape: Dims, axes: ImageAxes) -> int:
    """Channels an image needs; 3 where the model leaves it open."""
    channels = shape[axes.channels]
    return channels if isinstance(channels, int) else 3


def channels_last(pixels: np.ndarray, channels: int, where: str) -> np.ndarray:
    """An 8-bit image (height, width[, channels]) or (channels, height, width) with its channels last.

    Raises
    ------
    DataError
        Neither the last nor the first axis has the model's channels.
    """
    if pixels.ndim == 2 and channels == 1:
        return pixels[..., None]
    if pixels.ndim == 3 and pixels.shape[-1] == channels:
        return pixels
    if pixels.ndim == 3 and pixels.shape[0] == channels:
        return pixels.transpose(1, 2, 0)
    raise DataError(
        "data-shape",
        f"{where}: an image of shape {_spell(pixels.shape)} does not have the {channels} channels of the model's input",
    )


def image_input(
    pixels: np.ndarray, shape: Dims, dtype: np.dtype[Any], preprocess: Preprocess, where: str
) -> np.ndarray:
    """One sample of an image input from 8-bit pixels.

    Parameters
    ----------
    pixels
        uint8 (height, width, channels), RGB.
    shape
        Of the model's input, rank 4 with the batch axis; height and width may be dynamic.
    dtype
        Of the model's input: floats get the formula, uint8 the pixels themselves.

    Returns
    -------
    ndarray of rank 3 in the model's layout.

    Raises
    ------
    DataError
        The size after resize and crop is not the model's, or the input is of another integer type.
    UsageError
        mean, std, scale or post are given for a uint8 input.
    """
    axes = image_axes(shape, preprocess.layout)
    if axes is None:
        layout = preprocess.layout
        raise DataError(
            "data-shape",
            f"{where}: the model's input {_spell(shape)} is not an image of 1, 3 or 4 channels in layout {layout}",
        )
    pixels = _fit(pixels, (shape[axes.height], shape[axes.width]), preprocess, where)
    if dtype.kind == "f":
        values = preprocess.normalize(pixels).astype(dtype)
    elif dtype != np.uint8:
        raise DataError(
            "data-dtype",
            f"{where}: images cannot feed an input of type {dtype}; give .npz or a loader",
        )
    elif not preprocess.keeps_numbers():
        raise UsageError(
            "preprocess-uint8",
            "the model takes uint8 images, so scale, mean, std and post do not apply: leave them out",
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
    """Resize and crop to the model's size, where it has one."""
    known = [side if isinstance(side, int) else None for side in target]
    resize, crop = preprocess.resize, preprocess.crop
    now = pixels.shape[:2]
    if isinstance(resize, int):
        short = min(now)
        size = (resize * now[0] // short, resize * now[1] // short)
    elif resize is not None:
        size = resize
    elif crop is None:
        size = (known[0] or now[0], known[1] or now[1])
    else:
        size = (now[0], now[1])
    pixels = _resize(pixels, size, preprocess.interp)
    if crop is not None:
        pixels = _crop(pixels, (crop, crop) if isinstance(crop, int) else crop, where)
    elif isinstance(resize, int):
        pixels = _crop(pixels, (known[0] or size[0], known[1] or size[1]), where)
    if any(
        want is not None and want != got for want, got in zip(known, pixels.shape, strict=False)
    ):
        got = "x".join(map(str, pixels.shape[:2]))
        raise DataError(
            "data-shape",
            f"{where}: resize and crop give {got}, the model takes {'x'.join(map(str, target))}",
        )
    return pixels


def _resize(pixels: np.ndarray, size: tuple[int, int], interp: str) -> np.ndarray:
    if pixels.shape[:2] == size:
        return pixels
    image = pillow().fromarray(
        pixels[..., 0] if pixels.shape[-1] == 1 else np.ascontiguousarray(pixels)
    )
    filters = pillow().Resampling
    name = {"nearest": "NEAREST", "bilinear": "BILINEAR", "bicubic": "BICUBIC", "area": "BOX"}[
        interp
    ]
    resized = np.asarray(image.resize((size[1], size[0]), getattr(filters, name)))
    return resized[..., None] if resized.ndim == 2 else resized


def _crop(pixels: np.ndarray, size: tuple[int, int], where: str) -> np.ndarray:
    """The center, as torchvision places it."""
    height, width = pixels.shape[:2]
    if size[0] > height or size[1] > width:
        raise DataError(
            "data-shape",
            f"{where}: {height}x{width} after resize is smaller than the crop {size[0]}x{size[1]}; give a larger resize",
        )
    top, left = round((height - size[0]) / 2), round((width - size[1]) / 2)
    return pixels[top : top + size[0], left : left + size[1]]


def pillow() -> Any:
    """The module PIL.Image; MissingExtraError where Pillow is not installed."""
    try:
        from PIL import Image
    except ImportError as problem:
        raise MissingExtraError("pillow", "images", "reading and resizing images") from problem
    return Image


def _size(key: str, value: Any) -> int | tuple[int, int] | None:
    if value is None:
        return None
    sides = (
        [value]
        if isinstance(value, int)
        else list(value)
        if isinstance(value, Sequence) and not isinstance(value, str)
        else []
    )
    if len(sides) not in (1, 2) or not all(
        isinstance(s, int) and not isinstance(s, bool) and s > 0 for s in sides
    ):
        raise UsageError(
            "preprocess-size",
            f"preprocess: {key} is one positive whole number or (height, width), not {value!r}",
        )
    return (sides[0], sides[1]) if len(sides) == 2 else sides[0]


def _numbers(key: str, value: Any) -> tuple[float, ...]:
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
    """Numbers short, lists of numbers with blanks, sizes with x."""
    if not isinstance(value, (tuple, list)):
        return f"{value:.6g}" if isinstance(value, float) else str(value)
    return (" " if any(isinstance(v, float) for v in value) else "x").join(map(_spell, value))


DEFAULT = Preprocess()
