"""Files that are replaced all together, or not at all."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import mmap
import os
import re
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

from onnxprune.errors import OutputError
from onnxprune.files.regular import open_regular, sha256

if sys.platform != "win32":
    import fcntl

PARTIAL = ".partial"  # suffix of temporary files
_PREFIX = ".onnxprune-"
DATA = ".data"  # suffix of external data
HASH_DIGITS = 16  # of the hash of external data in their name
_HASHED_DATA = re.compile(rf".+\.([0-9a-f]{{{HASH_DIGITS}}}){re.escape(DATA)}")
NOTICE = "external data without a graph, unless one refers to them"  # key of the list in a notice
_MOST_NOTICE_BYTES = 1 << 16
_SWEPT: set[Path] = set()  # folders without files of killed processes, listed once per process
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux, for renameat2


class Staging:
    """Files under temporary names in the folders of their targets, which they replace together.

    A temporary file is locked while its process lives, so that the next writer into the folder can
    tell the ones that a killed process has left, and removes them.

    Attributes
    ----------
    obsolete
        Files that the commit removes.
    """

    def __init__(self) -> None:
        self._files: list[_Staged] = []
        self.obsolete: set[Path] = set()
        self._data: set[Path] = set()  # targets that hold external data
        self._notices: list[_Staged] = []

    @contextlib.contextmanager
    def file(self, path: str | Path) -> Iterator[BinaryIO]:
        """Open a binary file for what `path` is to hold; it is synced when the block ends.

        Raises
        ------
        OutputError
            The folder does not exist or cannot be written, or the disk is full.
        """
        path = Path(path)
        with describe_failure(path):
            staged = _stage(path)
            self._files.append(staged)
            yield staged.file
            staged.file.flush()
            os.fsync(staged.file.fileno())

    def sha256(self, path: str | Path) -> str:
        """Return the hash of what `path` is to hold."""
        return sha256(self._find(path).name)

    def name_data(self, path: Path, target: Path) -> None:
        """Let external data that were written for `path` replace `target` of the same folder.

        They are useless until the graph that refers to them is in place.
        """
        self._find(path).path = target
        self._data.add(target)

    def remove(self, paths: Iterable[Path]) -> None:
        """Remove files that nothing refers to any more after the commit."""
        self.obsolete.update(paths)

    def commit(self) -> None:
        """Replace all targets, or none if one of them cannot be replaced.

        Raises
        ------
        OutputError
            A target cannot be replaced.
        """
        replaced: list[_Staged] = []
        try:
            self._announce()
            for staged in self._files:
                with describe_failure(staged.path):
                    # mkstemp makes files that only their owner can read
                    os.chmod(staged.name, 0o666 & ~_umask())
                    # a single rename has nothing to undo
                    if len(self._files) > 1:
                        staged.keep_old()
                    if sys.platform == "win32":
                        staged.file.close()
                    os.replace(staged.name, staged.path)
                replaced.append(staged)
        except OutputError:
            for staged in reversed(replaced):
                staged.undo()
            raise
        else:
            for path in self.obsolete:
                with contextlib.suppress(OSError):
                    path.unlink()
        finally:
            self.discard()

    def discard(self) -> None:
        """Remove the temporary files."""
        for staged in (*self._files, *self._notices):
            with contextlib.suppress(OSError):  # of a write that a full disk has left in the buffer
                staged.file.close()
            for name in (staged.name, staged.old):
                with contextlib.suppress(OSError):
                    os.unlink(name)
        self._files.clear()
        self._notices.clear()

    def _announce(self) -> None:
        """Write down which external data a kill during the commit leaves without a graph.

        Before the graph is in place, these are the new ones, afterwards the obsolete ones.
        """
        new = {path for path in self._data if not os.path.lexists(path)}
        names: dict[Path, list[str]] = {}
        for path in sorted(new | self.obsolete):
            names.setdefault(path.parent, []).append(path.name)
        for folder, listed in names.items():
            with describe_failure(folder / listed[0]):
                notice = _stage(folder / listed[0])
                self._notices.append(notice)
                notice.file.write(json.dumps({NOTICE: listed}).encode())
                notice.file.flush()
                os.fsync(notice.file.fileno())

    def _find(self, path: str | Path) -> _Staged:
        """Return the file that was written last for `path`."""
        return next(staged for staged in reversed(self._files) if staged.path == Path(path))


@dataclass
class _Staged:
    """Temporary file.

    Attributes
    ----------
    name
        Its path.
    path
        Path that it is to replace.
    old
        Second link to the replaced file until the commit ends; empty if there is none.
    is_new
        Whether there was no file to replace.
    """

    file: BinaryIO
    name: str
    path: Path
    old: str = ""
    is_new: bool = False

    def keep_old(self) -> None:
        """Link the file that is to be replaced, where the file system has links.

        Raises OSError if the disk is full.
        """
        old = f"{self.name}.old{PARTIAL}"
        try:
            os.link(self.path, old, follow_symlinks=False)
            self.old = old
        except FileNotFoundError:
            self.is_new = True
        except OSError as problem:
            # a file system without links cannot put the old file back, and keeps the new one
            if problem.errno in (errno.ENOSPC, errno.EDQUOT):
                raise

    def undo(self) -> None:
        """Put the replaced file back."""
        with contextlib.suppress(OSError):
            if self.old:
                os.replace(self.old, self.path)
            elif self.is_new:
                os.unlink(self.path)


@contextlib.contextmanager
def staging() -> Iterator[Staging]:
    """Give a staging that is committed when the block ends, and discarded if it fails."""
    files = Staging()
    try:
        yield files
    except BaseException:
        files.discard()
        raise
    files.commit()


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """Open a binary file that replaces `path` when the block ends without an exception.

    Raises
    ------
    OutputError
        The folder does not exist or cannot be written, or the disk is full.
    """
    with staging() as files, files.file(path) as file:
        yield file


def remove_partial_files(folder: Path) -> None:
    """Remove the temporary files of processes that no longer exist."""
    for path in folder.glob(f"{_PREFIX}*{PARTIAL}"):
        with contextlib.suppress(OSError):
            # no link is followed; a pipe or device of this name is not ours
            if stat.S_ISREG(os.lstat(path).st_mode) and _is_abandoned(path):
                _remove_announced(path)
                path.unlink()


def _remove_announced(notice: Path) -> None:
    """Remove the external data that a notice lists, as far as no graph refers to them."""
    # of this user: others may write notices into a common folder
    if hasattr(os, "geteuid") and os.lstat(notice).st_uid != os.geteuid():
        return
    for name in _read_notice(notice):
        match = _HASHED_DATA.fullmatch(name)
        if not match or Path(name).name != name:
            continue
        path = notice.with_name(name)
        with contextlib.suppress(OSError):
            # a file whose name tells its content was written by `save`; a link may lead elsewhere
            is_own = not path.is_symlink() and sha256(path).startswith(match[1])
            if is_own and not _is_referred(path):
                path.unlink()


def _read_notice(path: Path) -> list[str]:
    """Return the names in a notice; [] for other temporary files."""
    try:
        with open_regular(path) as file:
            content = json.loads(file.read(_MOST_NOTICE_BYTES))
        names = content[NOTICE]
    # other content, cut short or nested too deep
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return []
    return [n for n in names if isinstance(n, str)] if isinstance(names, list) else []


def _is_referred(data: Path) -> bool:
    """Return whether a graph in the folder names this file, whatever the graph is called."""
    for graph in data.parent.glob("*.onnx"):
        # what cannot be read could refer to it
        with open_regular(graph) as file:
            size = os.fstat(file.fileno()).st_size
            if size:
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                    if content.find(os.fsencode(data.name)) >= 0:
                        return True
    return False


def _stage(path: Path) -> _Staged:
    """Create and lock a temporary file next to `path`."""
    if path.parent not in _SWEPT:
        remove_partial_files(path.parent)
        _SWEPT.add(path.parent)
    while True:
        # the target's name is not a part of it: it may have the largest length already
        handle, name = tempfile.mkstemp(PARTIAL, _PREFIX, path.parent)
        file = os.fdopen(handle, "r+b")
        # waits for a process that looks at it, and may remove it, before it is locked
        _lock(file, wait=True)
        if os.fstat(file.fileno()).st_nlink:
            return _Staged(file, name, path)
        file.close()


def _is_abandoned(path: Path) -> bool:
    """Return whether no process has locked a temporary file."""
    with open(path, "r+b") as file:
        return _lock(file, wait=False)


def _lock(file: IO[Any], wait: bool) -> bool:
    """Lock a file until it is closed; return False if it is in use or cannot be locked."""
    if sys.platform == "win32":
        return True  # an open file cannot be removed there
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


@contextlib.contextmanager
def describe_failure(path: Path) -> Iterator[None]:
    """Raise OutputError for an OSError."""
    try:
        yield
    except OSError as problem:
        raise OutputError(
            "output-unwritable", f"cannot write {path}: {problem.strerror or problem}"
        ) from problem


def replace_folder(new: Path, path: Path) -> None:
    """Move a folder to `path`; a folder that is there takes its place, or moves next to it.

    Where the system can exchange two names, a kill leaves the old or the new folder.

    Raises
    ------
    OutputError
        A folder cannot be moved; the old one is then still in place.
    """
    with describe_failure(path):
        if not os.path.lexists(path):
            os.replace(new, path)
        elif not _exchange(new, path):
            old = new.with_name(f"{new.name}.old")
            os.replace(path, old)
            try:
                os.replace(new, path)
            except OSError:
                os.replace(old, path)
                raise


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two names of one file system at once; return False if the system cannot."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):  # of other systems
        return False
    names = os.fsencode(first), os.fsencode(second)
    return bool(rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)


def _umask() -> int:
    """Return the umask of the process, which can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
