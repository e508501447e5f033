"""Waiting for others, with a limit that counts only while this process itself runs.

A process that is stopped or swapped out, or whose interpreter one thread holds, hears nothing whatever the others do,
and the clock goes on. So a wait is cut into short ones, of which none counts for more than a tenth of the limit. On a
busy machine, where each is late by a little, the limit is what it says all the same.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

LOOKS = 2
"""At the least that fail, one after the other, before somebody who has answered counts as lost."""
_PARTS = 100
_LEAST = 10
"""Looks in which a limit can pass at the least, so that one long absence cannot use it up."""


class Wait:
    """How long another may still take.

    Whoever waits asks `over` again and again, every `pause` seconds: much more between two times was spent without this
    process.

    Args:
        limit: seconds.
        pause: between two questions, in seconds, of which no more counts; None: a hundredth of `limit`, of which up to
            ten such may count.

    >>> wait = Wait(0.01)
    >>> while not wait.over():
    ...     time.sleep(wait.pause)
    """

    def __init__(self, limit: float, *, pause: float | None = None) -> None:
        self.pause = limit / _PARTS if pause is None else pause
        self._most = limit / _LEAST if pause is None else pause
        self._left = limit
        self._asked = time.monotonic()

    def over(self) -> bool:
        """Whether its time is up."""
        now = time.monotonic()
        self._left -= min(now - self._asked, self._most)
        self._asked = now
        return self._left <= 0


@contextmanager
def counting(limit: float, then: Callable[[], object] | None = None) -> Iterator[Wait]:
    """A wait that the running event loop counts inside; it calls `then` where its time is up."""
    loop, wait = asyncio.get_running_loop(), Wait(limit)
    inside = True

    def count() -> None:
        if not inside:
            return
        if wait.over() and then is not None:
            then()
        else:
            loop.call_later(wait.pause, count)

    loop.call_later(wait.pause, count)
    try:
        yield wait
    finally:
        inside = False


@asynccontextmanager
async def within(limit: float) -> AsyncIterator[None]:
    """As `asyncio.timeout`, but only the time counts in which the event loop runs.

    Raises:
        TimeoutError: after `limit` seconds.
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(None) as timeout:
        with counting(limit, lambda: timeout.reschedule(loop.time())):
            yield
