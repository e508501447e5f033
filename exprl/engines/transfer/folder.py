"""Folders that servers read from."""

from __future__ import annotations

from pathlib import Path

from exprl.errors import PathError
from exprl.files.swept import SweptFolder

SHARED_MEMORY = Path("/dev/shm")
_OWNER = "owner"


class TransferFolder:
    """A `SweptFolder` with a file that says whose it is.

    Args:
        parent: where it lies; servers must see it under the same path.
        token: what its owner's file holds.

    Raises:
        PathError: nothing can be written there.
    """

    def __init__(self, parent: Path, token: str) -> None:
        try:
            self._folder = SweptFolder(parent, "weights")
            self.path = self._folder.path
            (self.path / _OWNER).write_text(token)
        except OSError as error:
            raise PathError(
                f"weights cannot go to servers through {parent}: {error.strerror}. Name another folder that trainer "
                "and servers share."
            ) from error

    def close(self) -> None:
        """Remove it."""
        self._folder.close()


def check_owner(folder: Path, token: str) -> None:
    """See from a server that `folder` is the trainer's.

    Raises:
        ValueError: it is not there, cannot be read, or is another's.
    """
    try:
        found = (folder / _OWNER).read_text()
    except OSError as error:
        raise ValueError(
            f"this server does not see the trainer's folder {folder} ({error.strerror}): both must run on one machine "
            "as one user, or share a folder, under one path, that the trainer is told of"
        ) from error
    if found != token:
        raise ValueError(f"the folder {folder} is another trainer's")
