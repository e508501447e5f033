"""Processes that compare answers, each replaced when it dies, stops or takes too long."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import weakref
from pathlib import Path

from exprl.errors import ExprlError
from exprl.waiting import Wait

WORKER = Path(__file__).with_name("math_worker.py")
START_SECONDS = 600.0
"""For the imports of a worker, on a machine that has much else to do; one that cannot start says so at once."""
_BUSY = 10
"""Seconds for each second of CPU that a comparison may take, on such a machine."""
_LATENESS = 1.0
"""Seconds after its time in which a worker may still say that it gave up, or end itself."""
_LOOK_EVERY = 0.25


_OUT_OF_TIME = -getattr(signal, "SIGVTALRM", 0)
"""How a worker ends whose time was up in a C call."""


class WorkerLostError(Exception):
    """A worker ended or stood still before its time was up, so nothing is known about what it was asked."""


class OutOfTimeError(Exception):
    """A comparison took its whole time, of CPU."""


class WorkerPool:
    """Up to `size` workers, started when they are needed; safe to call from any thread, whose calls run at once."""

    def __init__(self, size: int) -> None:
        self._turns = threading.BoundedSemaphore(size)
        self._idle: queue.LifoQueue[Worker] = queue.LifoQueue()

    def ask(self, gold: str, answer: str, seconds: float) -> bool:
        """Whether a worker holds the two to be equal.

        A worker that is lost (killed, stopped) is replaced and the question asked once more.

        Raises:
            OutOfTimeError: after `seconds` of CPU.
            WorkerLostError: a second worker was lost over it.
            ExprlError: no worker can be started.
        """
        with self._turns:
            try:
                return self._ask(gold, answer, seconds)
            except WorkerLostError:
                return self._ask(gold, answer, seconds)

    def close(self) -> None:
        """End the idle workers; those at work end after their answer is given up."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._idle.get_nowait().stop()

    def _ask(self, gold: str, answer: str, seconds: float) -> bool:
        worker = self._living()
        try:
            equal = worker.ask(gold, answer, seconds)
        except BaseException:
            worker.stop()
            raise
        self._idle.put(worker)
        if equal is None:
            raise OutOfTimeError
        return equal

    def _living(self) -> Worker:
        with contextlib.suppress(queue.Empty):
            while True:
                worker = self._idle.get_nowait()
                if worker.process.poll() is None:
                    return worker
                worker.stop()
        return Worker()


class Worker:
    """One process and the thread that reads what it says, so that waiting for it can have an end on any system."""

    def __init__(self) -> None:
        # -P: beside the worker lie modules whose names must not shadow those math-verify imports.
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._replies: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=_read, args=(self.process, self._replies), daemon=True).start()
        self.stop = weakref.finalize(self, _stop, self.process)
        with contextlib.suppress(queue.Empty):
            if self._replies.get(timeout=START_SECONDS) == "ready":
                return
        self.stop()
        raise ExprlError("verifier 'math' cannot start math-verify. Install it: pip install 'math-verify>=0.8'.")

    def ask(self, gold: str, answer: str, seconds: float) -> bool | None:
        """The worker's word; None: it gave up.

        Raises:
            OutOfTimeError: after `seconds` of CPU and a little; the worker is of no more use.
            WorkerLostError: it ended or was stopped earlier.
        """
        assert self.process.stdin is not None
        request = json.dumps({"gold": gold, "answer": answer, "seconds": seconds})
        wait = Wait(_BUSY * seconds + _LATENESS, pause=_LOOK_EVERY)
        try:
            self.process.stdin.write(request + "\n")
            self.process.stdin.flush()
        except OSError as error:
            raise WorkerLostError from error
        while not wait.over():
            try:
                reply = self._replies.get(timeout=_LOOK_EVERY)
            except queue.Empty:
                if _is_stopped(self.process):
                    raise WorkerLostError from None
                continue
            if reply is None:  # it ended: by its own alarm, or by someone's hand
                raise OutOfTimeError if self.process.wait() == _OUT_OF_TIME else WorkerLostError
            equal: bool | None = json.loads(reply)
            return equal
        raise OutOfTimeError


def _read(process: subprocess.Popen[str], replies: queue.SimpleQueue[str | None]) -> None:
    assert process.stdout is not None
    with process.stdout as lines:
        for line in lines:
            replies.put(line.strip())
    replies.put(None)


def _is_stopped(process: subprocess.Popen[str]) -> bool:
    """Whether someone stopped the process (SIGSTOP, a debugger). It is only looked at, to be waited for later."""
    if not hasattr(os, "waitid"):
        return False
    with contextlib.suppress(ChildProcessError):
        return os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None
    return False


def _stop(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
