"""Reading of regular files: hashes and texts of a limited size."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path
from typing import BinaryIO

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
    check_regular(os.stat(path), path)
    flags |= os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
    file = os.fdopen(os.open(path, flags), "rb")
    try:
        # again, because another file may have taken its place
        check_regular(os.fstat(file.fileno()), path)
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


def check_regular(info: os.stat_result, path: Path) -> None:
    """Raise OSError if a file is not a regular one."""
    if not stat.S_ISREG(info.st_mode):
        kind = _KINDS.get(stat.S_IFMT(info.st_mode), "a special file")
        raise OSError(errno.EINVAL, f"it is {kind}, not a regular file", str(path))
