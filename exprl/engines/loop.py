"""Waiting for servers in the background."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any
from weakref import finalize


class BackgroundLoop:
    """An event loop in a daemon thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="exprl-server", daemon=True).start()
        finalize(self, self._loop.call_soon_threadsafe, self._loop.stop)

    def submit(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Begin `work` in that thread; the future has what it returns or raises, and cancels it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)
