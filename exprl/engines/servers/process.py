"""One server as a process of its own, which ends with this one."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from exprl.engines.servers import watcher

_STOP = watcher.GRACE + 60.0
"""Seconds for a watcher to end a server: one that is killed itself leaves what the server has started."""
_SHOWN = 2000
"""Characters of a server's log that an error shows."""

_SIGNALLED = 128
"""Exit codes above this are a signal's."""
_OFTEN = {"SIGKILL": " (kill -9, or a machine that is out of memory)"}


class ServerProcess:
    """A server under a watcher, which ends it when this process ends, whatever ends that.

    Args:
        command: the server's command line.
        environment: its whole environment.
        log: a file that takes what it prints, behind what is there.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.log = log
        self._from = log.stat().st_size if log.exists() else 0
        with log.open("ab") as sink:
            self._watcher = subprocess.Popen(
                [sys.executable, "-I", "-S", watcher.__file__, *command],
                stdin=subprocess.PIPE,
                stdout=sink,
                stderr=sink,
                env=dict(environment),
                start_new_session=True,  # Ctrl-C is for the run, which then ends its servers
            )

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._watcher.poll()

    @property
    def end(self) -> str:
        """How it ended of itself, or by others than this process; nothing where it runs, or was ended by `stop`.

        Asked after `stop` it is known for certain: until then what a dead server has started may still be tidying up.
        """
        code = self.exit_code
        if code is None or code == watcher.ASKED:
            return ""
        if code <= _SIGNALLED:
            return f"its process ended with exit code {code}"
        try:
            name = signal.Signals(code - _SIGNALLED).name
        except ValueError:
            return f"its process ended with exit code {code}"
        return f"its process was ended by {name}{_OFTEN.get(name, '')}"

    def stop(self) -> None:
        """End it and all it has started, within some seconds."""
        assert self._watcher.stdin is not None
        self._watcher.stdin.close()
        try:
            self._watcher.wait(timeout=_STOP)
        except subprocess.TimeoutExpired:
            self._watcher.kill()  # the server dies with it
            self._watcher.wait()

    def last_words(self) -> str:
        """The end of what it has printed since it was started."""
        with self.log.open("rb") as file:
            file.seek(self._from)
            return file.read().decode("utf-8", "replace")[-_SHOWN:].strip()


def free_port() -> int:
    """A port of this machine that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
