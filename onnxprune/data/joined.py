"""Choice of the source by its specification, and several sources as one."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from glob import glob
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

from onnxprune.data import DATA_SOURCES
from onnxprune.data.inputs import Inputs
from onnxprune.data.sources import (
    ARRAY_SUFFIXES,
    IMAGE_SUFFIXES,
    PATTERN,
    Location,
    Source,
    parse_spec,
)
from onnxprune.errors import DataError

_MOST_DESCRIBED = 3  # sources in a description


def open_source(
    spec: str | Path | Sequence[str | Path] | None, inputs: Inputs, samples: int, seed: int
) -> Source:
    """Open the source that a specification names, or several as one.

    Parameters
    ----------
    spec
        None for synthetic inputs; `NAME:LOCATION` with a registered name; otherwise a folder of
        images or of .npz/.npy files, one such file, a pattern of names with `*`, or
        `FILE.py:FUNCTION`. Of a list, the samples follow each other.

    Raises
    ------
    DataError
        A location does not exist, is empty, or is of an unknown kind.
    """
    places = _join_images(check_locations(spec))
    sources: list[Source] = [
        DATA_SOURCES.get(kind)(location, inputs, samples, seed) for kind, location in places
    ]
    return sources[0] if len(sources) == 1 else Joined(sources)


def check_locations(
    spec: str | Path | Sequence[str | Path] | None,
) -> list[tuple[str, str]]:
    """Return (registered name, location) of all places that a specification names.

    Raises
    ------
    DataError
        One does not exist, is empty, or is of an unknown kind.
    """
    entries = [spec] if spec is None or isinstance(spec, str | Path) else list(spec)
    return [place for entry in entries for place in _expand(entry)]


class Joined:
    """Samples of several sources, one source after the other."""

    checked = False

    def __init__(self, parts: Sequence[Source]) -> None:
        self.parts = tuple(parts)
        self.starts = [0, *accumulate(part.count for part in parts)]
        self.count = self.starts[-1]
        self.sequential = any(part.sequential for part in parts)
        self.warning = next((part.warning for part in parts if part.warning), None)

    def read(self, indices: Sequence[int]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield samples; consecutive ones of one source are read together."""
        for part, own in self._divide(indices):
            yield from part.read(own)

    def find_unreadable(self, indices: Sequence[int]) -> dict[int, str]:
        """Return index -> reason of the samples that cannot be decoded."""
        reasons: dict[int, str] = {}
        for number, part in enumerate(self.parts):
            find = getattr(part, "find_unreadable", None)
            start, end = self.starts[number : number + 2]
            own = [index - start for index in indices if start <= index < end]
            found = find(own) if find else {}
            reasons |= {index + start: reason for index, reason in found.items()}
        return reasons

    def describe(self) -> str:
        """Return the descriptions of the first sources."""
        parts = [part.describe() for part in self.parts[:_MOST_DESCRIBED]]
        if len(self.parts) > _MOST_DESCRIBED:
            parts.append(f"{len(self.parts) - _MOST_DESCRIBED} more")
        return "; ".join(parts)

    def digest(self, indices: Sequence[int]) -> str:
        """Return the digest of the only sample, else that of the digests of all samples."""
        digests = self.digests(indices)
        # equal samples of two sources have equal digests, by which copies are found
        return (
            digests[0]
            if len(digests) == 1
            else hashlib.sha256("".join(digests).encode()).hexdigest()
        )

    def digests(self, indices: Sequence[int]) -> list[str]:
        """Return `digest` of each sample."""
        digests: list[str] = []
        for part, own in self._divide(indices):
            # sources whose samples are expensive to reach hash them in one pass
            together = getattr(part, "digests", None)
            digests += together(own) if together else [part.digest([index]) for index in own]
        return digests

    def _divide(self, indices: Sequence[int]) -> Iterator[tuple[Source, list[int]]]:
        """Yield (source, its own indices) of each run of indices in one source."""

        def find(index: int) -> int:
            return bisect_right(self.starts, index) - 1

        for number, run in groupby(indices, find):
            yield self.parts[number], [index - self.starts[number] for index in run]


def _expand(spec: str | Path | None) -> list[tuple[str, str]]:
    """Return (registered name, location) of a specification; several for a pattern of names."""
    if spec is None:
        return [("synthetic", "")]
    text = str(spec)
    # a file may have brackets in its name
    if not PATTERN.search(text) or Path(text).exists():
        return [parse_spec(text)]
    paths = sorted(glob(text, recursive=True))
    # a pattern such as photos/* matches other files as well, which a folder may hold, too
    known = [p for p in paths if p.lower().endswith((*ARRAY_SUFFIXES, *IMAGE_SUFFIXES))]
    if not paths:
        raise DataError("data-missing", f"no file matches the pattern {text}")
    return [parse_spec(path) for path in known or paths]


def _join_images(places: Sequence[tuple[str, str]]) -> list[tuple[str, Location]]:
    """Return the places with all image files as one, which is read as a folder of images is."""
    files = [path for kind, path in places if kind == "images" and Path(path).is_file()]
    if len(files) < 2:
        return list(places)
    others = [(kind, path) for kind, path in places if path not in set(files)]
    return [("images", files), *others]
