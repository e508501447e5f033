"""Runs a server and ends it, with all it has started, when whoever started this is gone, whatever ended it.

`python -I -S watcher.py COMMAND ...`, standard library alone: it is a process for as long as the server is one. Its
standard input is a pipe that nobody writes to: the end of it is the end of the process that holds the other side. What
that one has forked may hold it, too, and live on: a parent that is another one is the end as well.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress

LOOK = 0.1
"""Seconds between two looks at the server."""
ASKED = 250
"""The exit code where the server was still running when it was ended here; else it is the server's own."""
GRACE = 5.0
"""Seconds the server, and what it has started, have to end of themselves."""

_PR_SET_PDEATHSIG = 1


def main(command: list[str]) -> int:
    """Run `command` until it ends or whoever started this does.

    Returns its own exit code, 128 and more for a signal, or `ASKED`.
    """
    parent = os.getppid()
    server = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_end_with_this_process
    )
    try:
        while server.poll() is None and os.getppid() == parent and not select.select([0], [], [], LOOK)[0]:
            pass
        code = server.poll()
        _end(server)
        if code is None and server.poll() == -signal.SIGKILL:  # not sent from here yet: it was dying when asked to end
            code = -signal.SIGKILL
    finally:
        _signal(server.pid, signal.SIGKILL)  # what the server started and left behind
    server.wait()
    if code is None:
        return ASKED
    return code if code >= 0 else 128 - code


def _end_with_this_process() -> None:
    """Linux: a watcher that is killed itself takes the server along."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _end(server: subprocess.Popen[bytes]) -> None:
    _signal(server.pid, signal.SIGTERM)
    limit = time.monotonic() + GRACE
    # Those it has started, too: they remove what lies in shared memory, also after the server itself was killed.
    while (server.poll() is None or _any_left(server.pid)) and time.monotonic() < limit:
        time.sleep(LOOK)


def _any_left(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):  # see `_signal`
        return False
    return True


def _signal(group: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # all gone; on macOS also: nothing but the dead one left
        os.killpg(group, number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
