"""A folder of images as calibration data."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from onnxprune.data.inputs import Inputs, spell
from onnxprune.data.preprocess import channels_of, image_input, pillow
from onnxprune.data.sources import IMAGE_SUFFIXES, find_files
from onnxprune.errors import DataError
from onnxprune.files import sha256

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's name for so many channels
EIGHT_BIT_MODES = (
    "1",
    "L",
    "LA",
    "La",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBa",
    "RGBX",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
)


class Images:
    """Image files for the one image input of a model. Rotation tags (EXIF) are not applied, as in common training pipelines.

    Each is decoded when it is read; the same file always gives the same values.
    """

    sequential = False
    checked = False
    warning = None

    def __init__(self, place: Path, files: Sequence[Path], inputs: Inputs, name: str) -> None:
        self.place, self.files, self.inputs, self.name = place, tuple(files), inputs, name
        self.count = len(self.files)

    def read(self, indices: Sequence[int]) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        """Decoded, preprocessed samples."""
        item, axes = self.inputs.items[self.name], self.inputs.image(self.name)
        assert axes is not None  # open_images chose an image input
        channels = channels_of(item.shape, axes)
        for index in indices:
            where = str(self.files[index])
            pixels = decode(self.files[index], channels)
            yield (
                where,
                {
                    self.name: image_input(
                        pixels, item.shape, item.dtype, self.inputs.preprocess, where
                    )
                },
            )

    def describe(self) -> str:
        """ "images in photos (mean 0, ...)"."""
        return f"images in {self.place} ({self.inputs.preprocess.describe()})"

    def digest(self, indices: Sequence[int]) -> str:
        """Of the files' bytes in this order."""
        state = hashlib.sha256()
        for index in indices:
            try:
                state.update(sha256(self.files[index]).encode())
            except OSError as problem:
                raise DataError(
                    "data-unreadable", f"cannot read {self.files[index]}: {problem.strerror}"
                ) from problem
        return state.hexdigest()


def open_images(location: str, inputs: Inputs, samples: int, seed: int) -> Images:
    """Images at `location`: a folder with its subfolders, or one file.

    Raises
    ------
    DataError
        No images there, or the model does not have exactly one input and that an image.
    MissingExtraError
        Pillow is not installed.
    """
    pillow()
    place = Path(location)
    if not place.exists():
        raise DataError("data-missing", f"no data at {location}: the file or folder does not exist")
    files = [place] if place.is_file() else find_files(place, IMAGE_SUFFIXES, below=True)
    if not files:
        raise DataError(
            "data-empty", f"{location} holds no images ({', '.join(s[1:] for s in IMAGE_SUFFIXES)})"
        )
    if len(inputs.items) != 1:
        names = ", ".join(map(repr, inputs.items))
        raise DataError(
            "data-names",
            f"{location}: images feed models with one input, this one has {names}; give .npz or a loader",
        )
    name, item = next(iter(inputs.items.items()))
    if inputs.image(name) is None or item.shared:
        kind = f"{item.dtype} {spell(item.shape)}"
        raise DataError(
            "data-shape",
            f"{location}: input {name!r} ({kind}) is no image of 1, 3 or 4 channels; give .npz or a loader, or set the layout",
        )
    return Images(place, files, inputs, name)


def decode(file: Path, channels: int) -> np.ndarray:
    """The 8-bit pixels of an image file, (height, width, channels), RGB.

    Raises
    ------
    DataError
        The file is no image, is truncated, or has more than 8 bits a channel.
    """
    image_module = pillow()
    try:
        with image_module.open(file) as image:
            mode = image.mode
            pixels = np.asarray(image.convert(MODES[channels])) if mode in EIGHT_BIT_MODES else None
    except Exception as problem:  # decoders raise what they like on broken files
        raise DataError(
            "data-image", f"cannot read image {file}: {problem or type(problem).__name__}"
        ) from problem
    if pixels is None:
        raise DataError(
            "data-image",
            f"{file} has pixels of mode {mode}, more than 8 bits a channel; save it with 8 bits or give .npz",
        )
    return pixels[..., None] if pixels.ndim == 2 else pixels
