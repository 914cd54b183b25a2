"""Held-out inputs of a report with the predictions of both models."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from onnxprune.report.record import ReportRecord, omitted, one, optional

_GOLDEN = 0.618033988749895  # of the hue circle: neighboring classes get distant hues


@dataclass(frozen=True, eq=False)
class Prediction(ReportRecord):
    """Prediction of one model for one input; parts that do not apply are empty.

    Attributes
    ----------
    classes
        [class, probability], the most probable first; of a mask, [class, share of the pixels].
    boxes
        [x1, y1, x2, y2, score, class] with corners as fractions of the input.
    picture
        Data URI of the mask to lay over the input, or of the image that the model returns.
    """

    classes: Sequence[Sequence[Any]] = omitted(())
    boxes: Sequence[Sequence[float]] = omitted(())
    picture: str = omitted("")


@dataclass(frozen=True, eq=False)
class Example(ReportRecord):
    """One held-out input with the predictions of both models.

    Attributes
    ----------
    name
        Where the input is in its source.
    kind
        "classes", "boxes", "mask", "image" or "" without a known prediction.
    input
        Name, shape and range of the input that the model gets.
    picture
        Data URI of the input, decoded back by the preprocessing; "" if it is not an image.
    size
        Width and height of the picture.
    note
        What differs from the input in the picture.
    label
        The true class, "" without.
    agreement
        How far both predictions agree, from 0 to 1.
    truth
        Labeled boxes, with a score of 1, or the labeled mask; empty without.
    """

    name: str
    kind: str = ""
    input: str = ""
    picture: str = ""
    size: Sequence[int] = (0, 0)
    note: str = omitted("")
    label: str = omitted("")
    agreement: float | None = omitted(None)
    before: Prediction = one(Prediction)
    after: Prediction = one(Prediction)
    truth: Prediction = optional(Prediction)


def class_color(index: int) -> tuple[int, int, int]:
    """Return the color of a class in masks and boxes, as red, green, blue of 0 to 255.

    >>> class_color(0)
    (230, 69, 69)
    """
    red, green, blue = colorsys.hsv_to_rgb(index * _GOLDEN % 1, 0.7, 0.9)
    return round(255 * red), round(255 * green), round(255 * blue)
