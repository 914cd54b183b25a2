"""Geometry of images: resize, crop and letterbox."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from onnxprune.data.presets import LETTERBOX

PADDING = 114  # gray, with which detectors of the YOLO family are trained
STRIDE = 32  # of these detectors: dynamic sides are padded to multiples of it


class Fit(NamedTuple):
    """How an image gets the model's height and width.

    Attributes
    ----------
    size
        Height and width that it is resized to.
    start
        Row and column of the resized image at which the part that the model sees begins; negative
        if it is padded.
    shown
        Height and width of that part.
    """

    size: tuple[int, int]
    start: tuple[int, int]
    shown: tuple[int, int]

    def show(self, pixels: np.ndarray, padding: int) -> np.ndarray:
        """Return the part of an image (height, width, ...) that the model sees.

        Parameters
        ----------
        pixels
            Of any size; `start` and `shown` are scaled to it.
        padding
            Value beyond the edges.
        """
        own = pixels.shape[:2]
        scales = [side / size for side, size in zip(own, self.size, strict=True)]
        starts = [round(start * scale) for start, scale in zip(self.start, scales, strict=True)]
        sides = [
            round((start + shown) * scale) - first
            for start, shown, scale, first in zip(
                self.start, self.shown, scales, starts, strict=True
            )
        ]
        inner = tuple(
            slice(max(first, 0), min(first + side, length))
            for first, side, length in zip(starts, sides, own, strict=True)
        )
        part = pixels[inner]
        if part.shape[:2] == tuple(sides):
            return part
        canvas = np.full((*sides, *pixels.shape[2:]), padding, pixels.dtype)
        top, left = (place.start - first for place, first in zip(inner, starts, strict=True))
        canvas[top : top + part.shape[0], left : left + part.shape[1]] = part
        return canvas


def plan_fit(
    given: tuple[int, int],
    target: tuple[int | str | None, int | str | None],
    resize: int | tuple[int, int] | str | None,
    crop: int | tuple[int, int] | None,
) -> Fit:
    """Return how an image is resized, and which part of it the model sees.

    Parameters
    ----------
    given, target
        Height and width of the image, and of the model's input.
    resize, crop
        As in `Preprocess`.
    """
    known = [side if isinstance(side, int) else None for side in target]
    height, width = given
    if resize == LETTERBOX:
        return _plan_letterbox(given, known)
    if isinstance(resize, int):
        # rounded down, as torchvision's Resize does
        short = min(height, width)
        size = (resize * height // short, resize * width // short)
    elif isinstance(resize, tuple):
        size = resize
    # neither is given: straight to the model's size, whatever the aspect ratio
    elif crop is None:
        size = (known[0] or height, known[1] or width)
    else:
        size = (height, width)
    shown = size
    if crop is not None:
        shown = (crop, crop) if isinstance(crop, int) else crop
    # a one-number resize keeps the aspect ratio, so the excess is cropped as well
    elif isinstance(resize, int):
        shown = (known[0] or size[0], known[1] or size[1])
    # the center, positioned as in torchvision
    start = (round((size[0] - shown[0]) / 2), round((size[1] - shown[1]) / 2))
    return Fit(size, start, shown)


def _plan_letterbox(given: tuple[int, int], known: Sequence[int | None]) -> Fit:
    """Return the largest size of the same aspect ratio, in the middle of the model's."""
    pairs = zip(given, known, strict=True)
    ratio = min((side / own for own, side in pairs if side is not None), default=1.0)
    height, width = (max(1, round(own * ratio)) for own in given)
    rows, columns = (
        side or -(-own // STRIDE) * STRIDE for own, side in zip((height, width), known, strict=True)
    )
    # as in ultralytics: an odd row or column of padding is below or at the right
    start = (-round((rows - height) / 2 - 0.1), -round((columns - width) / 2 - 0.1))
    return Fit((height, width), start, (rows, columns))
