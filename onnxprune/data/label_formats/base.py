"""What the formats of labels share: images with labels, and rows of boxes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from onnxprune.data.images import decode, find_defect
from onnxprune.data.inputs import Inputs
from onnxprune.data.preprocess import ImageAxes, channels_of
from onnxprune.errors import DataError, plural
from onnxprune.files import sha256

BOXES = "boxes"
_MOST_UNNAMED = 3  # files that a message names
Size = tuple[int, int]  # height and width of an image in pixels
Labels = Mapping[str, np.ndarray]


class LabeledSource(Protocol):
    """Numbered samples with labels."""

    count: int

    def read(self, index: int) -> tuple[str, Mapping[str, Any], Mapping[str, np.ndarray]]:
        """Return (origin for messages, arrays by input name, labels by name) of one sample.

        All arrays are without the batch axis.
        """

    def describe(self) -> str:
        """Return kind and location in one phrase for a report."""

    def digest(self) -> str:
        """Return a hex sha256 of the content."""


@dataclass(frozen=True)
class Format:
    """A row of the table of formats.

    Attributes
    ----------
    detects
        Whether a file or folder has this format; reads names of files, not their content.
    opens
        The source, given the path and the model's inputs.
    fallback
        Whether other formats that fit are preferred.
    """

    detects: Callable[[Path], bool]
    opens: Callable[[Path, Inputs], LabeledSource]
    fallback: bool = False


class LabeledImages:
    """Image files for a model with one image input, with labels.

    Parameters
    ----------
    what
        Description for a report.
    files
        Images.
    label
        (index, size of the decoded image) -> labels.
    origins
        Files that the labels are from.
    """

    def __init__(
        self,
        path: Path,
        inputs: Inputs,
        what: str,
        files: Sequence[Path],
        label: Callable[[int, Size], Labels],
        origins: Sequence[Path] = (),
    ) -> None:
        if not files:
            raise DataError("data-empty", f"{path} has no labeled images ({what})")
        missing = [file for file in files if not file.is_file()]
        if missing:
            named = ", ".join(map(str, missing[:_MOST_UNNAMED]))
            raise DataError(
                "labels-images",
                f"{path}: {len(missing)} of {plural(len(files), 'labeled image')} not found: "
                f"{named}; put the images into the data folder",
            )
        self.path, self.inputs, self.what = path, inputs, what
        self.files, self.label, self.origins = tuple(files), label, tuple(origins)
        self.count = len(self.files)
        self.name, self.channels = find_image_input(inputs, str(path))

    def read(self, index: int) -> tuple[str, Mapping[str, Any], Mapping[str, np.ndarray]]:
        """Return an image's pixels and its labels."""
        file = self.files[index]
        pixels = decode(file, self.channels)
        size = (int(pixels.shape[0]), int(pixels.shape[1]))
        return str(file), {self.name: pixels}, self.label(index, size)

    def find_unreadable(self, indices: Sequence[int]) -> dict[int, str]:
        """Return index -> reason of the images that no decoder can read to the end."""
        reasons = {index: find_defect(self.files[index]) for index in indices}
        return {i: f"{self.files[i]}: {reason}" for i, reason in reasons.items() if reason}

    def describe(self) -> str:
        """Return a phrase such as "images of 10 classes in val"."""
        return f"{self.what} in {self.path}"

    def digest(self) -> str:
        """Return the hex sha256 of all images and labels; computed once."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        lines = [f"{self.what}\n", *(f"{sha256(f)}\n" for f in (*self.files, *self.origins))]
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def box_rows(
    classes: Sequence[int] | np.ndarray,
    corners: Sequence[Sequence[float]] | np.ndarray,
    crowd: Sequence[float] | np.ndarray | None = None,
    area: Sequence[float] | np.ndarray | None = None,
) -> np.ndarray:
    """Return label rows (m, 8) of boxes as corners in fractions of the image.

    Raises
    ------
    ValueError
        A number is not finite.
    """
    count = len(classes)
    box = np.asarray(corners, np.float64).reshape(count, 4)
    center, side = (box[:, :2] + box[:, 2:]) / 2, box[:, 2:] - box[:, :2]
    more = [np.zeros(count) if v is None else np.asarray(v, np.float64) for v in (crowd, area)]
    kinds = np.asarray(classes, np.float64)
    rows = np.column_stack([np.zeros(count), kinds, center, side, *more])
    if not np.isfinite(rows).all():
        raise ValueError("a box is not finite")
    return rows


def find_image_inputs(inputs: Inputs) -> list[tuple[str, ImageAxes]]:
    """Return (name, axes) of the image inputs."""
    images = []
    for name in inputs.items:
        axes = inputs.image(name)
        if axes is not None:
            images.append((name, axes))
    return images


def find_image_input(inputs: Inputs, where: str) -> tuple[str, int]:
    """Return (name, channels) of the model's only input, which must be an image."""
    images = find_image_inputs(inputs)
    if len(inputs.items) != 1 or not images:
        raise DataError(
            "data-shape",
            f"{where}: images feed a model with one image input; this model takes "
            f"{', '.join(inputs.items)}; provide arrays by input name",
        )
    name, axes = images[0]
    return name, channels_of(inputs.items[name].shape, axes)
