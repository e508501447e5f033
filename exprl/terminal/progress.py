"""How long work reports that it gets on."""

from __future__ import annotations

from collections.abc import Callable

OnProgress = Callable[[int], object]
"""Called with the number of things done since the last call; a progress bar's `update` is one."""


def no_progress(count: int) -> None:
    """Report nothing."""
    del count
