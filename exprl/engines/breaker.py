"""Telling a dead server from single requests that failed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

SILENT_TRIES = 8
"""Tries in a row without any answer after which a server is asked once more, by itself."""


class CircuitBreaker:
    """Opens when a server is dead, so that not every request waits its full time for it.

    Any answer, also one that refuses, closes the case. After `SILENT_TRIES` tries in a row without one, for at least
    `grace` seconds, the server is asked once more; if it stays silent then, it is dead and stays so.

    Args:
        grace: seconds of silence that are always lived with: a server may restart.
        ask: asks the server once, and calls `answered` if it answers anything; may raise.
    """

    def __init__(self, grace: float, ask: Callable[[], Awaitable[object]]) -> None:
        self._grace, self._ask = grace, ask
        self._asking = asyncio.Lock()
        self._silent_since: float | None = None
        self._silent_tries = 0
        self.death: str | None = None
        """What the last try met, once the server is dead."""

    def answered(self) -> None:
        """The server has given some answer."""
        self._silent_since, self._silent_tries = None, 0

    async def silent(self, since: float, error: Exception) -> None:
        """A try that began at `since` (monotonic) got no answer, but `error`; may ask the server once more.

        The question is asked here only: whoever comes meanwhile goes on with its own tries.
        """
        self._silent_since = since if self._silent_since is None else min(self._silent_since, since)
        self._silent_tries += 1
        long_silent = time.monotonic() - self._silent_since >= self._grace
        if self._silent_tries < SILENT_TRIES or not long_silent or self._asking.locked() or self.death is not None:
            return
        async with self._asking:
            try:
                await self._ask()
            except Exception:  # noqa: BLE001 - what counts is whether there was an answer, good or bad
                if self._silent_tries:
                    self.death = str(error)
