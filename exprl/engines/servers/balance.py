"""Which server a request goes to."""

from __future__ import annotations

from collections.abc import Mapping


def place(loads: Mapping[int, int], home: int | None = None, *, patience: int, first: int = 0) -> int:
    """The server for a request: where its prompt's beginning is cached, unless others are idle; else the least loaded.

    Args:
        loads: requests under way by the number of the server, of those that can take one more; not empty.
        home: the server that has read the beginning of the prompt before, if any has.
        patience: how many more requests than the least loaded one it may have and still be chosen.
        first: the one preferred among equals, and then those that follow it. Ranks know of their own requests alone:
            if all preferred the same, the others would have nothing to do.

    Returns:
        The number of a server in `loads`.

    >>> place({0: 3, 1: 1, 2: 1}, patience=4)
    1
    >>> place({0: 3, 1: 1, 2: 1}, home=0, patience=4)
    0
    >>> place({0: 6, 1: 1, 2: 1}, home=0, patience=4)
    1
    >>> place({0: 1, 1: 1, 2: 1}, patience=4, first=2)
    2
    """
    least = min(loads.values())
    if home is not None and home in loads and loads[home] - least <= patience:
        return home
    return min(loads, key=lambda number: (loads[number], number < first, number))
