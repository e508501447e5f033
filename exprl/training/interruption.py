"""SIGTERM and Ctrl-C: stop where nothing is half done, so that the finished steps can be saved."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


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

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, the signals come here; a second one is not waited with."""
        numbers = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.getsignal(number) for number in numbers}
        for number in numbers:
            signal.signal(number, self._handle)
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
        if self._busy() and self._pending is None:
            self._pending = number
            return
        self._pending = None
        raise Interrupted(number)
