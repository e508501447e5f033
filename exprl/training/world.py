"""The processes of a run: who this one is, how they meet, and what is said when one of them does not come."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d

from exprl.console import errors
from exprl.errors import DistributedError, PeerError

T = TypeVar("T")

DEFAULT_TIMEOUT = 1800.0
_POLL = 0.02


class World:
    """This process among the `size` processes (ranks) of a run.

    A single process is a world of one: nothing here waits or communicates then. Ranks agree through the process
    group's key-value store, which also tells what each was doing, so that every wait has a limit and names who is late.

    Args:
        timeout: seconds a rank may keep the others waiting.
    """

    def __init__(self, timeout: float = DEFAULT_TIMEOUT) -> None:
        self.timeout = timeout
        self.exchanging = False
        """Whether the others count on this rank right now: a signal must wait."""
        self.rank, self.size = 0, 1
        self._meetings: Counter[str] = Counter()
        self._deadline: float | None = None
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            self.rank, self.size = dist.get_rank(), dist.get_world_size()
            self._store = c10d.PrefixStore("exprl", c10d._get_default_store())
            # Python objects travel between CPUs, also where the gradients travel between GPUs.
            self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=2 * timeout))
            threading.Thread(target=self._watch, name="exprl-watch", daemon=True).start()
        self.enter("starting")

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which prints and writes."""
        return self.rank == 0

    # ------------------------------------------------------------------ what this rank is doing

    def enter(self, phase: str) -> None:
        """Tell the others what this rank does from now on."""
        self.phase = phase
        if self.size > 1:
            self._store.set(f"phase/{self.rank}", json.dumps([phase, time.time()]))

    def fail(self, reason: str) -> None:
        """Tell the others that this rank cannot go on; they stop at their next meeting."""
        if self.size > 1:
            self._store.set("failed", f"rank {self.rank} failed in {self.phase}: {reason}")

    def report(self) -> str:
        """What every rank was last seen doing, one line a rank."""
        return "\n".join(f"  rank {rank}: {self._last_seen(rank)}" for rank in range(self.size))

    def _last_seen(self, rank: int) -> str:
        if not self._store.check([f"phase/{rank}"]):
            return "has not started"
        phase, since = json.loads(self._store.get(f"phase/{rank}"))
        return f"{phase}, for {time.time() - since:.0f} s"

    # ------------------------------------------------------------------ meeting

    def meet(self, what: str, *, despite_failure: bool = False, limit: float | None = None) -> None:
        """Wait until every rank is here, `limit` seconds at most (None: the timeout).

        Raises:
            DistributedError: naming the ranks that did not come within the timeout and what they were doing, or the
                rank that failed (`PeerError`).
        """
        if self.size == 1:
            return
        before = self.phase
        self.enter(f"waiting for the other ranks before {what}, after {before}")
        self._meetings[what] += 1
        keys = [f"meet/{what}/{self._meetings[what]}/{rank}" for rank in range(self.size)]
        limit = min(limit or self.timeout, self.timeout)
        deadline = time.monotonic() + limit
        try:
            self._store.set(keys[self.rank], "here")
            while not self._store.check(keys):
                if not despite_failure and self._store.check(["failed"]):
                    raise PeerError(self._store.get("failed").decode())
                if time.monotonic() > deadline:
                    late = [rank for rank, key in enumerate(keys) if not self._store.check([key])]
                    raise DistributedError(self._late(late, what, limit))
                time.sleep(_POLL)
        except (RuntimeError, ConnectionError) as error:  # the store went with the process that held it
            raise DistributedError(f"rank {self.rank}, {self.phase}: the ranks' store is gone ({error})") from error
        self.enter(before)

    def _late(self, ranks: list[int], what: str, limit: float) -> str:
        names = " and ".join(f"rank {rank}" for rank in ranks)
        return (
            f"{names} did not come to {what} within {limit:.0f} s (trainer.timeout is {self.timeout:.0f}). Last "
            f"seen:\n{self.report()}\nGo on from the last checkpoint with --resume."
        )

    @contextmanager
    def first_before_others(self, what: str) -> Iterator[None]:
        """Rank 0 runs the block before the others: it fills the caches, and what fails for it fails for all."""
        if not self.first:
            self.meet(what)
        try:
            yield
        except BaseException as error:
            self.fail(str(error))
            raise
        if self.first:
            self.meet(what)

    def gather(self, value: T, what: str, *, despite_failure: bool = False) -> list[T]:
        """Every rank's value, in the order of ranks, on every rank; raises as `meet` does."""
        if self.size == 1:
            return [value]
        self.exchanging = True
        try:
            self.meet(what, despite_failure=despite_failure)
            values: list[Any] = [None] * self.size
            dist.all_gather_object(values, value, group=self._group)
        finally:
            self.exchanging = False
        return values

    def sum(self, values: Mapping[str, float]) -> dict[str, float]:
        """Sum of every rank's values by name; names one rank alone has count too."""
        if self.size == 1:
            return dict(values)
        total: Counter[str] = Counter()
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, dict(values), group=self._group)
        for own in gathered:
            for name, value in own.items():
                total[name] += value
        return dict(total)

    # ------------------------------------------------------------------ collectives of gradients

    @contextmanager
    def collective(self, what: str) -> Iterator[None]:
        """A stretch in which ranks exchange tensors: `progress` must be called at least once every timeout.

        Raises:
            DistributedError: a rank went away. (A stall cannot be raised out of a collective; it ends the process.)
        """
        if self.size == 1:
            yield
            return
        self.enter(what)
        self.progress()
        try:
            yield
        except (RuntimeError, ConnectionError) as error:
            if "onnect" in str(error) or "imed out" in str(error):
                raise DistributedError(
                    f"{what}: a rank went away ({_first_line(error)}). Last seen:\n{self.report()}"
                ) from error
            raise
        finally:
            self._deadline = None

    def progress(self) -> None:
        """A sign of life from within `collective`."""
        if self.size > 1:
            self._deadline = time.monotonic() + self.timeout

    def _watch(self) -> None:
        """Ends the process when a collective stalls: neither gloo nor NCCL can be interrupted from outside."""
        while True:
            time.sleep(min(1.0, self.timeout / 4))
            deadline = self._deadline
            if deadline is not None and time.monotonic() > deadline:
                message = f"{self.phase}: rank {self.rank} waited {self.timeout:.0f} s (trainer.timeout) for the others"
                errors().say(f"error: {message}. Last seen:\n{self.report()}")
                os._exit(2)


def join(timeout: float, *, on_gpu: bool) -> World:
    """The world of the launcher that started this process (torchrun and what builds on it), or a world of one."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        if on_gpu:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        # The watch speaks first: its message names rank and phase.
        dist.init_process_group("nccl" if on_gpu else "gloo", timeout=timedelta(seconds=2 * timeout))
    return World(timeout)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0][:200]
