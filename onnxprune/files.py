"""Atomic file writes, JSON lines that survive a kill, and hashes."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

from onnxprune.errors import OutputError

if sys.platform != "win32":
    import fcntl

PARTIAL = ".partial"  # suffix of temporary files
_PREFIX = ".onnxprune-"
_SWEPT: set[Path] = set()  # folders without files of killed processes, listed once per process
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux, for renameat2
BLOCK_BYTES = 1 << 20  # read at a time
# of a text that is read at once: parsed JSON or TOML takes up to twenty times as much memory
MOST_TEXT_BYTES = 1 << 25

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


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

    @contextlib.contextmanager
    def file(self, path: str | Path) -> Iterator[BinaryIO]:
        """Open a binary file for what `path` is to hold; it is synced when the block ends.

        Raises
        ------
        OutputError
            The folder does not exist or cannot be written, or the disk is full.
        """
        path = Path(path)
        with _describe_failure(path):
            staged = _stage(path)
            self._files.append(staged)
            yield staged.file
            staged.file.flush()
            os.fsync(staged.file.fileno())

    def sha256(self, path: str | Path) -> str:
        """Return the hash of what `path` is to hold."""
        return sha256(self._find(path).name)

    def move(self, path: Path, target: Path) -> None:
        """Let the file that was written for `path` replace `target` of the same folder instead."""
        self._find(path).path = target

    def targets(self) -> list[Path]:
        """Return the paths that the files are to replace."""
        return [staged.path for staged in self._files]

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
            for staged in self._files:
                with _describe_failure(staged.path):
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
        for staged in self._files:
            with contextlib.suppress(OSError):  # of a write that a full disk has left in the buffer
                staged.file.close()
            for name in (staged.name, staged.old):
                with contextlib.suppress(OSError):
                    os.unlink(name)
        self._files.clear()

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
                path.unlink()


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
def _describe_failure(path: Path) -> Iterator[None]:
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
    with _describe_failure(path):
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
    with _describe_failure(Path(path)), os.fdopen(os.open(path, flags, 0o666), "r+b", 0) as file:
        _check_regular(os.fstat(file.fileno()), Path(path))
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


def sha256(path: str | Path) -> str:
    """Return the hex digest of a regular file, read in blocks."""
    state = hashlib.sha256()
    with open_regular(Path(path)) as file:
        while block := file.read(BLOCK_BYTES):
            state.update(block)
    return state.hexdigest()


def open_regular(path: Path, flags: int = 0) -> BinaryIO:
    """Open a regular file for reading.

    Anything else (folder, named pipe, device, socket) could block or never end.

    Parameters
    ----------
    flags
        Additional flags of os.open.

    Raises
    ------
    OSError
        The file does not exist, cannot be read, or is not a regular file.
    """
    # before opening, which can have effects on a device
    _check_regular(os.stat(path), path)
    flags |= os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
    file = os.fdopen(os.open(path, flags), "rb")
    try:
        # again, because another file may have taken its place
        _check_regular(os.fstat(file.fileno()), path)
    except OSError:
        file.close()
        raise
    return file


def read_text(path: str | os.PathLike[str], errors: str = "strict") -> str:
    """Return the UTF-8 text of a regular file.

    Parameters
    ----------
    errors
        What is done with other bytes, as for bytes.decode.

    Raises
    ------
    OSError
        It is not a regular file, has over MOST_TEXT_BYTES, or cannot be read.
    UnicodeDecodeError
        It is not UTF-8.
    """
    with open_regular(Path(path)) as file:
        # one byte more than allowed: files such as those of /proc have no size
        data = file.read(MOST_TEXT_BYTES + 1)
    if len(data) > MOST_TEXT_BYTES:
        raise OSError(errno.EFBIG, f"it has over {MOST_TEXT_BYTES >> 20} MB, the limit for text")
    return data.decode("utf-8", errors).replace("\r\n", "\n")


def _check_regular(info: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(info.st_mode):
        kind = _KINDS.get(stat.S_IFMT(info.st_mode), "a special file")
        raise OSError(errno.EINVAL, f"it is {kind}, not a regular file", str(path))


def _umask() -> int:
    """Return the umask of the process, which can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
