"""Finished measurements as JSON lines, so that a search that was killed goes on where it stopped and ends with the same result.

A search asks for each measurement by a key that says all that it depends on. What the file has is not measured again; floats survive JSON unchanged.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any


class Journal:
    """A file of finished measurements; in memory alone where there is no path.

    Parameters
    ----------
    path
        One line a measurement, {"key": ..., **values}; appended to and synced line by line. A last line that a kill cut short is left out.
    prefix
        Begins every key: what all measurements of this search depend on.
    """

    def __init__(self, path: str | Path | None = None, prefix: str = "") -> None:
        self.path = Path(path) if path is not None else None
        self.prefix = prefix
        self.measured = 0  # by this object, not read from the file
        self._known: dict[str, Mapping[str, Any]] = (
            {row.pop("key"): row for row in rows(self.path) if "key" in row} if self.path else {}
        )

    def below(self, prefix: str) -> Journal:
        """The same file with a longer prefix."""
        found = Journal()
        found.path, found.prefix, found._known = self.path, self.prefix + prefix, self._known
        return found

    def has(self, key: str) -> bool:
        """Whether it was measured before."""
        return self.prefix + key in self._known

    def recall(self, key: str, measure: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
        """The values under a key; measured and written where they are not known."""
        if not self.has(key):
            self.write(key, measure())
        return self._known[self.prefix + key]

    def write(self, key: str, values: Mapping[str, Any]) -> None:
        """Note a finished measurement; later runs see it."""
        self.measured += 1
        line = json.dumps({"key": self.prefix + key, **values}, ensure_ascii=False)
        row = json.loads(line)  # as a later run reads it
        row.pop("key")
        self._known[self.prefix + key] = row
        if self.path is None:
            return
        with open(self.path, "a+b") as file:
            cut_short = file.tell() > 0 and not _ends_line(self.path)
            file.write((b"\n" if cut_short else b"") + line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def key(*parts: Any) -> str:
    """A hash over plain JSON values."""
    return hashlib.sha256(
        json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()
    ).hexdigest()


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a file of JSON objects; none where there is no file."""
    with (
        contextlib.suppress(FileNotFoundError),
        open(path, encoding="utf-8", errors="replace") as file,
    ):
        for line in file:
            with contextlib.suppress(ValueError):
                found = json.loads(line)
                if isinstance(found, dict):
                    yield found


def _ends_line(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
