"""Sharing sequences among ranks: everything once, within the budget, balanced, the same number of micro-batches."""

from __future__ import annotations

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


def test_nothing_gives_nothing() -> None:
    assert share([], budget=10, ranks=2, packed=True) == [[], []]
