"""Which rank computes which rollouts together: pure functions on lengths, the same on every rank."""

from __future__ import annotations

from collections.abc import Sequence

Indices = list[int]


def share(
    lengths: Sequence[int], *, budget: int, ranks: int, packed: bool, overhead: int | None = None
) -> list[list[Indices]]:
    """For each rank its micro-batches, each the indices of the sequences in it; the same number on every rank.

    The longest go first and to the rank that has least to do. A rank with fewer micro-batches than the others gets
    empty ones at the end. A sequence longer than the budget goes alone.

    >>> share([5, 2, 3, 4], budget=6, ranks=2, packed=True)
    [[[3, 1], []], [[0], [2]]]

    Args:
        lengths: tokens of each sequence.
        budget: tokens of a micro-batch, padding included.
        ranks: how many share the sequences.
        packed: sequences lie end to end; otherwise they are padded to the longest.
        overhead: tokens that take as long as a micro-batch does beside its tokens: more are made where that saves
            more padding; None: as few as fit.
    """
    if ranks > 1 and lengths:
        # Where one rank's budget would hold everything, smaller micro-batches give every rank its part.
        budget = min(budget, max(*lengths, -(-sum(lengths) // ranks)))
    batches = fill(lengths, budget) if packed else split_by_tokens(lengths, budget, overhead)
    loads = [sum(lengths[index] for index in batch) for batch in batches]
    shares: list[list[Indices]] = [[] for _ in range(ranks)]
    totals = [0] * ranks
    largest_first = sorted(range(len(batches)), key=lambda number: -loads[number])
    for start in range(0, len(largest_first), ranks):
        # One a rank in each round, so that all have the same number.
        by_load = sorted(range(ranks), key=totals.__getitem__)
        for rank, number in zip(by_load, largest_first[start : start + ranks], strict=False):
            shares[rank].append(batches[number])
            totals[rank] += loads[number]
    rounds = -(-len(batches) // ranks)
    return [own + [[] for _ in range(rounds - len(own))] for own in shares]


def fill(lengths: Sequence[int], budget: int) -> list[Indices]:
    """Sequences end to end: each goes to the first micro-batch with room for it, the longest first.

    >>> fill([5, 2, 3, 1], budget=6)
    [[0, 3], [2, 1]]
    """
    batches: list[Indices] = []
    rooms: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = next((n for n, room in enumerate(rooms) if room >= lengths[index]), None)
        if place is None:
            batches.append([])
            rooms.append(budget)
            place = len(batches) - 1
        batches[place].append(index)
        rooms[place] -= lengths[index]
    return batches


def split_by_tokens(lengths: Sequence[int], budget: int, overhead: int | None = None) -> list[Indices]:
    """Sequences padded to the longest: sorted by length, so that padding is small, rows times longest within `budget`.

    As few micro-batches as that allows; with an `overhead`, more where that saves more tokens than they cost.

    >>> split_by_tokens([5, 2, 3], budget=6)
    [[0], [2, 1]]
    >>> split_by_tokens([9, 9, 2, 2], budget=40, overhead=6), split_by_tokens([9, 9, 2, 2], budget=40, overhead=20)
    ([[0, 1], [2, 3]], [[0, 1, 2, 3]])
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    filled = _filled(lengths, order, budget)
    if overhead is None:
        return filled
    cut = _cheapest(lengths, order, budget, overhead)
    saved = _padded(lengths, filled) - _padded(lengths, cut) - overhead * (len(cut) - len(filled))
    return cut if saved > overhead else filled


def _filled(lengths: Sequence[int], order: Sequence[int], budget: int) -> list[Indices]:
    """Each micro-batch takes the next sequences while they fit."""
    batches: list[Indices] = []
    for index in order:
        longest = lengths[batches[-1][0]] if batches else 0
        if batches and longest * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def _cheapest(lengths: Sequence[int], order: Sequence[int], budget: int, overhead: int) -> list[Indices]:
    """Of all ways to cut the sorted sequences, that with the fewest padded tokens and overheads."""
    cost, begin = [0], [0]  # of the cheapest cut of the first n sequences, and where its last micro-batch begins
    for end in range(1, len(order) + 1):
        choices = []
        for first in range(end - 1, -1, -1):
            tokens = lengths[order[first]] * (end - first)
            if tokens > budget and end - first > 1:
                break  # further back they are only longer
            choices.append((cost[first] + tokens + overhead, first))
        best, first = min(choices)
        cost.append(best)
        begin.append(first)
    batches: list[Indices] = []
    end = len(order)
    while end:
        batches.insert(0, list(order[begin[end] : end]))
        end = begin[end]
    return batches


def _padded(lengths: Sequence[int], batches: Sequence[Indices]) -> int:
    """Tokens of all micro-batches, padding included; the first of each is its longest."""
    return sum(lengths[batch[0]] * len(batch) for batch in batches)
