"""The folder of one run: what was done, with which inputs, so that the same command goes on where it stopped.

A stage is known by its key, a hash over the key of the stage before it and all that it depends on itself. The journal has one line
for every finished stage, with the hashes of the files that it wrote. A stage is done again unless key and files are what the journal says,
so neither a kill between two writes nor a file changed by hand can mix two runs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from onnxprune.errors import OutputError
from onnxprune.files import sha256

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

JOURNAL = "journal.jsonl"
LOCK = "lock"


def key(*parts: Any) -> str:
    """A hash over plain JSON values."""
    return hashlib.sha256(
        json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()
    ).hexdigest()


@dataclass(frozen=True)
class Entry:
    """A finished stage. files: name -> sha256; facts: plain JSON that the stage returned beside its files."""

    stage: str
    key: str
    files: Mapping[str, str]
    facts: Mapping[str, Any]
    seconds: float


@dataclass(frozen=True)
class RunDir:
    """A run directory; use it inside `opened`, which locks it."""

    path: Path

    def file(self, name: str) -> Path:
        """Path of a file of the run."""
        return self.path / name

    def entries(self) -> list[Entry]:
        """The journal; a last line that a kill cut short is left out."""
        found = []
        with (
            contextlib.suppress(FileNotFoundError),
            open(self.file(JOURNAL), encoding="utf-8") as file,
        ):
            for line in file:
                with contextlib.suppress(ValueError, TypeError):
                    found.append(Entry(**json.loads(line)))
        return [e for e in found if isinstance(e.files, dict) and isinstance(e.facts, dict)]

    def done(self, stage: str, stage_key: str) -> Entry | None:
        """What the journal has of this stage, if key and files are unchanged."""
        for entry in reversed(self.entries()):
            if (
                entry.stage == stage
                and entry.key == stage_key
                and all(self._unchanged(*f) for f in entry.files.items())
            ):
                return entry
        return None

    def record(
        self,
        stage: str,
        stage_key: str,
        seconds: float,
        files: Sequence[str] = (),
        facts: Mapping[str, Any] | None = None,
    ) -> Entry:
        """Note a finished stage whose files are in place."""
        entry = Entry(
            stage,
            stage_key,
            {n: sha256(self.file(n)) for n in files},
            dict(facts or {}),
            round(seconds, 4),
        )
        line = json.dumps(vars(entry), ensure_ascii=False) + "\n"
        with open(self.file(JOURNAL), "a+b") as file:
            # a line that was cut short by a kill must not swallow this one
            if file.tell() and not _ends_line(file):
                line = "\n" + line
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
        return entry

    def _unchanged(self, name: str, digest: str) -> bool:
        try:
            return sha256(self.file(name)) == digest
        except OSError:
            return False


@contextlib.contextmanager
def opened(path: str | Path, *, keep: bool = True) -> Iterator[RunDir]:
    """A locked run directory, made if it is not there.

    Parameters
    ----------
    keep
        False: a directory that this call made is removed again when the block fails; one that was there, or that
        an interruption (Ctrl-C) ends, stays.

    Raises
    ------
    OutputError
        It cannot be written, is something else, or another run is using it.
    """
    path = Path(path)
    made = not path.exists()
    try:
        path.mkdir(exist_ok=True)
        stranger = not made and not (path / LOCK).exists() and any(path.iterdir())
        lock = None if stranger else open(path / LOCK, "a+", encoding="utf-8")
    except OSError as problem:
        raise OutputError(
            "run-dir", f"cannot use {path} as run directory: {problem.strerror}"
        ) from problem
    if lock is None:
        raise OutputError(
            "run-dir", f"{path} is not empty and not a run directory; choose another --run-dir"
        )
    with lock:
        _take(lock, path)
        try:
            _sweep(path)
            yield RunDir(path)
        except Exception:
            if made and not keep:
                shutil.rmtree(path, ignore_errors=True)
            raise


def _take(lock: IO[str], path: Path) -> None:
    """Hold the lock until the file is closed; the system lets go of it when the process dies."""
    try:
        if sys.platform == "win32":
            msvcrt.locking(lock.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as problem:
        lock.seek(0)
        holder = lock.read().strip() or "another process"
        raise OutputError(
            "run-dir-busy",
            f"run directory {path} is in use by {holder}; wait for it or choose another --run-dir",
        ) from problem
    with contextlib.suppress(OSError):  # who holds it is a courtesy
        os.ftruncate(lock.fileno(), 0)
        os.write(lock.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())


def _sweep(path: Path) -> None:
    """Remove what `files.replacing` had open when a run was killed."""
    for left in path.glob(".*.*"):
        with contextlib.suppress(OSError):
            left.unlink()


def _ends_line(file: IO[bytes]) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"
