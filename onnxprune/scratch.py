"""Temporary folders, which the next process removes if theirs is killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import sys
import tempfile
import time
import weakref
from pathlib import Path

if sys.platform != "win32":
    import fcntl

PREFIX, SUFFIX = "onnxprune-", ".scratch"
LEAST_AGE_S = 60.0  # a folder is created before it is locked


class Scratch(tempfile.TemporaryDirectory[str]):
    """A temporary folder that is locked while its process lives.

    It may hold copies of models. Folders without a lock are those of killed processes.
    """

    def __init__(self) -> None:
        remove_abandoned(Path(tempfile.gettempdir()))
        super().__init__(SUFFIX, PREFIX)
        if sys.platform != "win32":
            handle = os.open(self.name, os.O_RDONLY)
            weakref.finalize(self, os.close, handle)
            # a file system without locks: the folder is then not told from abandoned ones
            with contextlib.suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX)


def remove_abandoned(parent: Path) -> None:
    """Remove the folders of killed processes of this user, which are some time old."""
    if sys.platform == "win32":
        return
    latest = time.time() - LEAST_AGE_S
    for path in parent.glob(f"{PREFIX}*{SUFFIX}"):
        with contextlib.suppress(OSError):
            info = os.lstat(path)
            is_own = stat.S_ISDIR(info.st_mode) and info.st_uid == os.getuid()
            if is_own and info.st_mtime < latest and _is_abandoned(path):
                shutil.rmtree(path)


def _is_abandoned(path: Path) -> bool:
    """Return whether no process has locked a folder."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True
