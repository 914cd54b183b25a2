"""The protocol of a data source, and the choice of a source by its specification."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from onnxprune.data import DATA_SOURCES
from onnxprune.data.inputs import Inputs
from onnxprune.errors import DataError

ARRAY_SUFFIXES = (".npz", ".npy")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif")


class Source(Protocol):
    """Numbered samples that can be read in any order and repeatedly, with the same result."""

    @property
    def count(self) -> int:
        """Number of samples."""

    @property
    def sequential(self) -> bool:
        """Whether reading out of ascending order is much slower."""

    @property
    def checked(self) -> bool:
        """Whether every sample was already read once and fits the model."""

    @property
    def warning(self) -> str | None:
        """Warning for the user about these data, None if there is none."""

    def read(self, indices: Sequence[int]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield (origin for messages, arrays by input name without batch axis) per index.

        At most one sample is in memory.
        """
        ...

    def describe(self) -> str:
        """Return kind and location in one phrase for a report, such as "images in photos/"."""
        ...

    def digest(self, indices: Sequence[int]) -> str:
        """Return the hex sha256 of the stored content of these samples."""
        ...


def open_source(spec: str | Path | None, inputs: Inputs, samples: int, seed: int) -> Source:
    """Open the source that a specification names.

    Parameters
    ----------
    spec
        None for synthetic inputs; `NAME:LOCATION` with a registered name; otherwise a folder of
        images or of .npz/.npy files, one such file, or `FILE.py:FUNCTION`.

    Raises
    ------
    DataError
        The location does not exist, is empty, or is of an unknown kind.
    """
    kind, location = ("synthetic", "") if spec is None else parse_spec(str(spec))
    source: Source = DATA_SOURCES.get(kind)(location, inputs, samples, seed)
    return source


def parse_spec(spec: str) -> tuple[str, str]:
    """Return (registered name, location) of a specification.

    Raises
    ------
    DataError
        The specification matches no source.
    """
    if not spec:
        raise DataError(
            "data-missing",
            "the data specification is empty; pass a folder, a file, or FILE.py:FUNCTION",
        )
    path = Path(spec)
    # a file or folder of that name has precedence
    if spec in DATA_SOURCES and not path.exists():
        return spec, ""
    name, colon, rest = spec.partition(":")
    if colon and name in DATA_SOURCES and not path.exists():
        return name, rest
    # the name of the function is no part of the path
    if re.fullmatch(r".+\.py:\w+", spec):
        return "loader", spec
    if path.suffix == ".py":
        raise DataError(
            "data-loader", f"{spec}: name the function that yields feeds, as {spec}:FUNCTION"
        )
    if path.is_dir():
        return _detect_folder_kind(path), spec
    if not path.exists():
        raise DataError("data-missing", f"no data at {spec}: the file or folder does not exist")
    if path.suffix.lower() in ARRAY_SUFFIXES:
        return "arrays", spec
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return "images", spec
    raise DataError(
        "data-kind",
        f"{spec} is of an unknown kind; pass a folder of images, .npz, .npy, or FILE.py:FUNCTION",
    )


def find_files(folder: Path, suffixes: Sequence[str], *, below: bool) -> list[Path]:
    """Return files with these suffixes in a stable order, without hidden ones.

    Parameters
    ----------
    below
        Search subfolders as well.
    """
    files = []
    for place, folders, names in os.walk(folder):
        # in place, because os.walk descends into what remains in this list
        folders[:] = sorted(f for f in folders if below and not f.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and name.lower().endswith(tuple(suffixes)):
                files.append(Path(place, name))
    return files


def _detect_folder_kind(folder: Path) -> str:
    """Return "arrays" or "images" by the files in a folder."""
    arrays = bool(find_files(folder, ARRAY_SUFFIXES, below=False))
    images = bool(find_files(folder, IMAGE_SUFFIXES, below=True))
    if arrays and images:
        raise DataError(
            "data-kind",
            f"{folder} contains images and arrays; choose images:{folder} or arrays:{folder}",
        )
    if not arrays and not images:
        suffixes = ", ".join(s[1:] for s in IMAGE_SUFFIXES)
        raise DataError(
            "data-empty", f"{folder} contains no images ({suffixes}) and no .npz or .npy files"
        )
    return "arrays" if arrays else "images"
