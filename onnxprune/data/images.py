"""A folder of images as calibration data."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from onnxprune.data.input_shapes import spell
from onnxprune.data.inputs import Inputs
from onnxprune.data.preprocess import channels_of, image_input, pillow
from onnxprune.data.sources import IMAGE_SUFFIXES, Location, list_files
from onnxprune.errors import DataError, plural
from onnxprune.files import open_regular, sha256
from onnxprune.ir.file_kinds import is_pointer

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

    def __init__(self, place: str, files: Sequence[Path], inputs: Inputs, name: str) -> None:
        self.place, self.files, self.inputs, self.name = place, tuple(files), inputs, name
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

    def find_unreadable(self, indices: Sequence[int]) -> dict[int, str]:
        """Return index -> reason of the files that no decoder can read to the end."""
        reasons = {index: find_defect(self.files[index]) for index in indices}
        return {i: f"{self.files[i]}: {reason}" for i, reason in reasons.items() if reason}

    def describe(self) -> str:
        """Return a phrase such as "images in photos (mean 0, ...)"."""
        return f"images in {self.place} ({self.inputs.preprocess.describe()})"

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


def open_images(location: Location, inputs: Inputs, samples: int, seed: int) -> Images:
    """Open images.

    Parameters
    ----------
    location
        A folder, searched with its subfolders, one file, or a list of files.
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
    files = list_files(location, IMAGE_SUFFIXES, below=True)
    place = str(location)
    if not isinstance(location, str | Path):
        place = f"{files[0]} and {plural(len(files) - 1, 'other file')}"
    if len(inputs.items) != 1:
        names = ", ".join(map(repr, inputs.items))
        raise DataError(
            "data-names",
            f"{place}: images can only feed a model with one input, this model has {names}; "
            "use .npz or a loader",
        )
    name, item = next(iter(inputs.items.items()))
    if inputs.image(name) is None or item.shared:
        kind = f"{item.dtype} {spell(item.shape)}"
        raise DataError(
            "data-shape",
            f"{place}: input {name!r} ({kind}) is not an image of 1, 3 or 4 channels; "
            "use .npz or a loader, or set the layout",
        )
    return Images(place, files, inputs, name)


def find_defect(file: Path | BinaryIO) -> str:
    """Return why an image cannot be decoded, "" if it can; images that are too large can."""
    try:
        if isinstance(file, Path):
            open_regular(file).close()  # a named pipe would block the decoder
        with pillow().open(file) as image:
            if image.width * image.height <= MOST_PIXELS:
                # an eighth of the size takes a fraction of the time where the format allows it
                image.draft(image.mode, (image.width // 8, image.height // 8))
                image.load()
    except Exception as problem:  # Pillow's decoders raise many types on invalid files
        return _describe(problem, file)
    return ""


def _describe(problem: Exception, file: Path | BinaryIO) -> str:
    """Return the reason of a decoder's failure."""
    if isinstance(file, Path) and file.is_file() and is_pointer(file):
        return "it is a Git LFS pointer; fetch it: git lfs pull"
    # Pillow repeats the path
    text = str(problem).replace(f" {str(file)!r}", "")
    return getattr(problem, "strerror", None) or text or type(problem).__name__


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
        reason = _describe(problem, file)
        raise DataError("data-image", f"cannot read image {file}: {reason}") from problem
    if pixels is None:
        raise DataError(
            "data-image",
            f"{file} has pixels of mode {mode}, more than 8 bits per channel; "
            "save it with 8 bits or use .npz",
        )
    return pixels[..., None] if pixels.ndim == 2 else pixels


def decode_bytes(data: bytes, channels: int, where: str) -> np.ndarray:
    """Return the 8-bit pixels of an encoded image, (height, width, channels), RGB.

    Raises
    ------
    DataError
        The bytes are not an image, or one of more than 8 bits per channel.
    """
    try:
        return decode(io.BytesIO(data), channels)
    # the message of `decode` names its source, which is only a buffer here
    except DataError:
        raise DataError(
            "data-image", f"{where}: its {len(data)} bytes are not an 8-bit image"
        ) from None
