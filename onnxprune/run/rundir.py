"""Run directory: records finished stages so that the same command can resume.

A stage is identified by its key, a hash of the previous stage's key and everything that it depends
on itself. The journal has one line per finished stage, with the hashes of the files that it wrote.
A stage is reused only if its key and its files match the journal, so neither a kill between two
writes nor a file that was changed by hand can mix two runs.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from onnxprune.errors import OutputError
from onnxprune.files import append_json_line, json_lines, sha256

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

JOURNAL = "journal.jsonl"
LOCK = "lock"


@dataclass(frozen=True)
class JournalEntry:
    """A finished stage.

    Attributes
    ----------
    files
        Name -> sha256 of the files that it wrote.
    facts
        Plain JSON that it returned besides its files.
    """

    stage: str
    key: str
    files: Mapping[str, str]
    facts: Mapping[str, Any]
    seconds: float


@dataclass(frozen=True)
class RunDir:
    """A run directory, locked by `open_run_dir`."""

    path: Path

    def file(self, name: str) -> Path:
        """Return the path of a file of the run."""
        return self.path / name

    def entries(self) -> list[JournalEntry]:
        """Return the journal, without lines that a kill has cut short."""
        entries = []
        for row in json_lines(self.file(JOURNAL)):
            with contextlib.suppress(TypeError):  # other keys, of another version
                entries.append(JournalEntry(**row))
        return [e for e in entries if isinstance(e.files, dict) and isinstance(e.facts, dict)]

    def done(self, stage: str, stage_key: str) -> JournalEntry | None:
        """Return the journal's entry of a stage if its key and files are unchanged."""
        for entry in reversed(self.entries()):
            if (entry.stage, entry.key) == (stage, stage_key) and all(
                self._is_unchanged(*item) for item in entry.files.items()
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
    ) -> JournalEntry:
        """Append a finished stage, whose files are in place, to the journal."""
        hashes = {name: sha256(self.file(name)) for name in files}
        entry = JournalEntry(stage, stage_key, hashes, dict(facts or {}), round(seconds, 4))
        append_json_line(self.file(JOURNAL), vars(entry))
        return entry

    def _is_unchanged(self, name: str, digest: str) -> bool:
        """Return whether a file exists and has this hash."""
        try:
            return sha256(self.file(name)) == digest
        except OSError:
            return False


@contextlib.contextmanager
def open_run_dir(path: str | Path, *, keep: bool = True) -> Iterator[RunDir]:
    """Create or open a run directory, and lock it.

    Parameters
    ----------
    keep
        If False, a directory that this call creates is removed when the block fails, but not when
        it is interrupted (Ctrl-C), so that the run can be resumed.

    Raises
    ------
    OutputError
        It cannot be written, is not a run directory, or is in use by another run.
    """
    path = Path(path)
    is_new = not path.exists()
    try:
        path.mkdir(exist_ok=True)
        is_foreign = not is_new and not (path / LOCK).exists() and any(path.iterdir())
        lock = None if is_foreign else open(path / LOCK, "a+", encoding="utf-8")  # noqa: SIM115
    except OSError as problem:
        raise OutputError(
            "run-dir", f"cannot use {path} as run directory: {problem.strerror}"
        ) from problem
    if lock is None:
        raise OutputError(
            "run-dir", f"{path} is not empty and not a run directory; choose another --run-dir"
        )
    with lock:
        _acquire(lock, path)
        try:
            _remove_partial_files(path)
            yield RunDir(path)
        except Exception:
            if is_new and not keep:
                shutil.rmtree(path, ignore_errors=True)
            raise


def _acquire(lock: IO[str], path: Path) -> None:
    """Lock until the file is closed; the system releases the lock of a process that dies."""
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
    # only the message of another run needs it
    with contextlib.suppress(OSError):
        os.ftruncate(lock.fileno(), 0)
        os.write(lock.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())


def _remove_partial_files(path: Path) -> None:
    """Remove the temporary files of `files.replacing` that a killed run has left."""
    for file in path.glob(".*.*"):
        with contextlib.suppress(OSError):
            file.unlink()
