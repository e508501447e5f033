"""What the ranks of a step give each other, for `host.py`: wall-clock seconds, MiB sent, and MiB held of it."""

from __future__ import annotations

import gc
import os
import pickle
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from typing import Any

import torch.multiprocessing
from host_measure import resident
from host_step import Size, groups_of

from exprl.training.exchange import Rewarded, everyones, remote
from exprl.training.world import World, join
from exprl.types import Advantages, RolloutGroup, RolloutReward, ScoredGroup, Segment

PRELOADED = [
    "exprl.judges.same_model",
    "exprl.training.batching",
    "exprl.training.exchange",
    "exprl.training.metrics",
    "transformers.models.auto.tokenization_auto",
]
"""What takes the time of importing this module and `host`, of what can be found without this folder."""


@dataclass(frozen=True)
class Exchanged:
    """Of one rank: wall-clock seconds, MiB that it sent, and that its resident memory grew by."""

    seconds: float
    sent: float
    held: float


def exchange(size: Size, ranks: Sequence[int]) -> None:
    """Prints what the exchange takes with each number of ranks, the rollouts shared among them."""
    print("| ranks | to the others | seconds | MiB sent a rank | MiB held by rank 0 | by another |")
    print("|---:|---|---:|---:|---:|---:|")
    for count in ranks:
        for name, way in WAYS.items():
            first, *others = measured(size, count, way)
            slowest = max(one.seconds for one in (first, *others))
            other = f"{max(one.held for one in others):.0f}" if others else "-"
            print(f"| {count} | {name} | {slowest:.2f} | {first.sent:.0f} | {first.held:.0f} | {other} |", flush=True)


def measured(size: Size, ranks: int, way: Way) -> list[Exchanged]:
    """What one way takes, by rank; each rank is a process that lives for it alone.

    It is forked from one that has imported the libraries and done nothing else, in place of importing them itself.
    """
    context = torch.multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    results: SimpleQueue[tuple[int, Exchanged]] = context.SimpleQueue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    rank = (ranks, port, size, way, results, context.Barrier(ranks))
    torch.multiprocessing.start_processes(_rank, rank, nprocs=ranks, start_method="forkserver")
    return [done for _, done in sorted((results.get() for _ in range(ranks)), key=lambda one: one[0])]


def whole(world: World, own: list[Rewarded]) -> tuple[Any, Callable[[], int]]:
    """Baseline: everything to everybody."""
    return world.gather(own, "the step"), lambda: _bytes(own)


def numbers(world: World, own: list[Rewarded]) -> tuple[Any, Callable[[], int]]:
    """As a step does it: numbers to everybody; each rank writes its own rollouts."""
    return everyones(world, own, "the step"), lambda: _bytes(remote(own))


Way = Callable[[World, list[Rewarded]], tuple[Any, Callable[[], int]]]
WAYS: dict[str, Way] = {"whole rollouts (baseline)": whole, "numbers (exprl)": numbers}


def _rank(
    rank: int,
    ranks: int,
    port: int,
    size: Size,
    way: Way,
    results: SimpleQueue[tuple[int, Exchanged]],
    end: Barrier,
) -> None:
    gc.freeze()  # looked through, every page that it shares with the one it was forked from would be copied
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    world = join(600.0, on_gpu=False)
    share = size.rollouts // ranks
    own = [(group, _rewards(group)) for group in groups_of(None, replace(size, rollouts=share), first=rank * share)]
    world.barrier("the exchange")
    before, start = resident("RssAnon"), time.perf_counter()
    kept, sent = way(world, own)
    seconds, held = time.perf_counter() - start, max(0.0, resident("RssAnon") - before)
    results.put((rank, Exchanged(seconds, sent() / 2**20, held)))
    end.wait()  # none of the world's own: rank 0 holds what the others would wait by
    del kept


def _bytes(*sent: object) -> int:
    return sum(len(pickle.dumps(item)) for item in sent)


def _rewards(group: RolloutGroup) -> tuple[RolloutReward, ...]:
    return tuple(RolloutReward(value=0.5, length=len(rollout)) for rollout in group.rollouts)


def _scored(group: RolloutGroup, rewards: Any) -> ScoredGroup:
    advantages = tuple(Advantages(segments=(Segment(0, len(r)),), values=(0.5,)) for r in group.rollouts)
    return ScoredGroup(group=group, rewards=rewards, advantages=advantages)
