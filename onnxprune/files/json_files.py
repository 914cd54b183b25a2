"""JSON files, JSON lines that survive a kill, and hashes of plain values."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from onnxprune.errors import OutputError
from onnxprune.files.regular import MOST_TEXT_BYTES, check_regular, open_regular
from onnxprune.files.transaction import describe_failure, replacing


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write `data` atomically."""
    with replacing(path) as file:
        file.write(data)


def encode(text: str) -> bytes:
    """Return UTF-8; bytes of file names that are not UTF-8 are escaped as JSON escapes them."""
    return text.encode("utf-8", "backslashreplace")


def to_json(value: Any) -> str:
    """Return the text of a JSON file, keys in the given order."""
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON atomically."""
    write_bytes(path, encode(to_json(value)))


def append_json_line(path: str | Path, row: Mapping[str, Any]) -> None:
    """Append a row to a file of JSON lines and sync it.

    Raises
    ------
    OutputError
        The file is a link or cannot be written; it is then unchanged.
    """
    line = encode(json.dumps(row, ensure_ascii=False)) + b"\n"
    # a link could lead out of the folder
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
    # without a wait for the other end of a pipe
    flags |= getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
    with describe_failure(Path(path)), os.fdopen(os.open(path, flags, 0o666), "r+b", 0) as file:
        check_regular(os.fstat(file.fileno()), Path(path))
        size = file.seek(0, os.SEEK_END)
        # a row must not be appended to a line that a kill has cut short
        if size:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = b"\n" + line
        try:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            # what a full disk has taken of the line
            os.ftruncate(file.fileno(), size)
            raise


def json_lines(path: str | Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file of JSON lines, without lines that a kill has cut short.

    None if the file does not exist.

    Raises
    ------
    OutputError
        It is not a regular file, or cannot be read.
    """
    try:
        file = open_regular(Path(path))
    except FileNotFoundError:
        return
    except OSError as problem:
        raise OutputError(
            "journal-unreadable", f"cannot read {path}: {problem.strerror}"
        ) from problem
    with file:
        while line := file.readline(MOST_TEXT_BYTES):
            # RecursionError: nested too deep
            with contextlib.suppress(ValueError, RecursionError):
                row = json.loads(line.decode("utf-8", "replace"))
                if isinstance(row, dict):
                    yield row


def hash_key(*parts: Any) -> str:
    """Return the hash of plain JSON values; the order of keys does not matter."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(encode(text)).hexdigest()
