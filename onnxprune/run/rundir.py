"""Run directory: records finished stages so that the same command can resume.

A stage is identified by its key, a hash of the previous stage's key and everything that it depends
on itself. The journal has one line per finished stage, with the hashes of the files that it wrote.
A stage is reused only if its key and its files match the journal, so neither a kill between two
writes nor a file that was changed by hand can mix two runs.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from onnxprune.errors import OutputError
from onnxprune.files import (
    Staging,
    append_json_line,
    json_lines,
    open_regular,
    remove_partial_files,
    sha256,
)

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

JOURNAL = "journal.jsonl"
LOCK = "lock"
MARK = b"onnxprune run directory\n"  # first line of the lock


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
    """A run directory, locked by `open_run_dir`.

    Attributes
    ----------
    names
        Names of the files that this run has asked for.
    """

    path: Path
    names: set[str] = field(default_factory=set, compare=False)

    def file(self, name: str) -> Path:
        """Return the path of a file of the run."""
        self.names.add(name)
        return self.path / name

    def entries(self) -> list[JournalEntry]:
        """Return the journal, without lines that cannot be read."""
        rows = json_lines(self.file(JOURNAL))
        return [entry for entry in map(_read_entry, rows) if entry is not None]

    def done(self, stage: str, stage_key: str) -> JournalEntry | None:
        """Return the journal's entry of a stage if its key and files are unchanged."""
        # the last one, since a stage may have run again after its files were changed
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
        names: Sequence[str] = (),
        facts: Mapping[str, Any] | None = None,
        files: Staging | None = None,
    ) -> JournalEntry:
        """Append a finished stage to the journal.

        Parameters
        ----------
        names
            Files of the stage, in place.
        files
            Staging that holds the files instead.
        """
        digest = files.sha256 if files else sha256
        hashes = {name: digest(self.file(name)) for name in names}
        entry = JournalEntry(stage, stage_key, hashes, dict(facts or {}), round(seconds, 4))
        append_json_line(self.file(JOURNAL), vars(entry))
        return entry

    def remove(self) -> None:
        """Remove the files of this run, and the directory if it is then empty."""
        # only files that a run writes: users may have put others into the directory
        for name in (*self.names, LOCK):
            with contextlib.suppress(OSError):
                (self.path / name).unlink()
        remove_partial_files(self.path)
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def _is_unchanged(self, name: str, digest: str) -> bool:
        """Return whether a file of the directory itself exists and has this hash."""
        # the journal may come from elsewhere, with names that lead out of the directory
        if Path(name).name != name or "\0" in name:
            return False
        try:
            is_link = (self.path / name).is_symlink()
            return not is_link and sha256(self.file(name)) == digest
        # a name that is too long, or that the system cannot encode
        except (OSError, ValueError):
            return False


def _read_entry(row: Mapping[str, Any]) -> JournalEntry | None:
    """Return a line of the journal, None if it is of another version or was edited."""
    try:
        entry = JournalEntry(**row)
    except TypeError:
        return None
    is_valid = (
        isinstance(entry.stage, str)
        and isinstance(entry.key, str)
        and isinstance(entry.seconds, int | float)
        and isinstance(entry.facts, dict)
        and isinstance(entry.files, dict)
        and all(isinstance(digest, str) for digest in entry.files.values())
    )
    return entry if is_valid else None


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
    # a link at the place of one of them would be written through
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    try:
        path.mkdir(exist_ok=True)
        is_foreign = not is_new and not _is_run_dir(path)
        # unbuffered: what a full disk does not take must not be written again on closing
        lock = None if is_foreign else os.fdopen(os.open(path / LOCK, flags, 0o666), "r+b", 0)
    except OSError as problem:
        raise OutputError(
            "run-dir",
            f"cannot use {path} as run directory: {problem.strerror}; choose another --run-dir",
        ) from problem
    if lock is None:
        raise OutputError(
            "run-dir", f"{path} is not empty and not a run directory; choose another --run-dir"
        )
    with lock:
        _acquire(lock, path)
        run = RunDir(path)
        try:
            remove_partial_files(path)
            yield run
        except Exception:
            if is_new and not keep:
                run.remove()
            raise


def _is_run_dir(path: Path) -> bool:
    """Return whether a directory is empty or carries the mark of a run."""
    names = {entry.name for entry in os.scandir(path)}
    # a run that was killed before it wrote its mark leaves an empty lock
    if names <= {LOCK} and not (path / LOCK).is_symlink():
        return not names or (path / LOCK).is_file()
    try:
        with open_regular(path / LOCK, getattr(os, "O_NOFOLLOW", 0)) as file:
            text = file.read(len(MARK))
    except OSError:
        return False
    # 0.1 wrote no mark, but a journal
    is_old = text.startswith(b"process ") and JOURNAL in names
    return text == MARK or is_old


def _acquire(lock: BinaryIO, path: Path) -> None:
    """Lock until the file is closed; the system releases the lock of a process that dies."""
    try:
        if sys.platform == "win32":
            msvcrt.locking(lock.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as problem:
        lock.seek(0)
        # empty if the holder has locked the file but not yet written into it
        text = lock.read(200).removeprefix(MARK).decode(errors="replace").strip()
        holder = text or "another process"
        raise OutputError(
            "run-dir-busy",
            f"run directory {path} is in use by {holder}; wait for it or choose another --run-dir",
        ) from problem
    with contextlib.suppress(OSError):
        lock.seek(0)
        # the mark is never absent: without it, the next run would refuse the directory
        size = lock.write(MARK + f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        os.ftruncate(lock.fileno(), size)
