"""Folders for sandboxes, which a killed process leaves behind and the next one clears away.

Whose folder is in use is told by a lock on it, which the system frees with its process, however that went: process
numbers may be others' by now, or those of another container that shares the folder above.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path

HOME = Path("/tmp")
PREFIX = "exprl-sandbox-"
_YOUNG = 60.0
"""Seconds in which a folder may not be locked yet by who makes it."""


def made_folder() -> tuple[Path, int]:
    """A new folder and the lock on it, which is held until the process ends or `removed` frees it."""
    clear()
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=HOME))
    lock = _locked(folder)
    assert lock is not None
    return folder, lock


def removed(folder: Path, lock: int) -> None:
    """Remove a folder, then free its lock."""
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)


def clear() -> None:
    """Remove this user's folders that nobody has a lock on any more."""
    for folder in HOME.glob(f"{PREFIX}*"):
        try:
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or time.time() - found.st_mtime < _YOUNG:
                continue
            lock = _locked(folder)
        except OSError:  # gone in between, or not to be opened
            continue
        if lock is not None:
            removed(folder, lock)


def _locked(folder: Path) -> int | None:
    """The lock on a folder; None where another process has it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
