"""Boxes and masks of an image after its resize and crop, and the size of the original image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from onnxprune.data.image_fit import Fit, plan_fit
from onnxprune.data.inputs import Inputs
from onnxprune.data.label_formats.base import BOXES, find_image_inputs
from onnxprune.data.label_formats.masks import IGNORED
from onnxprune.data.preprocess import channels_last, channels_of

IMAGE_SIZE = "image_size"  # label that is added to boxes: height and width of the original image
MASKS = "masks"


class Region(NamedTuple):
    """What the model sees of an image, as fractions of its height and width.

    Below 0 and above 1 it is padding.
    """

    top: float
    left: float
    bottom: float
    right: float


def follow_image(
    labels: Mapping[str, np.ndarray], raw: Mapping[str, Any], inputs: Inputs, where: str
) -> dict[str, np.ndarray]:
    """Return labels of what the model sees of an image.

    Boxes are clipped to a crop, and those outside are left out; masks are cropped. Of a letterbox,
    boxes are fractions of the padded image, and masks are padded with the class that is not scored.
    A resize changes neither: boxes are fractions, and masks have the size of the image. Boxes get
    the label IMAGE_SIZE: height and width, in pixels of the original, of what the model sees.

    Parameters
    ----------
    labels, raw
        Of one sample, from its source.
    where
        Origin of the sample, for messages.
    """
    result = dict(labels)
    size = _find_size(raw, inputs, where)
    if size is None:
        return result
    fit = _find_fit(size, inputs)
    region = _find_region(fit)
    height, width = size
    if region is not None and MASKS in labels and labels[MASKS].shape == size:
        result[MASKS] = fit.show(labels[MASKS], IGNORED)
    if BOXES not in labels:
        return result
    if region is not None:
        result[BOXES] = _clip(np.asarray(labels[BOXES], np.float64), region)
        height = round((region.bottom - region.top) * height)
        width = round((region.right - region.left) * width)
    result.setdefault(IMAGE_SIZE, np.array([height, width]))
    return result


def _find_size(raw: Mapping[str, Any], inputs: Inputs, where: str) -> tuple[int, int] | None:
    """Return height and width of the only image, None if the sample has no pixels."""
    images = find_image_inputs(inputs)
    if len(images) != 1:
        return None
    name, axes = images[0]
    pixels = np.asarray(raw[name])
    if pixels.dtype != np.uint8 or inputs.items[name].dtype.kind != "f":
        return None
    shape = channels_last(pixels, channels_of(inputs.items[name].shape, axes), where).shape
    return int(shape[0]), int(shape[1])


def _find_fit(size: tuple[int, int], inputs: Inputs) -> Fit:
    """Return how an image of a size gets that of the only image input."""
    name, axes = find_image_inputs(inputs)[0]
    shape = inputs.items[name].shape
    chosen = inputs.preprocess
    return plan_fit(size, (shape[axes.height], shape[axes.width]), chosen.resize, chosen.crop)


def _find_region(fit: Fit) -> Region | None:
    """Return what the model sees of an image, None for exactly all of it."""
    if fit.shown == fit.size:
        return None
    (top, left), (height, width) = fit.start, fit.size
    rows, columns = fit.shown
    return Region(top / height, left / width, (top + rows) / height, (left + columns) / width)


def _clip(boxes: np.ndarray, region: Region) -> np.ndarray:
    """Return the boxes inside a region, as fractions of it."""
    start = np.array([region.left, region.top])
    scale = np.array([region.right, region.bottom]) - start
    low = np.clip((boxes[:, 2:4] - boxes[:, 4:6] / 2 - start) / scale, 0, 1)
    high = np.clip((boxes[:, 2:4] + boxes[:, 4:6] / 2 - start) / scale, 0, 1)
    result = boxes.copy()
    result[:, 2:4], result[:, 4:6] = (low + high) / 2, high - low
    if boxes.shape[1] > 7:
        # of a box that is cut, the area of the object is not known
        cut = np.abs(result[:, 4:6] * scale - boxes[:, 4:6]).max(1, initial=0.0) > 1e-9
        result[:, 7] = np.where(cut, 0.0, boxes[:, 7])
    return result[(result[:, 4:6] > 0).all(1)]
