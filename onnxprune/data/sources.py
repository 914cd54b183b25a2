"""The protocol of a data source, the kinds of specifications, and the files in a folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from glob import glob
from pathlib import Path
from typing import Any, Protocol

from onnxprune.data import DATA_SOURCES
from onnxprune.errors import DataError
from onnxprune.ir.file_kinds import is_address, is_pointer

ARRAY_SUFFIXES = (".npz", ".npy")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif")

Location = str | Path | Sequence[str | Path]  # a file, a folder, or files
PATTERN = re.compile(r"[*?\[]")


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


def is_data_path(word: str) -> bool:
    """Return whether a word can only name data: by the suffix of arrays or images, or a folder."""
    return word.lower().endswith((*ARRAY_SUFFIXES, *IMAGE_SUFFIXES)) or os.path.isdir(word)


def has_end(spec: str | Sequence[str]) -> bool:
    """Return whether a specification names files only: generated inputs may have no end."""
    entries = [spec] if isinstance(spec, str) else spec
    return all(os.path.exists(entry) or glob(entry) for entry in entries)


def list_files(location: Location, suffixes: Sequence[str], *, below: bool) -> list[Path]:
    """Return the files of a location: itself, those of a list, or those in a folder.

    Raises
    ------
    DataError
        It does not exist, or is a folder without such a file.
    """
    if not isinstance(location, str | Path):
        return list(map(Path, location))
    path = Path(location)
    if not path.exists():
        raise DataError("data-missing", f"no data at {location}: the file or folder does not exist")
    files = [path] if path.is_file() else find_files(path, suffixes, below=below)
    if not files:
        names = ", ".join(suffix[1:] for suffix in suffixes)
        kind = "arrays" if suffixes is ARRAY_SUFFIXES else "images"
        raise DataError("data-empty", f"{location} contains no {kind} ({names})")
    return files


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
        if is_address(spec):
            raise DataError(
                "data-missing", f"{spec} is an address: download the data, and pass their path"
            )
        raise DataError("data-missing", f"no data at {spec}: the file or folder does not exist")
    if is_pointer(path):
        raise DataError("data-unreadable", f"{spec} is a Git LFS pointer; fetch it: git lfs pull")
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
