"""SIGTERM and Ctrl-C: stop where nothing is half done, so that the finished steps can be saved."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SAME_REQUEST = 3.0
"""Seconds in which further signals count as the first: a launcher asks as well when Ctrl-C reaches all processes."""


class Interrupted(BaseException):
    """A signal asked the run to stop. No `Exception`, so that nothing in between takes it for a failure of its own."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number


class Interruption:
    """Raises `Interrupted` in the main thread: at once, or when a stretch that must not be cut has ended.

    Args:
        busy: whether such a stretch is running.
    """

    def __init__(self, busy: Callable[[], bool]) -> None:
        self._busy = busy
        self._pending: int | None = None
        self._since: float | None = None

    @property
    def pending(self) -> bool:
        """Whether a signal waits for such a stretch to end."""
        return self._pending is not None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, the signals come here; one that comes some seconds after the first is not waited with."""
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may set handlers
            return
        before = {number: signal.signal(number, self._handle) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def check(self) -> None:
        """To be called when a stretch has ended; raises what came in the meantime."""
        if self._pending is not None:
            number, self._pending = self._pending, None
            raise Interrupted(number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._since is None:
            self._since = now
            if self._busy():
                self._pending = number
                return
        elif now - self._since < SAME_REQUEST:
            return
        self._pending = None
        raise Interrupted(number)
