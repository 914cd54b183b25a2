"""Arrays in .npy and .npz files, read piece by piece: mapped, or streamed if compressed."""

from __future__ import annotations

import math
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from onnxprune.data.pieces import Pieces
from onnxprune.errors import DataError
from onnxprune.files import open_regular

MOST_ARRAYS = 4096  # of an .npz
# Of an .npz, in sum: beyond this size, arrays may not be larger than the file by more than this
# factor. Compressed data of measurements are a few times smaller, and a bomb a thousand times.
MODEST_BYTES, LARGEST_INFLATION = 1 << 28, 100
# fixed part; the lengths of name and extra field are at offset 26 (zip APPNOTE 4.3.7)
ZIP_LOCAL_HEADER_BYTES = 30


@dataclass(frozen=True)
class StoredArray:
    """One array in a file, not read yet.

    Attributes
    ----------
    path
        The .npy or .npz file.
    member
        Name in the .npz, "" for a .npy.
    shape, dtype, fortran
        From the array's header; `fortran` is True for column-major order.
    start
        Offset of the values in the file, None if they are compressed.
    skip
        Offset of the values in the member.
    """

    path: Path
    member: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    start: int | None
    skip: int


def stored_arrays(path: Path) -> dict[str, StoredArray]:
    """Read the headers of a file and return its arrays by name ("" for a .npy).

    Raises
    ------
    DataError
        The file is neither .npy nor .npz, is truncated, or contains Python objects.
    """
    try:
        if path.suffix.lower() == ".npy":
            with open_regular(path) as file:
                return {"": _read_header(path, "", file, 0, path.stat().st_size)}
        arrays = {}
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            check_archive(path, archive)
            for info in archive.infolist():
                if not info.filename.endswith(".npy"):
                    continue
                with archive.open(info) as member:
                    arrays[info.filename.removesuffix(".npy")] = _read_header(
                        path, info.filename, member, _find_member_start(path, info), info.file_size
                    )
        return arrays
    except Exception as problem:  # zipfile, its decoders and numpy raise many types
        raise read_error(path, problem) from problem


def check_archive(path: Path, archive: zipfile.ZipFile) -> None:
    """Check what the arrays of an .npz take when they are read.

    Raises
    ------
    DataError
        There are too many, or they are out of proportion to the file.
    """
    infos = archive.infolist()
    if len(infos) > MOST_ARRAYS:
        raise DataError(
            "data-too-large", f"{path} holds {len(infos)} arrays; the limit is {MOST_ARRAYS}"
        )
    size, held = sum(info.file_size for info in infos), path.stat().st_size
    # members may share their bytes, so that the sizes in the directory alone prove nothing
    if size > max(MODEST_BYTES, LARGEST_INFLATION * held) and any(
        info.compress_type != zipfile.ZIP_STORED for info in infos
    ):
        raise DataError(
            "data-too-large",
            f"{path} of {held} bytes inflates to {size} bytes, over {LARGEST_INFLATION} times as "
            "many; save it without compression, by numpy.savez",
        )


class PieceReader:
    """Reader of the samples that an array holds.

    Raises
    ------
    DataError
        The file cannot be opened.
    """

    def __init__(self, stored: StoredArray, pieces: Pieces) -> None:
        self.stored, self.piece = stored, pieces.shape
        self._archive: zipfile.ZipFile | None = None
        self._member: IO[bytes] | None = None
        self._skip = stored.skip
        self._mapped: np.ndarray | None = None
        try:
            if stored.start is None:
                self._archive = zipfile.ZipFile(stored.path)
                self._member = self._archive.open(stored.member)
                if not pieces.contiguous:
                    # samples along an inner axis: a stream holds parts of all of them
                    values = np.frombuffer(self._member.read()[stored.skip :], stored.dtype)
                    self._mapped = pieces.view(values.reshape(stored.shape))
            elif pieces.contiguous and not stored.fortran:
                # read and not mapped: for a map, a kernel reads far ahead of each rising position
                self._member, self._skip = open_regular(stored.path), stored.start
            else:
                order: Any = "F" if stored.fortran else "C"
                # a map has at least one axis
                mapped = np.memmap(
                    stored.path, stored.dtype, "r", stored.start, stored.shape or (1,), order
                )
                self._mapped = pieces.view(mapped)
        except Exception as problem:  # as in stored_arrays
            self.close()
            raise read_error(stored.path, problem) from problem

    def read(self, index: int) -> np.ndarray:
        """Return a copy of a piece; in a compressed array, going backwards restarts the stream."""
        if self._mapped is not None:
            return np.array(self._mapped[index])
        assert self._member is not None  # one of the two is open
        size = math.prod(self.piece) * self.stored.dtype.itemsize
        try:
            self._member.seek(self._skip + index * size)
            data = self._member.read(size)
            return np.ndarray(self.piece, self.stored.dtype, data)
        except Exception as problem:  # as in stored_arrays
            raise read_error(self.stored.path, problem) from problem

    def close(self) -> None:
        """Close the file."""
        # the map keeps the file open as long as it is referenced
        self._mapped = None
        for handle in (self._member, self._archive):
            if handle is not None:
                handle.close()


def _read_header(
    path: Path, member: str, file: IO[bytes], start: int | None, length: int
) -> StoredArray:
    """Return the array that the header at the begin of `file` describes.

    Parameters
    ----------
    start
        Offset of the member in the file, None if compressed.
    length
        Bytes of the member.
    """
    version = np.lib.format.read_magic(file)
    # version 3 differs from 2 in the encoding of field names only
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    else:
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    skip = file.tell()
    if any(size < 0 for size in shape):
        raise ValueError(f"negative size in shape {shape}")
    if dtype.hasobject:
        raise DataError(
            "data-unreadable",
            f"{path}{f': {member!r}' if member else ''} contains Python objects, "
            "which are not read; save plain arrays",
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
            f"{path}: {member!r} is compressed in Fortran order and cannot be read in parts; "
            "save np.ascontiguousarray of it",
        )
    begin = None if start is None else start + skip
    return StoredArray(path, member, tuple(shape), dtype, fortran, begin, skip)


def _find_member_start(path: Path, info: zipfile.ZipInfo) -> int | None:
    """Return the offset of an uncompressed member's bytes; None if compressed or encrypted."""
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        return None
    with open(path, "rb") as file:
        file.seek(info.header_offset)
        # the extra field may be longer here than in the directory of the archive
        name, extra = struct.unpack("<HH", file.read(ZIP_LOCAL_HEADER_BYTES)[26:30])
    return info.header_offset + ZIP_LOCAL_HEADER_BYTES + int(name) + int(extra)


def read_error(path: Path, problem: BaseException) -> DataError:
    """Return the error of a file that cannot be read, for what its decoder raised."""
    if isinstance(problem, DataError):
        return problem
    reason = str(problem).strip() or type(problem).__name__
    if isinstance(problem, OSError) and problem.strerror:
        reason = problem.strerror
    elif isinstance(problem, zipfile.BadZipFile):
        reason += "; it may be truncated, download or save it again"
    return DataError("data-unreadable", f"cannot read {path}: {reason.splitlines()[0]}")
