"""What a failed rank leaves to its launcher: who failed first, and what other rank must still be ended."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

LINGER = 8.0
"""Seconds for the launcher to notice the rank that failed first and to end the others, before they end themselves."""


@dataclass(frozen=True)
class Process:
    """A rank's process, told from a later one of the same number by when it started."""

    host: str
    pid: int
    started: str

    @classmethod
    def own(cls) -> Process:
        """This one."""
        return cls(socket.gethostname(), os.getpid(), _started(os.getpid()))

    def to_json(self) -> str:
        """For the other ranks."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Process:
        """The inverse of `to_json`."""
        return cls(**json.loads(text))

    @property
    def ended(self) -> bool:
        """Whether it ran on this machine and is no more; False where that cannot be told."""
        return self.host == socket.gethostname() and bool(self.started) and self.started != _started(self.pid)

    def kill(self) -> None:
        """End it, if it runs on this machine: it may be stopped, and launchers wait half a minute for such."""
        if self.host == socket.gethostname() and self.started and self.started == _started(self.pid):
            os.kill(self.pid, signal.SIGKILL)


def _started(pid: int) -> str:
    """The clock tick at which a process started; empty where none runs, or the system does not say."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state[0] == "Z" else state[19]  # one that ended and was not asked for its exit code is still listed


def record(error: BaseException) -> None:
    """Write the launcher's error file: it reports the failure whose file is the oldest as the cause of the others.

    It has the error's kind and where it was raised. What it says is left to the rank's own output: the file stays where
    the launcher put it, and a judge's replies, which errors quote, may hold references.
    """
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not path:
        return
    message = f"{type(error).__name__}: the process itself has said more"
    extra = {"py_callstack": "".join(traceback.format_tb(error.__traceback__)), "timestamp": str(int(time.time()))}
    Path(path).write_text(json.dumps({"message": {"message": message, "extraInfo": extra}}))


def linger() -> None:
    """Wait to be ended by the launcher, so that it finds the rank that failed first before this one."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(LINGER)
