"""How tests wait: for the thing itself. A limit is there for what never comes, so a busy machine does not reach it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

LONG = 600.0
"""Seconds after which something has gone wrong, and is not merely slow."""


def until(condition: Callable[[], Any], *, otherwise: Callable[[], str] = lambda: "it did not come to that") -> None:
    """Wait for `condition`; `otherwise` says what is there in its place."""
    limit = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < limit, otherwise()
        time.sleep(0.01)


@contextmanager
def linear() -> Iterator[None]:
    """Inside, this thread needs a second of CPU where its work grows with a text, and minutes where with its square."""
    start = time.thread_time()
    yield
    assert time.thread_time() - start < 30
