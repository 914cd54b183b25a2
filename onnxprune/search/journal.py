"""Journal of finished measurements as JSON lines, from which a killed search resumes.

A search requests each measurement by a key that covers everything the value depends on. A value in
the file is not measured again. Floats survive JSON unchanged, so a resumed search ends with the
same result.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from onnxprune.errors import OutputError
from onnxprune.files import append_json_line, json_lines, open_regular

START = b'{"key"'  # of each line of a journal


class Journal:
    """Finished measurements by key, in memory and optionally in a file.

    Parameters
    ----------
    path
        JSON lines, {"key": ..., **values}; each measurement is appended and synced at once. An
        incomplete last line, left by a kill, is ignored. None keeps measurements in memory only.
        A file that holds something else is refused.
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
            _check_kind(self.path)
            rows = [row for row in json_lines(self.path) if isinstance(row.get("key"), str)]
            self._known = {row.pop("key"): row for row in rows}

    def below(self, prefix: str) -> Journal:
        """Return a journal on the same file whose keys have a longer prefix."""
        journal = Journal()
        # the known measurements are shared: each journal sees what the other writes
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
        name = self.prefix + key
        # as parsed from JSON, so that this run sees the types that a resumed run reads
        self._known[name] = json.loads(json.dumps(values))
        if self.path is not None:
            append_json_line(self.path, {"key": name, **values})


def _check_kind(path: Path) -> None:
    """Raise OutputError if a file does not begin as a journal, which nothing is appended to."""
    try:
        file = open_regular(path)
    except OSError:  # it does not exist yet, or reading it says what is wrong
        return
    with file:
        start = file.readline(len(START)).rstrip(b"\n")
    # a kill may have left less than the start
    if not START.startswith(start):
        raise OutputError(
            "output-exists", f"{path} exists and holds no measurements; give another file"
        )
