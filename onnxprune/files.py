"""Atomic file writes, JSON lines that survive a kill, and hashes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from onnxprune.errors import OutputError

BLOCK_BYTES = 1 << 20  # read at a time


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """Open a binary file that replaces `path` when the block ends without an exception.

    Until then it has a temporary name in the same folder; if the block fails, it is removed.

    Raises
    ------
    OutputError
        The folder does not exist or cannot be written, or the disk is full.
    """
    path = Path(path)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as problem:
        raise OutputError(
            "output-unwritable", f"cannot write {path}: {problem.strerror}"
        ) from problem
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files that only their owner can read
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except OSError as problem:
        raise OutputError(
            "output-unwritable", f"cannot write {path}: {problem.strerror}"
        ) from problem
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write `data` atomically."""
    with replacing(path) as file:
        file.write(data)


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON atomically, keys in the given order."""
    write_bytes(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def append_json_line(path: str | Path, row: Mapping[str, Any]) -> None:
    """Append a row to a file of JSON lines and sync it."""
    line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
    with open(path, "a+b") as file:
        # a row must not be appended to a line that a kill has cut short
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = b"\n" + line
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def json_lines(path: str | Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file of JSON lines, without lines that a kill has cut short.

    None if the file does not exist.
    """
    with (
        contextlib.suppress(FileNotFoundError),
        open(path, encoding="utf-8", errors="replace") as file,
    ):
        for line in file:
            with contextlib.suppress(ValueError):
                row = json.loads(line)
                if isinstance(row, dict):
                    yield row


def hash_key(*parts: Any) -> str:
    """Return the hash of plain JSON values; the order of keys does not matter."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def sha256(path: str | Path) -> str:
    """Return the hex digest of a file, read in blocks."""
    with open(path, "rb") as file:
        if hasattr(hashlib, "file_digest"):
            return hashlib.file_digest(file, "sha256").hexdigest()
        return _digest(file)


def _digest(file: BinaryIO) -> str:
    """Return what hashlib.file_digest gives, which Python 3.10 does not have."""
    state = hashlib.sha256()
    while block := file.read(BLOCK_BYTES):
        state.update(block)
    return state.hexdigest()


def _umask() -> int:
    """Return the umask of the process, which can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
