"""A folder of images as calibration data."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from onnxprune.data.input_shapes import spell
from onnxprune.data.inputs import Inputs
from onnxprune.data.preprocess import channels_of, image_input, pillow
from onnxprune.data.sources import IMAGE_SUFFIXES, find_files
from onnxprune.errors import DataError
from onnxprune.files import open_regular, sha256

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's mode by number of channels
MOST_PIXELS = 8192 * 8192  # of an image; three copies of it exist while it is converted
EIGHT_BIT_MODES = tuple("1 L LA La P PA RGB RGBA RGBa RGBX CMYK YCbCr LAB HSV".split())


class Images:
    """Image files for the only image input of a model.

    Each is decoded when it is read. Rotation tags (EXIF) are not applied, as in common training
    pipelines.
    """

    sequential = False
    checked = False
    warning = None

    def __init__(self, path: Path, files: Sequence[Path], inputs: Inputs, name: str) -> None:
        self.path, self.files, self.inputs, self.name = path, tuple(files), inputs, name
        self.count = len(self.files)

    def read(self, indices: Sequence[int]) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        """Yield decoded, preprocessed samples."""
        item, axes = self.inputs.items[self.name], self.inputs.image(self.name)
        assert axes is not None  # open_images chose an image input
        channels = channels_of(item.shape, axes)
        for index in indices:
            where = str(self.files[index])
            pixels = decode(self.files[index], channels)
            value = image_input(pixels, item.shape, item.dtype, self.inputs.preprocess, where)
            yield where, {self.name: value}

    def describe(self) -> str:
        """Return a phrase such as "images in photos (mean 0, ...)"."""
        return f"images in {self.path} ({self.inputs.preprocess.describe()})"

    def digest(self, indices: Sequence[int]) -> str:
        """Return the hex sha256 of the files' bytes in this order."""
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
    """Open images.

    Parameters
    ----------
    location
        A folder, searched with its subfolders, or one file.
    samples, seed
        Not used: which samples are read is decided by the caller.

    Raises
    ------
    DataError
        There are no images, or the model does not have exactly one input that is an image.
    MissingExtraError
        Pillow is not installed.
    """
    pillow()
    path = Path(location)
    if not path.exists():
        raise DataError("data-missing", f"no data at {location}: the file or folder does not exist")
    files = [path] if path.is_file() else find_files(path, IMAGE_SUFFIXES, below=True)
    if not files:
        suffixes = ", ".join(s[1:] for s in IMAGE_SUFFIXES)
        raise DataError("data-empty", f"{location} contains no images ({suffixes})")
    if len(inputs.items) != 1:
        names = ", ".join(map(repr, inputs.items))
        raise DataError(
            "data-names",
            f"{location}: images can only feed a model with one input, this model has {names}; "
            "use .npz or a loader",
        )
    name, item = next(iter(inputs.items.items()))
    if inputs.image(name) is None or item.shared:
        kind = f"{item.dtype} {spell(item.shape)}"
        raise DataError(
            "data-shape",
            f"{location}: input {name!r} ({kind}) is not an image of 1, 3 or 4 channels; "
            "use .npz or a loader, or set the layout",
        )
    return Images(path, files, inputs, name)


def decode(file: Path | BinaryIO, channels: int) -> np.ndarray:
    """Return the 8-bit pixels of an image, (height, width, channels), RGB.

    Raises
    ------
    DataError
        The file is not an image, is truncated, is too large, or has more than 8 bits per channel.
    """
    image_module = pillow()
    try:
        if isinstance(file, Path):
            open_regular(file).close()  # a named pipe would block the decoder
        with image_module.open(file) as image:
            mode, size = image.mode, image.size
            # known before anything is decoded
            if size[0] * size[1] > MOST_PIXELS:
                raise ValueError(
                    f"{size[0]} x {size[1]} pixels exceed the limit of {MOST_PIXELS}; shrink it"
                )
            if mode != MODES[channels] and mode in EIGHT_BIT_MODES:
                image = image.convert(MODES[channels])
            pixels = np.asarray(image) if mode in EIGHT_BIT_MODES else None
    except Exception as problem:  # Pillow's decoders raise many types on invalid files
        reason = getattr(problem, "strerror", None) or str(problem) or type(problem).__name__
        raise DataError("data-image", f"cannot read image {file}: {reason}") from problem
    if pixels is None:
        raise DataError(
            "data-image",
            f"{file} has pixels of mode {mode}, more than 8 bits per channel; "
            "save it with 8 bits or use .npz",
        )
    return pixels[..., None] if pixels.ndim == 2 else pixels
