"""Processes below another, and the memory that is theirs, as Linux tells in /proc."""

from __future__ import annotations

import os
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")


def children_of(pid: int) -> list[int]:
    """The processes that one has started and that live, or are not waited for; none where that cannot be seen."""
    found: list[int] = []
    try:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (thread / "children").read_text().split())
    except OSError:
        pass  # it is gone, or this is no Linux
    return found


def group_memory(pid: int) -> int:
    """Bytes in memory that are their own of a process and all below it; what they share with files does not count."""
    own, left = 0, [pid]
    while left:
        current = left.pop()
        left += children_of(current)
        try:
            _, resident, shared, *_ = Path(f"/proc/{current}/statm").read_text().split()
        except (OSError, ValueError):
            continue
        own += (int(resident) - int(shared)) * _PAGE
    return own
