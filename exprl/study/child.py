"""`python -m exprl.study.child PID ...`: the `exprl` command for one run of a study, which ends with that study."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

POLL = 0.5
"""Seconds between looks at whether the study is still there."""


def end_with(parent: int) -> None:
    """Send this process SIGTERM, at which a run saves its finished steps, once `parent` is gone, however it went."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="exprl-study", daemon=True).start()


if __name__ == "__main__":
    end_with(int(sys.argv[1]))
    from exprl.__main__ import program

    sys.argv[1:] = sys.argv[2:]
    program()
