"""The processes of a run: who this one is, how they meet, and what is said when one of them does not come."""

from __future__ import annotations

import base64
import os
import pickle
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d

from exprl.errors import DistributedError, LostRankError, PeerError, first_line
from exprl.training.board import Board, Silence
from exprl.training.failure import record
from exprl.training.watch import BEAT, start_watch
from exprl.waiting import Wait

T = TypeVar("T")

DEFAULT_TIMEOUT = 1800.0
POLL = 0.02
"""Seconds at most between two looks at the store."""
START = 60.0
"""Seconds at least that ranks have to reach each other: they do not start at the same moment."""
GRACE = 5.0
"""Seconds beyond the timeout that gloo has to raise, before the watch ends a process that nothing can interrupt."""


class World:
    """This process among the `size` processes (ranks) of a run.

    A single process is a world of one: nothing here waits or communicates then. Ranks agree through the process
    group's key-value store, whose `Board` also tells what each was doing, so that every wait has a limit and names who
    is late.

    After a failure the ranks that are left find each other (`aftermath`): `rank` and `size` are then those among them,
    and what they exchange goes through the store, since a group that lost a member cannot be used any more.

    Args:
        timeout: seconds a rank may keep the others waiting.
    """

    def __init__(self, timeout: float = DEFAULT_TIMEOUT) -> None:
        self.timeout = timeout
        self.exchanging = False
        """Whether the others count on this rank right now: a signal must wait."""
        self.ending = False
        """Whether this rank has failed or knows of a failure: what is left is to save, and signals must wait."""
        self.asked_to_stop: Callable[[], bool] = bool
        """Whether a signal waits for this rank: a launcher sends one when another rank is dead."""
        self.is_cause = False
        """Whether this rank was the first to fail."""
        self.assembled = False
        """Whether the ranks that a failure left have begun to look for each other."""
        self.lost: list[int] = []
        """Ranks that were not found then, on the one rank that looked for them."""
        self.deadline: Wait | None = None
        """When the watch ends this process, which is in a collective."""
        self.rank, self.size = 0, 1
        store: c10d.Store = dist.HashStore()  # type: ignore[attr-defined]  # documented, but not re-exported
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            self.rank, self.size = dist.get_rank(), dist.get_world_size()
            store = c10d._get_default_store()
            # Python objects travel between CPUs, also where the gradients travel between GPUs.
            self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=max(timeout, START)))
            c10d._set_pg_timeout(timedelta(seconds=timeout), self._group)
        self.board = Board(store, self.rank, self.size)
        """Where ranks have the numbers that they started with."""
        self.silence = Silence(self.board)
        """Whom nothing is heard of: one, so that nobody is listened for twice."""
        self.members = tuple(range(self.size))
        """The numbers, when all were there, of the ranks that are left."""
        self._barriers: Counter[str] = Counter()
        self._passed: str | None = None
        self.enter("starting")
        if not self.alone:
            start_watch(self)

    @property
    def first(self) -> bool:
        """Whether this is rank 0 of those that are left, which prints and writes."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether the run never had another process."""
        return self.board.size == 1

    @property
    def must_not_be_cut(self) -> bool:
        """Whether others' failures are none of this rank's business right now."""
        return self.ending or self.exchanging

    def enter(self, phase: str) -> None:
        """Tell the others what this rank does from now on."""
        self.phase = phase
        self.board.enter(phase)

    # ------------------------------------------------------------------ meeting

    def barrier(self, what: str) -> None:
        """Wait until every rank is here.

        Raises:
            DistributedError: naming the ranks that did not come within the timeout and what they were doing, or the
                rank that failed (`PeerError`).
        """
        if self.size == 1:
            return
        before, held = self.phase, self.deadline
        self.deadline = None  # this wait has a limit of its own
        self.enter(f"waiting for the other ranks before {what}, after {before}")
        self._barriers[what] += 1
        name = f"{'assembled/' if self.assembled else ''}barrier/{what}/{self._barriers[what]}"
        try:
            self._wait([f"{name}/{member}" for member in self.members], what)
        except (RuntimeError, ConnectionError) as error:  # the store went with the process that held it
            raise DistributedError(f"rank {self.rank}, {self.phase}: the ranks' store is gone ({error})") from error
        self.enter(before)
        if held is not None:
            self.progress()

    def _wait(self, keys: list[str], what: str) -> None:
        wait = Wait(self.timeout)
        pause = POLL / 20
        self.board.store.set(keys[self.rank], "here")
        while not self.board.store.check(keys):
            if not self.ending and (failure := self.failure()):
                raise PeerError(failure)
            if wait.over():
                raise DistributedError(self._late(self._missing(keys), what))
            if self.asked_to_stop() and any(self.silence.lost(member) for member in self._missing(keys)):
                raise LostRankError(f"a rank went away before {what}. Last seen:\n{self.board.report()}")
            time.sleep(pause)
            pause = min(2 * pause, POLL, wait.pause)
        if self._passed is not None:
            self.board.store.delete_key(self._passed)  # whoever is here has left the meeting before this one
        self._passed = keys[self.rank]

    def _missing(self, keys: list[str]) -> list[int]:
        return [rank for rank, key in zip(self.members, keys, strict=True) if not self.board.store.check([key])]

    def _late(self, ranks: list[int], what: str) -> str:
        names = " and ".join(f"rank {rank}" for rank in ranks)
        return (
            f"{names} did not come to {what} within {self.timeout:.0f} s (trainer.timeout). Last seen:\n"
            f"{self.board.report()}\nGo on from the last checkpoint with --resume."
        )

    @contextmanager
    def first_before_others(self, what: str) -> Iterator[None]:
        """Rank 0 runs the block before the others: it fills the caches, and what fails for it fails for all."""
        if not self.first:
            self.barrier(what)
        try:
            yield
        except BaseException as error:
            self.fail(error)
            raise
        if self.first:
            self.barrier(what)

    def gather(self, value: T, what: str) -> list[T]:
        """Every rank's value, in the order of ranks, on every rank; raises as `barrier` does."""
        if self.size == 1:
            return [value]
        with self._exchange(what):
            return self._through_store(value, what) if self.assembled else self._through_group(value, what)

    def collect(self, value: T, what: str) -> list[T] | None:
        """Every rank's value, in the order of ranks, on rank 0 alone; raises as `barrier` does."""
        if self.size == 1:
            return [value]
        with self._exchange(what):
            values: list[Any] | None = [None] * self.size if self.first else None
            with self._group_may_break(what):
                dist.gather_object(value, values, dst=0, group=self._group)
            return values

    @contextmanager
    def _exchange(self, what: str) -> Iterator[None]:
        """All ranks are here, and count on each other until the end of the block."""
        before, self.exchanging = self.exchanging, True
        try:
            self.barrier(what)
            yield
        finally:
            self.exchanging = before

    def by_rank(self, gathered: Sequence[T]) -> list[T | None]:
        """What was gathered from those that are left, by the numbers of all; None for those that are lost."""
        values = dict(zip(self.members, gathered, strict=True))
        return [values.get(rank) for rank in range(self.board.size)]

    def _through_group(self, value: T, what: str) -> list[T]:
        values: list[Any] = [None] * self.size
        with self._group_may_break(what):
            dist.all_gather_object(values, value, group=self._group)
        return values

    @contextmanager
    def _group_may_break(self, what: str) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, ConnectionError) as error:
            raise self._broken(what, error) from error

    def _through_store(self, value: T, what: str) -> list[T]:
        name = f"assembled/value/{what}/{self._barriers[what]}"
        self.board.store.set(f"{name}/{self.board.rank}", base64.b64encode(pickle.dumps(value)).decode())
        self.barrier(f"the values of {what}")
        return [pickle.loads(base64.b64decode(self.board.store.get(f"{name}/{member}"))) for member in self.members]

    def sum(self, values: Mapping[str, float]) -> dict[str, float]:
        """Sum of every rank's values by name; names one rank alone has count too. Raises as `barrier` does."""
        total: defaultdict[str, float] = defaultdict(float)
        for own in self.gather(dict(values), "adding up"):
            for name, value in own.items():
                total[name] += value
        return dict(total)

    # ------------------------------------------------------------------ collectives of gradients

    @contextmanager
    def collective(self, what: str) -> Iterator[None]:
        """A stretch in which ranks exchange tensors: `progress` must be called at least once every timeout.

        Raises:
            DistributedError: a rank went away, failed or stalled. (Where a stall cannot be raised out of a collective,
                it ends the process.)
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
                raise self._broken(what, error) from error
            raise
        finally:
            self.deadline = None

    def _broken(self, what: str, error: BaseException) -> DistributedError:
        """What it means that a group's operation failed."""
        if failure := self.failure():
            return PeerError(failure)
        kind, how = (DistributedError, "stalled") if "imed out" in str(error) else (LostRankError, "went away")
        return kind(f"{what}: a rank {how} ({first_line(error)[:200]}). Last seen:\n{self.board.report()}")

    def progress(self) -> None:
        """A sign of life from within `collective`."""
        if self.size > 1:
            self.deadline = Wait(self.timeout + GRACE, pause=BEAT)

    # ------------------------------------------------------------------ failing

    def failure(self) -> str | None:
        """Which rank failed first, where and why; None as long as none has."""
        return self.board.failure()

    def fail(self, error: BaseException) -> None:
        """Tell the others and the launcher that this rank cannot go on; the first to say so is the cause."""
        if self.ending:
            return
        self.ending = True
        if self.alone:
            return
        with suppress(RuntimeError, ConnectionError):  # the store is gone: nobody is there to be told
            self.is_cause = self.board.fail(self.phase, reason(error))
        # A lost rank's launcher knows how it ended, and one that was asked to stop has not failed.
        if self.is_cause and isinstance(error, Exception) and not isinstance(error, LostRankError):
            record(error)

    def shrink(self, members: Sequence[int]) -> None:
        """Meet from now on with these ranks alone, of whom this is one, and through the store alone."""
        self.members, self.rank, self.size = tuple(members), members.index(self.board.rank), len(members)
        self._barriers.clear()
        self._passed = None


def join(timeout: float, *, on_gpu: bool) -> World:
    """The world of the launcher that started this process (torchrun and what builds on it), or a world of one.

    Raises:
        DistributedError: the ranks cannot reach each other.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        if on_gpu:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        try:
            dist.init_process_group("nccl" if on_gpu else "gloo", timeout=timedelta(seconds=max(timeout, START)))
            c10d._set_pg_timeout(timedelta(seconds=timeout))
        except (RuntimeError, ValueError) as error:
            where = f"{os.environ.get('MASTER_ADDR', '(unset)')}:{os.environ.get('MASTER_PORT', '(unset)')}"
            raise DistributedError(
                f"the ranks cannot meet at MASTER_ADDR:MASTER_PORT {where} ({first_line(error)[:200]}). Is the port "
                "free, does the first machine answer there, and did every rank start?"
            ) from error
    return World(timeout)


def reason(error: BaseException) -> str:
    """What ranks tell each other of an error."""
    return f"{type(error).__name__}: {error}"
