"""Steps of a run on so many cards, in three ways: one after the other on the same cards, apart, and one step ahead."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from operator import add
from typing import Literal

from pipeline_cluster import Client, Collected, Server, collect, jobs_of
from pipeline_rates import Rates, Step, Workload

from exprl.data.order import share_of
from exprl.engines.servers.fleet import PATIENCE
from exprl.engines.vllm_server import PROMPT_PATIENCE
from exprl.training.micro_batches import share

Way = Literal["colocated", "in sequence", "one ahead"]
WAYS: tuple[Way, ...] = ("colocated", "in sequence", "one ahead")


@dataclass(frozen=True, kw_only=True)
class Split:
    """Which cards do what; without `judges` the samplers' servers judge. Colocated, each trainer's card does all."""

    trainers: int
    samplers: int = 0
    judges: int = 0

    @property
    def cards(self) -> int:
        """All of them."""
        return self.trainers + self.samplers + self.judges

    def __str__(self) -> str:
        if not self.samplers:
            return f"{self.trainers}"
        return f"{self.trainers} + {self.samplers} + {self.judges or 'shared'}"


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """A step, on average: its seconds, the parts of it, and the share in which each kind of card has nothing to do."""

    split: Split
    seconds: float
    collecting: float
    updating: float
    syncing: float
    trainer_idle: float
    sampler_idle: float
    judge_idle: float


@dataclass(kw_only=True)
class Simulation:
    """A run's steps by given rates; what parts of a cluster do is computed once and kept.

    Attributes:
        steps: the lengths of each step's rollouts.
        patience: requests by which a server that has read a policy's prompt may be ahead of others; as the engine's.
        own_servers: each rank has servers of its own, an equal number, rather than all ranks all servers.
    """

    rates: Rates
    work: Workload
    steps: Sequence[Step]
    patience: int = PROMPT_PATIENCE
    own_servers: bool = False
    _collected: dict[tuple[Split, bool], list[Collected]] = field(default_factory=dict)
    _updates: dict[int, list[float]] = field(default_factory=dict)

    def simulate(self, way: Way, split: Split) -> Simulated:
        """The mean step."""
        colocated = way == "colocated"
        collected = self.collected(split, colocated=colocated)
        updates = self.updates(split.trainers)
        sync = self.rates.sync_seconds(colocated=colocated)
        seconds = self.seconds(way, split)
        total, update = sum(seconds), sum(updates)
        sampler = sum(one.sampler_busy for one in collected)
        judge = sum(one.judge_busy for one in collected) if split.judges else sampler
        return Simulated(
            split=split,
            seconds=total / len(seconds),
            collecting=statistics.fmean(one.seconds for one in collected),
            updating=update / len(updates),
            syncing=sync,
            trainer_idle=1 - ((update + sampler) if colocated else update) / total,
            sampler_idle=1 - ((update + sampler) if colocated else sampler) / total,
            judge_idle=1 - ((update + judge) if colocated else judge) / total,
        )

    def seconds(self, way: Way, split: Split) -> list[float]:
        """Of each step; one ahead, its update runs while the next, after the last the first, is sampled and judged."""
        colocated = way == "colocated"
        collected = [one.seconds for one in self.collected(split, colocated=colocated)]
        if way == "one ahead":
            both = map(max, [*collected[1:], collected[0]], self.updates(split.trainers))
        else:
            both = map(add, collected, self.updates(split.trainers))
        sync = self.rates.sync_seconds(colocated=colocated)
        return [one + sync for one in both]

    def collected(self, split: Split, *, colocated: bool) -> list[Collected]:
        """Sampling and judging of each step; each trainer asks for its part of the prompts, and knows of that alone."""
        key = (split, colocated)
        if key not in self._collected:
            self._collected[key] = [self._collect(step, split, colocated=colocated) for step in self.steps]
        return self._collected[key]

    def _collect(self, step: Step, split: Split, *, colocated: bool) -> Collected:
        ranks, rates = split.trainers, self.rates
        if colocated:
            samplers = [Server(rates=rates, cache=rates.colocated_cache_tokens) for _ in range(ranks)]
            judges = samplers
        else:
            samplers = [
                Server(rates=rates, cache=rates.cache_tokens) for _ in range(split.samplers // rates.cards_per_sampler)
            ]
            judges = [
                Server(rates=rates, speed=rates.judge_speed, cache=rates.cache_tokens)
                for _ in range(split.judges // rates.cards_per_judge)
            ] or samplers
        own = colocated or self.own_servers
        clients = self._clients(samplers, ranks, self.patience, own=own)
        judging = self._clients(judges, ranks, PATIENCE, own=own)
        return collect(jobs_of(step, self.work, ranks), clients, judging)

    def _clients(self, servers: Sequence[Server], ranks: int, patience: int, *, own: bool) -> list[Client]:
        parts = [servers[share_of(len(servers), rank, ranks)] if own else servers for rank in range(ranks)]
        return [
            Client(
                servers=part,
                first=len(part) * rank // ranks,
                patience=patience,
                concurrency=self.rates.concurrency,
            )
            for rank, part in enumerate(parts)
        ]

    def updates(self, trainers: int) -> list[float]:
        """Seconds of each step on the host and in the update."""
        if trainers not in self._updates:
            self._updates[trainers] = [self._update(step, trainers) for step in self.steps]
        return self._updates[trainers]

    def _update(self, step: Step, trainers: int) -> float:
        rates, own = self.rates, self.own_tokens(step, trainers)
        host = rates.host_own * own + rates.host_all * sum(map(sum, step))
        lengths = [self.work.prompt_tokens + length for group in step for length in group]
        shares = share(lengths, budget=rates.micro_batch_tokens, ranks=trainers, packed=True)
        busiest = max(sum(lengths[index] for batch in batches for index in batch) for batches in shares)
        return host + rates.update_seconds(busiest, trainers)

    def own_tokens(self, step: Step, trainers: int) -> int:
        """Sampled tokens of the rank that has most of them: ranks share the prompts in order."""
        parts = [share_of(len(step), rank, trainers) for rank in range(trainers)]
        return max(sum(map(sum, step[part])) for part in parts)

    @cached_property
    def floor(self) -> float:
        """What no number of cards takes away: the longest rollout alone on a server, and the sync; of the mean step."""
        longest = statistics.fmean(max(map(max, step)) for step in self.steps)
        return longest * self.rates.pass_seconds(1) + self.rates.sync_seconds(colocated=False)

    @cached_property
    def judging(self) -> float:
        """Seconds of one judge server that a mean step's verdicts take, written ones at its best rate."""
        rates, work = self.rates, self.work
        judged = [length for step in self.steps for group in step for length in group if work.segments(length)]
        prompts = sum(map(work.segments, judged))
        problems = sum(any(map(work.segments, group)) for step in self.steps for group in step)
        shared = problems * work.judge_shared + len(self.steps) * work.judge_instructions
        read = (sum(judged) + prompts * work.judge_closing + shared) / rates.prefill
        written = prompts * work.judge_reply / rates.decode_peak
        return (read + written) / rates.judge_speed / len(self.steps) if judged else 0.0

    # ------------------------------------------------------------------ all splits

    def best(self, way: Way, cards: int) -> Simulated | None:
        """The fastest of all splits of these cards; None where there is none.

        Above 16 cards those with 1, 2, 3, 4, 6, 8, 12, ... trainers and judges are looked at, the latter up to eight
        times those that verdicts need, then the splits around the best at ever smaller distance.
        """
        if way == "colocated":
            return self.simulate(way, Split(trainers=cards)) if cards <= self.work.prompts else None
        if cards <= 16:
            return self._fastest(way, self.splits(cards, range(cards), range(cards)))
        judges = amounts(8 + int(8 * self.judging / self.floor))
        found = self._fastest(way, self.splits(cards, [*amounts(cards), self.work.prompts], judges))
        for distance in (8, 4, 2, 1):
            found = found and self._fastest(way, [found.split, *self._around(found.split, distance)])
        return found

    def _fastest(self, way: Way, splits: Iterable[Split]) -> Simulated | None:
        """Those whose update alone takes longer than a whole step of another are left out."""
        best: Simulated | None = None
        ordered = sorted(set(splits), key=lambda split: (-split.trainers, split.judges))
        for split in filter(self.possible, ordered):
            if best is None or statistics.fmean(self.updates(split.trainers)) < best.seconds:
                found = self.simulate(way, split)
                best = found if best is None or found.seconds < best.seconds else best
        return best

    def possible(self, split: Split) -> bool:
        """Each trainer has a prompt of the step, and servers have whole numbers of cards."""
        rates = self.rates
        whole = split.samplers % rates.cards_per_sampler == 0 and split.judges % rates.cards_per_judge == 0
        judged = split.judges == 0 or self.work.segment_tokens > 0
        return whole and judged and split.judges >= 0 < split.samplers and 0 < split.trainers <= self.work.prompts

    @staticmethod
    def splits(cards: int, training: Iterable[int], judging: Iterable[int]) -> Iterator[Split]:
        """All cards shared out, with as many trainers and judges as are among these numbers, or no judge."""
        for trainers, judges in product(sorted({*training} - {0}), sorted({*judging, 0})):
            if trainers + judges < cards:
                yield Split(trainers=trainers, samplers=cards - trainers - judges, judges=judges)

    @staticmethod
    def _around(split: Split, distance: int) -> Iterator[Split]:
        for trainers, judges in product((-distance, 0, distance), repeat=2):
            moved = split.samplers - trainers - judges
            yield Split(trainers=split.trainers + trainers, samplers=moved, judges=split.judges + judges)


def amounts(most: int) -> list[int]:
    """Powers of two, and what lies between two of them.

    >>> amounts(20)
    [1, 2, 3, 4, 6, 8, 12, 16]
    """
    powers = [1 << power for power in range(most.bit_length())]
    return [n for n in sorted({1, *powers, *(3 * power for power in powers)}) if n <= most]
