"""Folders that end with their process: what one that was killed left behind, the next one removes."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from weakref import finalize

from exprl.files.lock import is_at

_LOCK = "lock"


class SweptFolder:
    """A new folder that this user alone reads, gone after `close`, or with its process.

    A lock, which the system frees with its process, tells folders in use from those of killed processes, which are
    removed here: process numbers may be others' by now, or those of another container that shares `parent`. It is on a
    file, since NFS locks no folders.

    Args:
        parent: where it lies.
        kind: what lies in it, a word for its name; folders of other kinds are left alone.

    Raises:
        OSError: nothing can be written there.
    """

    def __init__(self, parent: Path, kind: str) -> None:
        prefix = f"exprl-{kind}-"
        _sweep(parent, prefix)
        self.path, lock = _locked_folder(parent, prefix)
        self._end = finalize(self, _remove, self.path, lock)

    def close(self) -> None:
        """Remove it."""
        self._end()


def _locked_folder(parent: Path, prefix: str) -> tuple[Path, int]:
    while True:
        path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            swept = not is_at(lock, path / _LOCK)
        except BlockingIOError:
            swept = True
        except OSError:  # no locks there, so that nothing is swept either
            swept = False
        if not swept:
            return path, lock
        os.close(lock)  # another process's sweep came between the lock's file and the lock


def _sweep(parent: Path, prefix: str) -> None:
    """Remove what killed processes of this user left in `parent`, which others may write to as well."""
    for folder in parent.glob(f"{prefix}*"):
        with suppress(OSError):
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
                continue
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:  # it is in use
                os.close(lock)
            else:
                _remove(folder, lock)


def _remove(folder: Path, lock: int) -> None:
    """Remove a folder and free its lock, whose file goes last: what is killed here is swept by the next."""
    with suppress(OSError):
        for entry in list(folder.iterdir()):
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name != _LOCK:
                entry.unlink()
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)
