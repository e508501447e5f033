"""What the ranks of a step give each other, for `host.py`: wall-clock seconds, and MiB that a rank holds of it."""

from __future__ import annotations

import os
import pickle
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.queues import SimpleQueue

import torch.multiprocessing
from host_measure import Cost, resident
from host_step import Size, groups_of

from exprl.training.world import join
from exprl.types import RolloutGroup, RolloutReward


@dataclass(frozen=True)
class Exchanged:
    """The slowest rank's seconds and the largest rank's MiB, and the MiB that a rank sends."""

    cost: Cost
    sent: float


def exchange(size: Size, ranks: Sequence[int]) -> None:
    """Prints what the exchange takes with each number of ranks, the rollouts shared among them."""
    print("| ranks | seconds | MiB a rank | MiB sent a rank |\n|---:|---:|---:|---:|")
    for count in ranks:
        done = measured(size, count)
        print(
            f"| {count} | {done.cost.seconds:.2f} | {done.cost.mebibytes:.0f} | {done.sent:.0f} |",
            flush=True,
        )


def measured(size: Size, ranks: int) -> Exchanged:
    context = torch.multiprocessing.get_context("spawn")
    results: SimpleQueue[Exchanged] = context.SimpleQueue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_rank, (ranks, port, size, results), nprocs=ranks)
    every = [results.get() for _ in range(ranks)]
    return Exchanged(
        cost=Cost(max(e.cost.seconds for e in every), max(e.cost.mebibytes for e in every)),
        sent=max(e.sent for e in every),
    )


def _rank(rank: int, ranks: int, port: int, size: Size, results: SimpleQueue[Exchanged]) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    world = join(600.0, on_gpu=False)
    own = groups_of(None, replace(size, rollouts=size.rollouts // ranks), first=rank * size.rollouts // ranks)
    rewarded = [(group, _rewards(group)) for group in own]
    world.barrier("the exchange")
    before, start = resident("VmRSS"), time.perf_counter()
    kept = world.gather(rewarded, "the step")
    cost = Cost(time.perf_counter() - start, resident("VmRSS") - before)
    results.put(Exchanged(cost=cost, sent=len(pickle.dumps(rewarded)) / 2**20))
    world.barrier("the end")
    del kept


def _rewards(group: RolloutGroup) -> tuple[RolloutReward, ...]:
    return tuple(RolloutReward(value=0.5, length=len(rollout)) for rollout in group.rollouts)
