"""Which problems each step samples from: a pure function of the seed, the same on every machine and at every resume."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from exprl.errors import ConfigError
from exprl.seeding import derive_seed


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
    epochs = _Epochs(count, seed)
    while True:
        yield epochs.take(per_step)


@dataclass(frozen=True, kw_only=True)
class Part:
    """Problems that follow each other, and how much of each step is drawn from them, beside the other parts."""

    name: str
    count: int
    weight: float


def mixed_indices(parts: Sequence[Part], per_step: int, seed: int) -> Iterator[list[int]]:
    """Without end, the `per_step` problems (indices over all parts in order) of each step, of each part by its weight.

    Each part is visited in shuffled epochs of its own, in an order that depends on the seed and the part's name alone.
    A place of a step goes to the part that has had least of what is its own so far, so that after every step each has
    had its share, give or take a problem or so; the places of a part are spread over the step. One part is
    `step_indices`.

    >>> steps = mixed_indices([Part(name="a", count=9, weight=3), Part(name="b", count=5, weight=1)], 4, seed=0)
    >>> [sum(index < 9 for index in next(steps)) for _ in range(3)]
    [3, 3, 3]

    Raises:
        ConfigError: see `check_parts`.
    """
    check_parts(parts, per_step)
    if len(parts) == 1:
        yield from step_indices(parts[0].count, per_step, seed)
    starts = [0, *accumulate(part.count for part in parts)]
    epochs = [_Epochs(part.count, derive_seed(seed, "mix", part.name)) for part in parts]
    for places in _places(parts, per_step):
        drawn = [iter(own.take(places.count(number))) for number, own in enumerate(epochs)]
        yield [starts[number] + next(drawn[number]) for number in places]


class StepOrder:
    """The problems of any step, as `mixed_indices` gives them.

    Steps are drawn one after the other; the last two are kept, so that who looks one step ahead and back again has
    none drawn twice.

    >>> StepOrder([Part(name="all", count=5, weight=1)], per_step=3, seed=0)[2]
    [1, 2, 0]
    """

    def __init__(self, parts: Sequence[Part], per_step: int, seed: int) -> None:
        self.parts, self.per_step, self.seed = tuple(parts), per_step, seed
        self._steps = mixed_indices(self.parts, per_step, seed)
        self._recent: deque[list[int]] = deque(maxlen=2)
        self._drawn = 0

    def __getitem__(self, step: int) -> list[int]:
        """Indices over all parts in order, one a place; `step` counts from 0. Raises `IndexError` for one below 0."""
        if step < 0:
            raise IndexError(f"step: counts from 0, but got {step}")
        if step < self._drawn - len(self._recent):
            self._steps, self._drawn = mixed_indices(self.parts, self.per_step, self.seed), 0
            self._recent.clear()
        while self._drawn <= step:
            self._recent.append(next(self._steps))
            self._drawn += 1
        return list(self._recent[step - self._drawn])


def shares(parts: Sequence[Part]) -> list[float]:
    """How much of a step is of each part; 1 over all."""
    total = math.fsum(part.weight for part in parts)
    return [part.weight / total for part in parts]


def check_parts(parts: Sequence[Part], per_step: int) -> None:
    """Raise `ConfigError` where a step would have a problem of a part twice."""
    for part, share in zip(parts, shares(parts), strict=True):
        if share * per_step > part.count + _ROUNDING:
            raise ConfigError(
                f"data.train: {part.name!r} has {part.count} problems, but its weight makes {share * per_step:.1f} of "
                f"the {per_step} of a step (data.prompts_per_step), and no step has a problem twice. Lower its weight, "
                "or add problems."
            )


_ROUNDING = 1e-9


def _places(parts: Sequence[Part], per_step: int) -> Iterator[list[int]]:
    """For each step the numbers of the parts that its places go to."""
    own, had, total = shares(parts), [0] * len(parts), 0
    while True:
        before, step = list(had), []
        for _ in range(per_step):
            total += 1
            free = [number for number, part in enumerate(parts) if had[number] - before[number] < part.count]
            number = max(free, key=lambda number: (own[number] * total - had[number], -number))
            had[number] += 1
            step.append(number)
        yield step


class _Epochs:
    """The indices below `count` in shuffled epochs, any number of them at a time, each once in a time."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed
        self.epoch, self.waiting = 0, list[int]()

    def take(self, number: int) -> list[int]:
        """The next ones; `number` is at most `count`."""
        if len(self.waiting) < number:
            self.waiting += _next_epoch(shuffled(self.count, self.seed, self.epoch), self.waiting, number)
            self.epoch += 1
        taken, self.waiting = self.waiting[:number], self.waiting[number:]
        return taken


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
