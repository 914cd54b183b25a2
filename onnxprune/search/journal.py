"""Journal of finished measurements as JSON lines, from which a killed search resumes.

A search requests each measurement by a key that covers everything the value depends on. A value in
the file is not measured again. Floats survive JSON unchanged, so a resumed search ends with the
same result.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any


class Journal:
    """Finished measurements by key, in memory and optionally in a file.

    Parameters
    ----------
    path
        JSON lines, {"key": ..., **values}; each measurement is appended and synced at once. An
        incomplete last line, left by a kill, is ignored. None keeps measurements in memory only.
    prefix
        Start of every key: what all measurements of this search depend on.

    Attributes
    ----------
    measured
        Number of measurements written by this object, those read from the file not counted.
    """

    def __init__(self, path: str | Path | None = None, prefix: str = "") -> None:
        self.path = Path(path) if path is not None else None
        self.prefix = prefix
        self.measured = 0
        self._known: dict[str, Mapping[str, Any]] = {}
        if self.path:
            self._known = {row.pop("key"): row for row in rows(self.path) if "key" in row}

    def below(self, prefix: str) -> Journal:
        """Return a journal on the same file whose keys have a longer prefix."""
        journal = Journal()
        journal.path, journal.prefix, journal._known = self.path, self.prefix + prefix, self._known
        return journal

    def has(self, key: str) -> bool:
        """Return True if the values of a key are known."""
        return self.prefix + key in self._known

    def recall(self, key: str, measure: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
        """Return the values of a key; measure and write them if they are not known."""
        if not self.has(key):
            self.write(key, measure())
        return self._known[self.prefix + key]

    def write(self, key: str, values: Mapping[str, Any]) -> None:
        """Append a finished measurement."""
        self.measured += 1
        line = json.dumps({"key": self.prefix + key, **values}, ensure_ascii=False)
        # parsed again, so that this run sees the types that a resumed run reads
        row = json.loads(line)
        row.pop("key")
        self._known[self.prefix + key] = row
        if self.path is not None:
            append_line(self.path, line)


def key(*parts: Any) -> str:
    """Return the SHA-256 hex digest of plain JSON values."""
    return hashlib.sha256(
        json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()
    ).hexdigest()


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of the complete lines of a file; none if the file does not exist."""
    with (
        contextlib.suppress(FileNotFoundError),
        open(path, encoding="utf-8", errors="replace") as file,
    ):
        for line in file:
            with contextlib.suppress(ValueError):
                row = json.loads(line)
                if isinstance(row, dict):
                    yield row


def append_line(path: Path, line: str) -> None:
    """Append a line to a file and sync it; an incomplete last line is ended first."""
    with open(path, "a+b") as file:
        # otherwise the line would continue the one that a kill cut short, and both be lost
        start = b"\n" if file.tell() and not _ends_with_newline(file) else b""
        file.write(start + line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _ends_with_newline(file: IO[bytes]) -> bool:
    """Return True if the last byte of a non-empty file is a newline."""
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"
