"""One process at a time: a lock that says who has it, and that no killed process leaves behind.

The lock is flock(2) on a file, so the system frees it when its last holder is gone, however it went. Between machines
it holds where the file system passes it on: NFS version 4 and 3 with lockd, Lustre mounted with `flock`, but no mount
with `nolock` or `local_lock`.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from exprl.errors import PathError, RunDirectoryError
from exprl.files.disk import check_ordinary, reason

log = logging.getLogger(__name__)

LOCK = ".lock"
"""The file's name in a folder that is locked."""

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who has a lock."""

    pid: int
    host: str

    @property
    def gone(self) -> bool:
        """Whether it was a process of this machine that has ended, so that a child of it has the lock."""
        if self.host != socket.gethostname():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@contextmanager
def locked(file: Path, what: str) -> Iterator[int]:
    """Inside, this process alone has the lock `file`, which is removed afterwards; gives its descriptor.

    A child that is passed the descriptor keeps the lock until it ends as well.

    Raises:
        RunDirectoryError: another process has it; the message names process and machine.
        PathError: the file cannot be made.
    """
    descriptor = acquire(file)
    if descriptor is None:
        raise in_use(file, what)
    with held(file, descriptor):
        yield descriptor


@contextmanager
def folder_locked(folder: Path, what: str) -> Iterator[bool]:
    """Inside, this process alone has the folder itself, so that a lock file removed by hand lets nobody else in.

    Gives whether it is locked: NFS locks no folders. To be had together with the lock file in it, which says whose.

    Raises:
        RunDirectoryError: another process has it.
        OSError: there is no such folder.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise in_use(folder / LOCK, what) from None
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def in_use(file: Path, what: str) -> RunDirectoryError:
    """The error for a lock that another process has."""
    return RunDirectoryError(
        f"{what} is in use by {holder(file) or 'another process'}. Wait until that has ended, or choose another place; "
        "nothing was changed."
    )


def acquire(file: Path) -> int | None:
    """The lock's descriptor, or None where another process has it; raises `PathError` if the file cannot be made."""
    while True:
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise PathError(f"{file.parent}: cannot be written ({reason(error)})") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(descriptor)
                raise PathError(f"{file}: cannot be locked ({reason(error)})") from error
            log.warning("%s lies on a file system without locks: see to it that one process at a time is there", file)
            return descriptor
        if is_at(descriptor, file):
            return descriptor
        os.close(descriptor)  # whoever had it removed the file in between


@contextmanager
def held(file: Path, descriptor: int) -> Iterator[None]:
    """Sign an acquired lock, and remove and free it afterwards."""
    try:
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
    except OSError:
        pass  # a full disk: the lock holds without a name
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
        os.close(descriptor)


def holder(file: Path) -> Holder | None:
    """Who has the lock, as far as it is known."""
    try:
        check_ordinary(file)
        pid, _, host = file.read_text().strip().partition(" ")
        return Holder(pid=int(pid), host=host)
    except (OSError, ValueError):
        return None


def is_at(descriptor: int, file: Path) -> bool:
    """Whether an open file still is the one at this path."""
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False
