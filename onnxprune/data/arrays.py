"""Arrays in files as calibration data: one .npz or .npy, or a folder of them."""

from __future__ import annotations

import contextlib
import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np

from onnxprune.data.inputs import Inputs, check_names, common_count
from onnxprune.data.npy import Pieces, Stored, stored_arrays
from onnxprune.data.sources import ARRAY_SUFFIXES, find_files
from onnxprune.errors import DataError

LABELS = ("label", "labels", "target", "targets")  # kept beside the inputs for metrics; no inputs
ALIASES = (
    "",
    "arr_0",
    "images",
)  # .npy, np.savez without a name, image sets: the one input of a model with one input


@dataclass(frozen=True)
class Field:
    """The samples of one input in a file: `count` pieces, or one that is the same for all (None)."""

    stored: Stored
    count: int | None
    piece: tuple[int, ...]


@dataclass(frozen=True)
class Part:
    """Samples that are stored together."""

    where: str
    fields: Mapping[str, Field]
    count: int


class Arrays:
    """Samples in .npz and .npy files. Compressed .npz are read as a stream, everything else is mapped."""

    checked = False
    warning = None

    def __init__(self, place: Path, parts: Sequence[Part]) -> None:
        self.place, self.parts = place, tuple(parts)
        self.starts = [0, *accumulate(p.count for p in parts)]
        self.count = self.starts[-1]
        self.sequential = any(f.stored.start is None for p in parts for f in p.fields.values())

    def read(self, indices: Sequence[int]) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        """Samples as they are stored; one file is open at a time."""
        current, opened = -1, {}
        with contextlib.ExitStack() as files:
            for index in indices:
                number = bisect_right(self.starts, index) - 1
                part = self.parts[number]
                if number != current:
                    files.close()
                    current, opened = (
                        number,
                        {
                            n: Pieces(f.stored, f.count or 1, f.piece)
                            for n, f in part.fields.items()
                        },
                    )
                    for pieces in opened.values():
                        files.callback(pieces.close)
                row = index - self.starts[number]
                sample = {
                    n: opened[n].read(0 if f.count is None else row) for n, f in part.fields.items()
                }
                yield f"{part.where} sample {row}", sample

    def describe(self) -> str:
        """ "arrays in calib.npz"."""
        return f"arrays in {self.place}"

    def digest(self, indices: Sequence[int]) -> str:
        """Of the samples' stored bytes in this order."""
        state = hashlib.sha256()
        for _, sample in self.read(indices):
            for name, array in sample.items():
                state.update(f"{name}{array.dtype}{array.shape}".encode())
                state.update(np.ascontiguousarray(array).tobytes())
        return state.hexdigest()


def open_arrays(location: str, inputs: Inputs, samples: int, seed: int) -> Arrays:
    """Arrays at `location`.

    .npz: one array for each input under its name ("arr_0" or "images" will do for a model with one input; "labels" and the like are left alone).
    .npy: the one input of a model. A folder: .npz files, each a batch or sample; .npy files, each a batch or sample of a model with one input,
    or one for each input, named as it is.

    Raises
    ------
    DataError
        Nothing there, a file that cannot be read, names or ranks that do not fit the model, different numbers of samples.
    """
    place = Path(location)
    if not place.exists():
        raise DataError("data-missing", f"no data at {location}: the file or folder does not exist")
    files = [place] if place.is_file() else find_files(place, ARRAY_SUFFIXES, below=False)
    if not files:
        raise DataError("data-empty", f"{location} holds no .npz or .npy")
    if len({f.suffix.lower() for f in files}) > 1:
        raise DataError(
            "data-kind", f"{location} holds .npy and .npz files; keep one kind in a folder"
        )
    if files[0].suffix.lower() == ".npz":
        parts = [_part(inputs, stored_arrays(f), str(f)) for f in files]
    elif len(inputs.items) > 1:
        parts = [_part(inputs, {f.stem: stored_arrays(f)[""] for f in files}, location)]
    else:
        parts = [
            _part(inputs, stored_arrays(f), str(f))
            for f in files
            if len(files) == 1 or f.stem not in LABELS
        ]
    source = Arrays(place, parts)
    if source.count == 0:
        raise DataError("data-empty", f"{location} holds arrays of no samples")
    return source


def _part(inputs: Inputs, arrays: Mapping[str, Stored], where: str) -> Part:
    """The samples in one file, or in one folder of files by input name."""
    given = {n: a for n, a in arrays.items() if n in inputs.items or n not in LABELS}
    if len(inputs.items) == len(given) == 1 and next(iter(given)) in ALIASES:
        given = dict(zip(inputs.items, given.values(), strict=False))
    check_names(given, inputs.items, where)
    fields = {
        n: Field(given[n], *inputs.pieces(n, given[n].shape, given[n].dtype, where))
        for n in inputs.items
    }
    return Part(where, fields, common_count({n: f.count for n, f in fields.items()}, where))
