"""While the main thread works: signs of life, an ear for the failures of others, and an end where nothing else ends it.

The watch is a thread of each rank. What it learns it tells the main thread by a signal, so that an exception can leave
whatever that is doing, sampling or judging for an hour.
"""

from __future__ import annotations

import atexit
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

from exprl.errors import DistributedError, PeerError
from exprl.terminal.console import errors
from exprl.training.board import Board
from exprl.waiting import Wait

BEAT = 0.5
"""Seconds between the signs of life of a rank."""
_ENDING = 5.0
"""Seconds at most that the process waits for its watch, which may wait for a store that is gone."""
_TOLD = signal.SIGURG
"""Nothing else uses this signal, and a process without a handler ignores it."""


class Watched(Protocol):
    """What the watch must know of the `World` that starts it."""

    rank: int
    timeout: float
    phase: str
    deadline: Wait | None
    board: Board

    @property
    def alone(self) -> bool:
        """Whether there is no other rank."""

    @property
    def must_not_be_cut(self) -> bool:
        """Whether others' failures must wait."""

    def failure(self) -> str | None:
        """Who failed first, where and why."""

    def fail(self, error: BaseException) -> None:
        """Tell the others that this rank cannot go on."""


def start_watch(world: Watched) -> None:
    """Watch for as long as the process lives.

    The thread ends before the interpreter does: coming back from the store after that, it would abort a process that
    has finished its work.
    """
    over = threading.Event()
    thread = threading.Thread(target=_watch, args=[world, over], name="exprl-watch", daemon=True)
    thread.start()

    def end() -> None:
        over.set()
        thread.join(_ENDING)

    atexit.register(end)


def _watch(world: Watched, over: threading.Event) -> None:
    while not over.wait(BEAT):
        deadline = world.deadline
        if deadline is not None and deadline.over():
            _end_stalled(world)
        with suppress(RuntimeError, ConnectionError):  # the store is gone: the main thread finds out
            world.board.beat()
            if not world.must_not_be_cut and world.board.failed:
                signal.pthread_kill(threading.main_thread().ident or 0, _TOLD)


def _end_stalled(world: Watched) -> None:
    """End the process where a collective stalls that cannot raise: NCCL cannot be interrupted from outside."""
    message = f"{world.phase}: rank {world.rank} waited {world.timeout:.0f} s (trainer.timeout) for the others"
    error = DistributedError(f"{message}. Last seen:\n{world.board.report()}")
    errors().say(f"error: {error}")
    world.fail(error)
    os._exit(2)


@contextmanager
def attentive(world: Watched) -> Iterator[None]:
    """Inside, another rank's failure raises `PeerError` in the main thread, even from within a long phase."""
    if world.alone or threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return

    def heed(*_: object) -> None:
        if not world.must_not_be_cut:
            raise PeerError(world.failure())

    before = signal.signal(_TOLD, heed)
    try:
        yield
    finally:
        signal.signal(_TOLD, before)
