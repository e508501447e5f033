"""Which problems take the place of those of a step that taught nothing: a pure function of seed, step and place."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import accumulate

from exprl.data.order import Part
from exprl.seeding import derive_seed


def replacements(
    parts: Sequence[Part], indices: Sequence[int], *, rounds: int, seed: int, step: int
) -> list[list[int]]:
    """For each place of a step the problems that may take it, one a round; indices over all parts in order.

    They are of the part that the place is of, so that parts keep their weights. None is of the step already, nor has a
    second place or round, so that no step has a problem twice, whichever of them are replaced. A list is shorter than
    `rounds` where the part has no more. More rounds only make the lists longer.

    >>> replacements([Part(name="all", count=9, weight=1)], [0, 3, 4], rounds=2, seed=0, step=0)
    [[7, 1], [2, 8], [6, 5]]

    Args:
        parts: of the problems.
        indices: the problem at each place of the step (`mixed_indices`).
        rounds: how often a place may be given another.
        seed: of the data's order.
        step: counts from 0.
    """
    starts = [0, *accumulate(part.count for part in parts)]
    found: list[list[int]] = [[] for _ in indices]
    taken = set(indices)
    for part, start, end in zip(parts, starts, starts[1:], strict=False):
        places = [place for place, index in enumerate(indices) if start <= index < end]
        drawn = _drawn(part.count, derive_seed(seed, "replacement", step, part.name))
        free = (start + index for index in drawn if start + index not in taken)
        for _ in range(rounds):
            for place, index in zip(places, free, strict=False):
                found[place].append(index)
    return found


def _drawn(count: int, seed: int) -> Iterator[int]:
    """The indices below `count` in a random order, at the cost of those that are asked for."""
    # of all that `random` offers, Python promises only seeding and random() to stay the same between versions
    generator = random.Random(seed)
    moved: dict[int, int] = {}
    for left in range(count, 0, -1):
        place = int(generator.random() * left)
        yield moved.get(place, place)
        moved[place] = moved.get(left - 1, left - 1)
