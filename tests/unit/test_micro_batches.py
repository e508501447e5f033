"""Sharing sequences among ranks: everything once, within the budget, balanced, the same number of micro-batches."""

from __future__ import annotations

import itertools
import random

import pytest

from exprl.training.micro_batches import fill, share, split_by_tokens


def cases() -> list[list[int]]:
    generator = random.Random(0)
    heavy = [[min(16384, int(200 * generator.paretovariate(0.8))) for _ in range(90)] for _ in range(3)]
    return [[7], [5, 2, 3, 4], [1] * 17, *heavy]


@pytest.mark.parametrize("lengths", cases(), ids=len)
@pytest.mark.parametrize("ranks", [1, 2, 8])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("budget", [1, 1000, 16384, 10**7])
def test_every_sequence_is_computed_once_within_the_budget(
    lengths: list[int], ranks: int, packed: bool, budget: int
) -> None:
    shares = share(lengths, budget=budget, ranks=ranks, packed=packed)
    assert len(shares) == ranks
    assert len({len(own) for own in shares}) == 1, "all ranks have the same number of micro-batches"
    everything = [index for own in shares for batch in own for index in batch]
    assert sorted(everything) == list(range(len(lengths)))
    for own in shares:
        for batch in own:
            sizes = [lengths[index] for index in batch]
            tokens = sum(sizes) if packed else len(sizes) * max(sizes, default=0)
            assert len(batch) <= 1 or tokens <= budget
        assert own == sorted(own, key=lambda batch: not batch), "empty ones come last"


@pytest.mark.parametrize("lengths", [c for c in cases() if len(c) == 90], ids=str)
def test_ranks_have_about_the_same_to_do(lengths: list[int]) -> None:
    loads = [
        sum(lengths[i] for batch in own for i in batch) for own in share(lengths, budget=16384, ranks=4, packed=True)
    ]
    assert max(loads) - min(loads) <= max(lengths)
    assert max(loads) <= 1.3 * sum(lengths) / 4 or max(loads) <= max(lengths)


def test_a_large_budget_still_gives_every_rank_its_part() -> None:
    shares = share([10] * 8, budget=10**9, ranks=4, packed=True)
    assert [sum(len(batch) for batch in own) for own in shares] == [2, 2, 2, 2]


def test_packing_needs_fewer_micro_batches_than_padding() -> None:
    lengths = [100, 10, 10, 10, 90, 10]
    assert len(fill(lengths, 120)) < len(split_by_tokens(lengths, 120))


def padded_tokens(lengths: list[int], batches: list[list[int]]) -> int:
    return sum(len(batch) * max(lengths[index] for index in batch) for batch in batches)


@pytest.mark.parametrize("overhead", [0, 5, 40, 1000])
def test_no_other_cut_saves_more_than_a_micro_batch_costs(overhead: int) -> None:
    generator = random.Random(1)
    for _ in range(20):
        lengths = [generator.randint(1, 60) for _ in range(9)]
        order = sorted(range(9), key=lambda index: -lengths[index])
        found = split_by_tokens(lengths, 150, overhead)
        own = padded_tokens(lengths, found) + overhead * len(found)
        for cuts in itertools.product([False, True], repeat=8):
            places = [0, *(place for place, cut in enumerate(cuts, start=1) if cut), 9]
            batches = [order[first:end] for first, end in itertools.pairwise(places)]
            if all(len(batch) == 1 or padded_tokens(lengths, [batch]) <= 150 for batch in batches):
                assert own <= padded_tokens(lengths, batches) + overhead * (len(batches) + 1)


def test_what_saves_less_than_a_micro_batch_costs_changes_nothing() -> None:
    lengths = [20, 19, 18, 9, 9, 8]
    assert split_by_tokens(lengths, 60) == [[0, 1, 2], [3, 4, 5]]
    assert split_by_tokens(lengths, 80, overhead=30) == split_by_tokens(lengths, 80) == [[0, 1, 2, 3], [4, 5]]


def test_ragged_rollouts_are_padded_less_where_a_micro_batch_costs_little() -> None:
    lengths = [40 + 11 * number for number in range(16)]
    whole, cut = split_by_tokens(lengths, 10**6), split_by_tokens(lengths, 10**6, overhead=80)
    assert len(whole) == 1
    assert padded_tokens(lengths, whole) > 1.6 * sum(lengths)
    assert padded_tokens(lengths, cut) < 1.25 * sum(lengths)


def test_thousands_of_sequences_are_cut_in_a_moment() -> None:
    generator = random.Random(2)
    lengths = [generator.randint(50, 2000) for _ in range(4000)]
    batches = split_by_tokens(lengths, 16384, overhead=500)
    assert sorted(index for batch in batches for index in batch) == list(range(4000))


def test_nothing_gives_nothing() -> None:
    assert share([], budget=10, ranks=2, packed=True) == [[], []]
