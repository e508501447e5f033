"""Folders that end with their process: what one that was killed left behind, the next one removes."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from weakref import finalize

_LOCK = "lock"


class SweptFolder:
    """A new folder that this user alone reads, gone after `close`, or with its process.

    A lock, which ends with its process, tells folders in use from those of killed processes: these are removed.

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
        except BlockingIOError:  # another process's sweep came in between, and removes it
            os.close(lock)
            continue
        except OSError:  # no locks there, so that nothing is swept either
            pass
        return path, lock


def _sweep(parent: Path, prefix: str) -> None:
    """Remove what killed processes of this user left in `parent`."""
    for folder in parent.glob(f"{prefix}*"):
        with suppress(OSError):
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
            finally:
                os.close(lock)


def _remove(path: Path, lock: int) -> None:
    shutil.rmtree(path, ignore_errors=True)
    os.close(lock)
