"""Where samples come from: the protocol of a data source, and which one a specification names."""

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
    """Numbered samples that can be read in any order, as often as asked, with the same result.

    count: samples there are; sequential: reading them out of ascending order is much slower; checked: every sample was already
    read once and fits the model; warning: what the user must know, or None.
    """

    @property
    def count(self) -> int: ...

    @property
    def sequential(self) -> bool: ...

    @property
    def checked(self) -> bool: ...

    @property
    def warning(self) -> str | None: ...

    def read(self, indices: Sequence[int]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """(where it comes from, one sample by input name without the batch axis) for each index; never more than one in memory."""
        ...

    def describe(self) -> str:
        """What and where, for one line of a report: "images in photos/"."""
        ...

    def digest(self, indices: Sequence[int]) -> str:
        """Hex sha256 of the content of these samples as it is stored."""
        ...


def open_source(spec: str | Path | None, inputs: Inputs, samples: int, seed: int) -> Source:
    """The source that `spec` names.

    None is synthetic; `NAME:LOCATION` asks the registry; else the path decides: a folder of images or of .npz/.npy, one such file,
    or `FILE.py:FUNCTION`.

    Raises
    ------
    DataError
        Nothing there, an empty folder, or a kind of file that is not known.
    """
    kind, location = ("synthetic", "") if spec is None else kind_of(str(spec))
    source: Source = DATA_SOURCES.get(kind)(location, inputs, samples, seed)
    return source


def kind_of(spec: str) -> tuple[str, str]:
    """(name in the registry, location) of a specification; DataError where it is none."""
    if not spec:
        raise DataError(
            "data-missing",
            "the name of the data is empty; give a folder, a file, or FILE.py:FUNCTION",
        )
    path = Path(spec)
    if spec in DATA_SOURCES and not path.exists():
        return spec, ""
    name, colon, rest = spec.partition(":")
    if colon and name in DATA_SOURCES and not path.exists():
        return name, rest
    if re.fullmatch(r".+\.py:\w+", spec):
        return "loader", spec
    if path.suffix == ".py":
        raise DataError(
            "data-loader", f"{spec}: name the function that yields feeds, as {spec}:FUNCTION"
        )
    if path.is_dir():
        return _folder_kind(path), spec
    if not path.exists():
        raise DataError("data-missing", f"no data at {spec}: the file or folder does not exist")
    if path.suffix.lower() in ARRAY_SUFFIXES:
        return "arrays", spec
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return "images", spec
    raise DataError(
        "data-kind",
        f"{spec}: not a kind of data that is known; give a folder of images, .npz, .npy, or FILE.py:FUNCTION",
    )


def find_files(folder: Path, suffixes: Sequence[str], *, below: bool) -> list[Path]:
    """Files of these suffixes in a stable order, hidden ones left out; `below`: subfolders too."""
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if below and not f.startswith("."))
        found += [
            Path(place, n)
            for n in sorted(names)
            if not n.startswith(".") and n.lower().endswith(tuple(suffixes))
        ]
    return found


def _folder_kind(folder: Path) -> str:
    arrays = bool(find_files(folder, ARRAY_SUFFIXES, below=False))
    images = bool(find_files(folder, IMAGE_SUFFIXES, below=True))
    if arrays and images:
        raise DataError(
            "data-kind",
            f"{folder} holds images and arrays; say which: images:{folder} or arrays:{folder}",
        )
    if not arrays and not images:
        raise DataError(
            "data-empty",
            f"{folder} holds no images ({', '.join(s[1:] for s in IMAGE_SUFFIXES)}) and no .npz or .npy",
        )
    return "arrays" if arrays else "images"
