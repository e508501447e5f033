"""What a failed rank leaves to its launcher: who failed first, and what other rank must still be ended."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from exprl.errors import ExprlError

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

    def kill(self) -> None:
        """End it, if it runs on this machine: it may be stopped, and launchers wait half a minute for such."""
        if self.host == socket.gethostname() and self.started and self.started == _started(self.pid):
            os.kill(self.pid, signal.SIGKILL)


def _started(pid: int) -> str:
    """The clock tick at which a process started; empty where there is none, or the system does not say."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def record(error: BaseException) -> None:
    """Write the launcher's error file: it reports the failure whose file is the oldest as the cause of the others."""
    if isinstance(error, ExprlError):
        path = os.environ.get("TORCHELASTIC_ERROR_FILE")
        if path:  # as torch's handler does, with the message in place of a traceback
            extra = {"py_callstack": str(error), "timestamp": str(int(time.time()))}
            Path(path).write_text(json.dumps({"message": {"message": str(error), "extraInfo": extra}}))
        return
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    get_error_handler().record_exception(error)


def linger() -> None:
    """Wait to be ended by the launcher, so that it finds the rank that failed first before this one."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(LINGER)
