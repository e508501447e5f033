"""Which problems each step samples from: a pure function of the seed, the same on every machine and at every resume."""

from __future__ import annotations

import random
from collections.abc import Iterator

from exprl.errors import ConfigError


def step_indices(count: int, per_step: int, seed: int) -> Iterator[list[int]]:
    """Without end, the `per_step` problems (indices below `count`) of each step.

    Every epoch visits each problem once, in an order of its own. A step may reach across the end of an epoch, so that
    none is short and nothing is dropped; the next epoch then starts with problems that this step does not have yet.

    >>> steps = step_indices(count=5, per_step=3, seed=0)
    >>> [next(steps) for _ in range(4)]
    [[0, 3, 4], [1, 2, 3], [1, 2, 0], [4, 1, 3]]

    Raises:
        ValueError: `per_step` is not in 1..count, so a step would have a problem twice.
    """
    if not 1 <= per_step <= count:
        raise ValueError(f"per_step must lie in 1..{count}, but got {per_step}")
    waiting: list[int] = []
    epoch = 0
    while True:
        if len(waiting) < per_step:
            waiting += _next_epoch(shuffled(count, seed, epoch), waiting, per_step)
            epoch += 1
        yield waiting[:per_step]
        waiting = waiting[per_step:]


def share_of(count: int, rank: int, ranks: int) -> slice:
    """The contiguous part of `count` things that one of `ranks` ranks takes; parts differ in length by one at most.

    >>> [share_of(36, rank, 8) for rank in (0, 3, 4, 7)]
    [slice(0, 5, None), slice(15, 20, None), slice(20, 24, None), slice(32, 36, None)]
    """
    size, longer = divmod(count, ranks)
    start = rank * size + min(rank, longer)
    return slice(start, start + size + (rank < longer))


def shuffled(count: int, seed: int, epoch: int) -> list[int]:
    """The indices below `count` in the order of one epoch."""
    # of all that `random` offers, Python promises only seeding and random() to stay the same between versions
    generator = random.Random(f"{seed}/{epoch}")
    keys = [generator.random() for _ in range(count)]
    return sorted(range(count), key=keys.__getitem__)


def _next_epoch(order: list[int], waiting: list[int], per_step: int) -> list[int]:
    carried = set(waiting)
    head = [index for index in order if index not in carried][: per_step - len(waiting)]
    taken = set(head)
    return head + [index for index in order if index not in taken]


def check_share(prompts_per_step: int, ranks: int) -> None:
    """Raise `ConfigError` where a step has not one prompt for each rank."""
    if prompts_per_step < ranks:
        raise ConfigError(
            f"data.prompts_per_step: {prompts_per_step} prompts cannot be shared by {ranks} ranks. Make it at least "
            f"{ranks}, or use fewer devices."
        )
