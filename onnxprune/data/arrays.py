"""Arrays in files as calibration data: one .npz or .npy file, or a folder of them."""

from __future__ import annotations

import contextlib
import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np

from onnxprune.data.inputs import Inputs, check_names
from onnxprune.data.npy import PieceReader, StoredArray, stored_arrays
from onnxprune.data.pieces import Pieces
from onnxprune.data.sources import ARRAY_SUFFIXES, list_files
from onnxprune.errors import DataError

LABELS = ("label", "labels", "target", "targets")  # arrays that are not inputs; ignored here
# names that stand for the only input of a model: of a .npy, np.savez without names, image sets
ALIASES = ("", "arr_0", "images")


@dataclass(frozen=True)
class StoredInput:
    """Samples of one input in a file.

    Attributes
    ----------
    array
        The array that holds them.
    pieces
        How it does.
    """

    array: StoredArray
    pieces: Pieces


@dataclass(frozen=True)
class SampleFile:
    """Samples that are stored together.

    Attributes
    ----------
    where
        File or folder, for messages.
    inputs
        Stored samples by input name.
    count
        Number of samples.
    """

    where: str
    inputs: Mapping[str, StoredInput]
    count: int


class ArrayFiles:
    """Samples in .npz and .npy files.

    Compressed .npz files are read as a stream, all others are memory-mapped.
    """

    checked = False
    warning = None

    def __init__(self, path: Path, files: Sequence[SampleFile]) -> None:
        self.path, self.files = path, tuple(files)
        self.starts = [0, *accumulate(f.count for f in files)]
        self.count = self.starts[-1]
        stored = [i.array for f in files for i in f.inputs.values()]
        # compressed arrays cannot be read from the middle
        self.sequential = any(array.start is None for array in stored)

    def read(self, indices: Sequence[int]) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        """Yield samples as they are stored; one file is open at a time."""
        current = -1
        readers: dict[str, PieceReader] = {}
        with contextlib.ExitStack() as stack:
            for index in indices:
                # the file whose range of indices holds this one
                number = bisect_right(self.starts, index) - 1
                file = self.files[number]
                if number != current:
                    stack.close()
                    current = number
                    readers = {
                        name: PieceReader(stored.array, stored.pieces)
                        for name, stored in file.inputs.items()
                    }
                    for reader in readers.values():
                        stack.callback(reader.close)
                row = index - self.starts[number]
                sample = {
                    name: readers[name].read(0 if stored.pieces.count is None else row)
                    for name, stored in file.inputs.items()
                }
                yield f"{file.where} sample {row}", sample

    def describe(self) -> str:
        """Return a phrase such as "arrays in calib.npz"."""
        return f"arrays in {self.path}"

    def digests(self, indices: Sequence[int]) -> list[str]:
        """Return `digest` of each sample, in one pass."""
        digests = []
        for _, sample in self.read(indices):
            state = hashlib.sha256()
            update_hash(state, sample)
            digests.append(state.hexdigest())
        return digests

    def digest(self, indices: Sequence[int]) -> str:
        """Return the hex sha256 of the samples' stored bytes in this order."""
        state = hashlib.sha256()
        for _, sample in self.read(indices):
            update_hash(state, sample)
        return state.hexdigest()


def update_hash(state: hashlib._Hash, sample: Mapping[str, np.ndarray]) -> None:
    """Add the content of a sample to a hash."""
    for name, array in sample.items():
        # equal bytes in another shape are another sample
        state.update(f"{name}{array.dtype}{array.shape}".encode())
        state.update(np.ascontiguousarray(array).tobytes())


def open_arrays(location: str, inputs: Inputs, samples: int, seed: int) -> ArrayFiles:
    """Open arrays.

    Parameters
    ----------
    location
        An .npz file with one array per input under its name (a model with one input also takes
        "arr_0" and "images"; labels are ignored); a .npy file for the only input of a model; or a
        folder: .npz files, each with a batch or a sample, .npy files, each with a batch or a sample
        of the only input, or one .npy file per input, named like it.
    samples, seed
        Not used: which samples are read is decided by the caller.

    Raises
    ------
    DataError
        The location does not exist or is empty, a file cannot be read, names or ranks do not fit
        the model, or the inputs have different numbers of samples.
    """
    path = Path(location)
    files = list_files(location, ARRAY_SUFFIXES, below=False)
    if len({f.suffix.lower() for f in files}) > 1:
        raise DataError(
            "data-kind", f"{location} contains .npy and .npz files; keep one kind per folder"
        )
    if files[0].suffix.lower() == ".npz":
        parts = [_open_file(inputs, stored_arrays(f), str(f)) for f in files]
    elif len(inputs.items) > 1:
        parts = [_open_file(inputs, {f.stem: stored_arrays(f)[""] for f in files}, location)]
    else:
        parts = [
            _open_file(inputs, stored_arrays(f), str(f))
            for f in files
            # a single file is the input, whatever its name
            if len(files) == 1 or f.stem not in LABELS
        ]
    source = ArrayFiles(path, parts)
    if source.count == 0:
        raise DataError("data-empty", f"the arrays in {location} have no samples")
    return source


def _open_file(inputs: Inputs, arrays: Mapping[str, StoredArray], where: str) -> SampleFile:
    """Return the samples in one file, or in one folder of files by input name."""
    given = {n: a for n, a in arrays.items() if n in inputs.items or n not in LABELS}
    # a single array with a generic name can only mean the single input
    if len(inputs.items) == len(given) == 1 and next(iter(given)) in ALIASES:
        given = dict(zip(inputs.items, given.values(), strict=True))
    check_names(given, inputs.items, where)
    stored = {}
    for name in inputs.items:
        array = given[name]
        pieces = inputs.pieces(name, array.shape, array.dtype, where)
        stored[name] = StoredInput(array, pieces)
    count = inputs.common_count({name: s.pieces for name, s in stored.items()}, where)
    return SampleFile(where, stored, count)
