"""Files that are handed to a sandbox: in memory, without a name, open for reading alone."""

from __future__ import annotations

import os
import tempfile
from typing import Self


def sealed(content: bytes) -> int:
    """A descriptor of a file with this content, at its beginning; whoever asked for it closes it."""
    with tempfile.NamedTemporaryFile(buffering=0, dir=_FOLDER) as file:
        file.write(content)
        return os.open(file.name, os.O_RDONLY | os.O_CLOEXEC)


_FOLDER = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


class Pipe:
    """Both ends of a pipe; each is closed once, in the end at the latest."""

    def __init__(self) -> None:
        reads, writes = os.pipe()
        self.reads, self.writes = open(reads, "rb", buffering=0), open(writes, "wb", buffering=0)  # noqa: PTH123, SIM115

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.reads.close()
        self.writes.close()
