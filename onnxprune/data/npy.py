"""Arrays in .npy and .npz files, read piece by piece: mapped where they are stored plainly, streamed where they are compressed."""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from onnxprune.errors import DataError

ZIP_LOCAL_HEADER_BYTES = (
    30  # fixed part; lengths of name and extra field are at offset 26 (zip APPNOTE 4.3.7)
)


@dataclass(frozen=True)
class Stored:
    """One array in a file, not read yet.

    member: its name in the .npz, "" for .npy; start: offset of the values in the file, or None where they are compressed;
    skip: offset of the values in the member.
    """

    path: Path
    member: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    start: int | None
    skip: int

    @property
    def where(self) -> str:
        """For messages."""
        return (
            f"{self.path}: {self.member.removesuffix('.npy')!r}" if self.member else str(self.path)
        )


def stored_arrays(path: Path) -> dict[str, Stored]:
    """Array name ("" in a .npy) -> where it is; only headers are read.

    Raises
    ------
    DataError
        The file is none of these, is truncated, or holds Python objects.
    """
    try:
        if path.suffix.lower() == ".npy":
            with open(path, "rb") as file:
                return {"": _header(path, "", file, 0, path.stat().st_size)}
        found = {}
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if info.filename.endswith(".npy"):
                    with archive.open(info) as member:
                        found[info.filename.removesuffix(".npy")] = _header(
                            path, info.filename, member, _member_start(path, info), info.file_size
                        )
        return found
    except Exception as problem:  # zipfile, its decoders and numpy raise many kinds on broken files
        raise _unreadable(path, problem) from problem


class Pieces:
    """`count` equal pieces of an array, in C order, each read when asked for."""

    def __init__(self, stored: Stored, count: int, piece: Sequence[int]) -> None:
        self.stored, self.piece = stored, tuple(piece)
        self._archive: zipfile.ZipFile | None = None
        self._member: IO[bytes] | None = None
        self._mapped: np.ndarray | None = None
        try:
            if stored.start is None:
                self._archive = zipfile.ZipFile(stored.path)
                self._member = self._archive.open(stored.member)
            else:
                order: Any = "F" if stored.fortran else "C"
                mapped = np.memmap(
                    stored.path, stored.dtype, "r", stored.start, stored.shape or (1,), order
                )
                self._mapped = (
                    mapped
                    if (count, *self.piece) == stored.shape
                    else mapped.reshape((count, *self.piece))
                )
        except Exception as problem:  # as in stored_arrays
            self.close()
            raise _unreadable(stored.path, problem) from problem

    def read(self, index: int) -> np.ndarray:
        """Piece `index`, a copy; going backwards in a compressed array starts it anew."""
        if self._mapped is not None:
            return np.array(self._mapped[index])
        assert self._member is not None  # one of both is open
        size = math.prod(self.piece) * self.stored.dtype.itemsize
        try:
            self._member.seek(self.stored.skip + index * size)
            data = self._member.read(size)
            return np.frombuffer(data, self.stored.dtype).reshape(self.piece)
        except Exception as problem:  # as in stored_arrays
            raise _unreadable(self.stored.path, problem) from problem

    def close(self) -> None:
        """Free the file."""
        self._mapped = None
        for handle in (self._member, self._archive):
            if handle is not None:
                handle.close()


def _header(path: Path, member: str, file: IO[bytes], start: int | None, length: int) -> Stored:
    """From the first bytes of an array; `start`: where the member begins in the file, `length`: its bytes."""
    version = np.lib.format.read_magic(file)
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, fortran, dtype = read(file)
    skip = file.tell()
    if any(size < 0 for size in shape):
        raise ValueError(f"negative size in shape {shape}")
    if dtype.hasobject:
        raise DataError(
            "data-unreadable",
            f"{path}{f': {member!r}' if member else ''} holds Python objects, which are not read; save plain arrays",
        )
    needed = skip + math.prod(shape) * dtype.itemsize
    if needed > length:
        raise DataError(
            "data-unreadable",
            f"{path} is truncated: {member or 'the array'} needs {needed} bytes and has {length}",
        )
    if fortran and start is None and len(shape) > 1:
        raise DataError(
            "data-unreadable",
            f"{path}: {member!r} is compressed in Fortran order and cannot be read in parts; save np.ascontiguousarray of it",
        )
    return Stored(
        path, member, tuple(shape), dtype, fortran, None if start is None else start + skip, skip
    )


def _member_start(path: Path, info: zipfile.ZipInfo) -> int | None:
    """Where the bytes of a plainly stored member begin; None where they are compressed or encrypted."""
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        return None
    with open(path, "rb") as file:
        file.seek(info.header_offset)
        name, extra = struct.unpack("<HH", file.read(ZIP_LOCAL_HEADER_BYTES)[26:30])
    return info.header_offset + ZIP_LOCAL_HEADER_BYTES + int(name) + int(extra)


def _unreadable(path: Path, problem: BaseException) -> DataError:
    if isinstance(problem, DataError):
        return problem
    reason = (
        isinstance(problem, OSError)
        and problem.strerror
        or str(problem).strip()
        or type(problem).__name__
    )
    return DataError("data-unreadable", f"cannot read {path}: {reason.splitlines()[0]}")
