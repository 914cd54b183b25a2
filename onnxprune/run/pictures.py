"""Pictures of inputs, masks and images of a model, as data URIs of a page."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np

from onnxprune.data.inputs import Inputs
from onnxprune.data.preprocess import pillow
from onnxprune.report.example import class_color

MOST_SIDE = 272  # pixels of a picture; larger ones are shrunk
SMALL_SIDE = 64  # at most: without loss, because every pixel is visible
QUALITY = 75  # of JPEG
OPACITY = 150  # of a mask, of 255
OUTSIDE = 0.05  # share of the values beyond 0..255 above which a picture is stretched
STRETCHED = "after decoding, values are not within 0 to 255: shown stretched"


def restore_pixels(values: np.ndarray, inputs: Inputs, name: str) -> tuple[np.ndarray, str]:
    """Return the 8-bit pixels of one sample of an image input, and a note on their range.

    Parameters
    ----------
    values
        The sample, without the batch axis.

    Returns
    -------
    tuple
        uint8 (height, width, channels) of 1 or 3 channels, and "" or STRETCHED.
    """
    axes = inputs.image(name)
    assert axes is not None  # called for image inputs only
    # counted from the end, because a sample lacks the batch axis
    last = np.moveaxis(values, axes.channels - 4, -1)
    preprocess = inputs.preprocess
    pixels = preprocess.ordered(last) if last.dtype == np.uint8 else preprocess.restore(last)
    # alpha is no color
    pixels = pixels[..., :3] if pixels.shape[-1] == 4 else pixels
    return to_bytes(np.nan_to_num(np.asarray(pixels, np.float32)))


def to_bytes(pixels: np.ndarray) -> tuple[np.ndarray, str]:
    """Return pixels as uint8, stretched to 0..255 if many are outside, and a note if so."""
    # rounding errors of the formula are within half a step
    outside = ((pixels < -1) | (pixels > 256)).mean()
    note = ""
    if outside > OUTSIDE:
        low, high = np.percentile(pixels, [1, 99])
        pixels = (pixels - low) * (255 / max(high - low, 1e-6))
        note = STRETCHED
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8), note


def picture_size(pixels: np.ndarray) -> tuple[int, int]:
    """Return width and height of the picture of (height, width, ...)."""
    height, width = pixels.shape[:2]
    factor = min(1.0, MOST_SIDE / max(height, width))
    return max(1, round(width * factor)), max(1, round(height * factor))


def encode_picture(pixels: np.ndarray) -> str:
    """Return uint8 (height, width, 1 or 3) as a data URI."""
    image_module = pillow()
    gray = pixels.shape[-1] == 1
    image = image_module.fromarray(pixels[..., 0] if gray else np.ascontiguousarray(pixels))
    size = picture_size(pixels)
    if image.size != size:
        image = image.resize(size, image_module.Resampling.BOX)
    if max(size) <= SMALL_SIDE:
        return _encode(image, "PNG", optimize=True)
    return _encode(image, "JPEG", quality=QUALITY, optimize=True)


def encode_mask(classes: np.ndarray, size: tuple[int, int], ignored: int | None = None) -> str:
    """Return class indices (height, width) as a translucent data URI of that size.

    Parameters
    ----------
    ignored
        Class whose pixels are transparent.
    """
    image_module = pillow()
    image = image_module.fromarray((classes.astype(np.int64) % 256).astype(np.uint8), "L")
    # classes cannot be averaged
    image = image.resize(size, image_module.Resampling.NEAREST).convert("L")
    image = image_module.fromarray(np.asarray(image), "L").convert("P", palette=0)
    palette = [value for index in range(256) for value in class_color(index)]
    image.putpalette(palette)
    opacity = [0 if index == ignored else OPACITY for index in range(256)]
    return _encode(image, "PNG", optimize=True, transparency=bytes(opacity))


def _encode(image: Any, kind: str, **options: Any) -> str:
    """Return a Pillow image as a data URI."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
