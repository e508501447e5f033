"""The processes of a run: who this one is, how they meet, and what is said when one of them does not come."""

from __future__ import annotations

import atexit
import base64
import json
import os
import pickle
import signal
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d

from exprl.console import errors
from exprl.errors import DistributedError, ExprlError, LostRankError, PeerError
from exprl.training.failure import Process, linger, record

T = TypeVar("T")

DEFAULT_TIMEOUT = 1800.0
_POLL = 0.02
_BEAT = 0.5
"""Seconds between the signs of life of a rank."""
SILENCE = 4.0
"""Seconds without a sign of life after which a rank is taken for lost, once another has failed."""
ASSEMBLY = 15.0
"""Seconds that live ranks are waited for after a failure: launchers kill half a minute after they ask."""
START = 60.0
"""Seconds at least that ranks have to reach each other: they do not start at the same moment."""
GRACE = 5.0
"""Seconds beyond the timeout that gloo has to raise, before the watch ends a process that nothing can interrupt."""


class World:
    """This process among the `size` processes (ranks) of a run.

    A single process is a world of one: nothing here waits or communicates then. Ranks agree through the process
    group's key-value store, which also tells what each was doing, so that every wait has a limit and names who is late.

    After a failure the ranks that are left `assemble`: `rank` and `size` are then those among them, and what they
    exchange goes through the store, since a group that lost a member cannot be used any more.

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
        self.rank, self.size = 0, 1
        self._meetings: Counter[str] = Counter()
        self._deadline: float | None = None
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            self.rank, self.size = dist.get_rank(), dist.get_world_size()
            self._store = c10d.PrefixStore("exprl", c10d._get_default_store())
            # Python objects travel between CPUs, also where the gradients travel between GPUs.
            self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=max(timeout, START)))
            c10d._set_pg_timeout(timedelta(seconds=timeout), self._group)
            self._store.set(f"process/{self.rank}", Process.own().to_json())
        self.started_as = self.rank
        """This rank's number when all ranks were there."""
        self.members = tuple(range(self.size))
        """The numbers, when all were there, of the ranks that are left."""
        self._all = self.size
        self._assembled = False
        self._passed: str | None = None
        self._lost: list[int] = []
        self.is_cause = False
        """Whether this rank was the first to fail."""
        self.enter("starting")
        if self._several:
            threading.Thread(target=self._watch, name="exprl-watch", daemon=True).start()

    @property
    def first(self) -> bool:
        """Whether this is rank 0 of those that are left, which prints and writes."""
        return self.rank == 0

    # ------------------------------------------------------------------ what this rank is doing

    def enter(self, phase: str) -> None:
        """Tell the others what this rank does from now on."""
        self.phase = phase
        if self._several:
            self._store.set(f"phase/{self.started_as}", json.dumps([phase, time.time()]))

    @property
    def _several(self) -> bool:
        return hasattr(self, "_store")

    def report(self) -> str:
        """What every rank was last seen doing, one line a rank."""
        return "\n".join(f"  rank {rank}: {self._last_seen(rank)}" for rank in range(self._all))

    def _last_seen(self, rank: int) -> str:
        if not self._store.check([f"phase/{rank}"]):
            return "has not started"
        phase, since = json.loads(self._store.get(f"phase/{rank}"))
        return f"{phase}, for {time.time() - since:.0f} s"

    # ------------------------------------------------------------------ meeting

    def meet(self, what: str) -> None:
        """Wait until every rank is here.

        Raises:
            DistributedError: naming the ranks that did not come within the timeout and what they were doing, or the
                rank that failed (`PeerError`).
        """
        if self.size == 1:
            return
        before, held = self.phase, self._deadline
        self._deadline = None  # this wait has a limit of its own
        self.enter(f"waiting for the other ranks before {what}, after {before}")
        self._meetings[what] += 1
        name = f"{'assembled/' if self._assembled else ''}meet/{what}/{self._meetings[what]}"
        try:
            self._wait([f"{name}/{member}" for member in self.members], what)
        except (RuntimeError, ConnectionError) as error:  # the store went with the process that held it
            raise DistributedError(f"rank {self.rank}, {self.phase}: the ranks' store is gone ({error})") from error
        self.enter(before)
        if held is not None:
            self.progress()

    def _wait(self, keys: list[str], what: str) -> None:
        start = time.monotonic()
        pause = _POLL / 20
        silence = Silence(self._store)
        self._store.set(keys[self.rank], "here")
        while not self._store.check(keys):
            if not self.ending and (failure := self.failure()):
                raise PeerError(failure)
            if time.monotonic() - start > self.timeout:
                late = [member for member, key in zip(self.members, keys, strict=True) if not self._store.check([key])]
                raise DistributedError(self._late(late, what))
            if self.asked_to_stop():
                missing = [
                    member for member, key in zip(self.members, keys, strict=True) if not self._store.check([key])
                ]
                if any(silence.of(member) > SILENCE for member in missing):
                    raise LostRankError(f"a rank went away before {what}. Last seen:\n{self.report()}")
            time.sleep(pause)
            pause = min(2 * pause, _POLL)
        if self._passed is not None:
            self._store.delete_key(self._passed)  # whoever is here has left the meeting before this one
        self._passed = keys[self.rank]

    def _late(self, ranks: list[int], what: str) -> str:
        names = " and ".join(f"rank {rank}" for rank in ranks)
        return (
            f"{names} did not come to {what} within {self.timeout:.0f} s (trainer.timeout). Last seen:\n"
            f"{self.report()}\nGo on from the last checkpoint with --resume."
        )

    @contextmanager
    def first_before_others(self, what: str) -> Iterator[None]:
        """Rank 0 runs the block before the others: it fills the caches, and what fails for it fails for all."""
        if not self.first:
            self.meet(what)
        try:
            yield
        except BaseException as error:
            self.fail(error)
            raise
        if self.first:
            self.meet(what)

    def gather(self, value: T, what: str) -> list[T]:
        """Every rank's value, in the order of ranks, on every rank; raises as `meet` does."""
        if self.size == 1:
            return [value]
        before, self.exchanging = self.exchanging, True
        try:
            self.meet(what)
            return self._through_store(value, what) if self._assembled else self._through_group(value, what)
        finally:
            self.exchanging = before

    def by_rank(self, gathered: Sequence[T]) -> list[T | None]:
        """What was gathered from those that are left, by the numbers of all; None for those that are lost."""
        values = dict(zip(self.members, gathered, strict=True))
        return [values.get(rank) for rank in range(self._all)]

    def _through_group(self, value: T, what: str) -> list[T]:
        values: list[Any] = [None] * self.size
        try:
            dist.all_gather_object(values, value, group=self._group)
        except (RuntimeError, ConnectionError) as error:
            raise self._broken(what, error) from error
        return values

    def _through_store(self, value: T, what: str) -> list[T]:
        name = f"assembled/value/{what}/{self._meetings[what]}"
        self._store.set(f"{name}/{self.started_as}", base64.b64encode(pickle.dumps(value)).decode())
        self.meet(f"the values of {what}")
        return [pickle.loads(base64.b64decode(self._store.get(f"{name}/{member}"))) for member in self.members]

    def sum(self, values: Mapping[str, float]) -> dict[str, float]:
        """Sum of every rank's values by name; names one rank alone has count too. Raises as `meet` does."""
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
            self._deadline = None

    def _broken(self, what: str, error: BaseException) -> DistributedError:
        """What it means that a group's operation failed."""
        if failure := self.failure():
            return PeerError(failure)
        kind, how = (DistributedError, "stalled") if "imed out" in str(error) else (LostRankError, "went away")
        return kind(f"{what}: a rank {how} ({_first_line(error)}). Last seen:\n{self.report()}")

    def progress(self) -> None:
        """A sign of life from within `collective`."""
        if self.size > 1:
            self._deadline = time.monotonic() + self.timeout + GRACE

    # ------------------------------------------------------------------ failing

    def failure(self) -> str | None:
        """Which rank failed first, where and why; None as long as none has."""
        if not self._several or not self._store.check(["failed"]):
            return None
        rank, phase, reason = json.loads(self._store.get("failed"))
        return f"rank {rank} failed in {phase}: {reason}"

    def fail(self, error: BaseException) -> None:
        """Tell the others and the launcher that this rank cannot go on; the first to say so is the cause."""
        if self.ending:
            return
        self.ending = True
        if not self._several:
            return
        own = json.dumps([self.started_as, self.phase, _reason(error)])
        with suppress(RuntimeError, ConnectionError):  # the store is gone: nobody is there to be told
            self.is_cause = self._store.compare_set("failed", "", own).decode() == own
        # A lost rank's launcher knows how it ended, and one that was asked to stop has not failed.
        if self.is_cause and isinstance(error, Exception) and not isinstance(error, LostRankError):
            record(error)

    def assemble(self, step: int, *, everyone: bool) -> int:
        """After a failure, find the ranks that are left; returns the finished step that they save together, 0: none.

        Args:
            step: the one whose weights this rank holds; 0: none; below 0: saving is what failed.
            everyone: whether each rank holds a part, so that none may be missing.

        Raises:
            DistributedError: the ranks do not find each other.
        """
        if not self._several:
            return max(step, 0)
        if self._assembled:
            return 0
        self._assembled, self.phase = True, f"ending, after {self.phase}"
        self._store.set(f"assembly/{self.started_as}", str(step))
        if int(self._store.compare_set("assembly/leader", "", str(self.started_as))) == self.started_as:
            offers = self._offers()
            chosen, members = choose(offers, self._all if everyone else 1)
            self._lost = [rank for rank in range(self._all) if rank not in offers]
            self._store.set("assembly/members", json.dumps([chosen, members]))
        chosen, members = self._assembly()
        if self.started_as not in members:
            return 0
        self.members, self.rank, self.size = tuple(members), members.index(self.started_as), len(members)
        self._meetings.clear()
        self._passed = None
        return chosen

    def _offers(self) -> dict[int, int]:
        """What each live rank can save; silent ones, and those that something holds up, are not waited for long."""
        start, silence = time.monotonic(), Silence(self._store)
        while True:
            offers = {r: key for r in range(self._all) if self._store.check([key := f"assembly/{r}"])}
            missing = set(range(self._all)) - set(offers)
            silent = [rank for rank in missing if silence.of(rank) > SILENCE]
            if len(silent) == len(missing) or time.monotonic() - start > ASSEMBLY:
                return {rank: int(self._store.get(key)) for rank, key in offers.items()}
            time.sleep(_POLL)

    def _assembly(self) -> tuple[int, list[int]]:
        limit = time.monotonic() + 2 * ASSEMBLY
        while not self._store.check(["assembly/members"]):
            if time.monotonic() > limit:
                raise DistributedError("the ranks that are left did not find each other")
            time.sleep(_POLL)
        chosen, members = json.loads(self._store.get("assembly/members"))
        return chosen, members

    @contextmanager
    def session(self) -> Iterator[None]:
        """The whole of a run: inside, ranks hear of each other's failures, and what one raises ends it on all.

        Raises:
            PeerError: another rank says what this one would have said.
        """
        try:
            with self._attentive():
                yield
        except BaseException as error:
            self.fail(error)
            self._end_lost(error)
            if not self.is_cause or isinstance(error, LostRankError):
                self._give_way(error)
            raise

    def _end_lost(self, error: BaseException) -> None:
        """Lost ranks must not go on some day, and launchers wait half a minute for such."""
        if not self._several:
            return
        with suppress(ExprlError, RuntimeError, ConnectionError):
            self.assemble(0, everyone=True)
        if self._lost:
            if self.is_cause and not isinstance(error, Exception):  # asked to stop: the others do not end of themselves
                record(error)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher's answer to what comes now
            for rank in self._lost:
                Process.from_json(self._store.get(f"process/{rank}")).kill()

    def _give_way(self, error: BaseException) -> None:
        """Let the launcher find the cause first; raises `PeerError` where another rank says the same."""
        if not self._several or not isinstance(error, Exception):  # one that was asked to stop goes at once
            return
        if not self.asked_to_stop():  # the launcher knows already
            atexit.register(linger)
        failure = self.failure() or ""
        if not self.is_cause and failure.endswith(f": {_reason(error)}"):
            raise PeerError(failure) from error

    # ------------------------------------------------------------------ hearing of the others

    @contextmanager
    def _attentive(self) -> Iterator[None]:
        """Inside, another rank's failure raises `PeerError` in the main thread, even from within a long phase."""
        if not self._several or threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may set handlers
            return
        # Nothing else uses this signal, and a process without a handler ignores it.
        before = signal.signal(signal.SIGURG, self._heed)
        try:
            yield
        finally:
            signal.signal(signal.SIGURG, before)

    def _heed(self, number: int, frame: FrameType | None) -> None:
        if not (self.ending or self.exchanging):
            raise PeerError(self.failure())

    def _watch(self) -> None:
        """Gives signs of life and hears of failures; ends the process where a collective stalls that cannot raise.

        NCCL cannot be interrupted from outside.
        """
        beat = 0
        while True:
            time.sleep(_BEAT)
            deadline = self._deadline
            if deadline is not None and time.monotonic() > deadline:
                self._end_stalled()
            with suppress(RuntimeError, ConnectionError):  # the store is gone: the main thread finds out
                beat += 1
                self._store.set(f"alive/{self.started_as}", str(beat))
                if not (self.ending or self.exchanging) and self._store.check(["failed"]):
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGURG)

    def _end_stalled(self) -> None:
        message = f"{self.phase}: rank {self.rank} waited {self.timeout:.0f} s (trainer.timeout) for the others"
        error = DistributedError(f"{message}. Last seen:\n{self.report()}")
        errors().say(f"error: {error}")
        self.fail(error)
        os._exit(2)


class Silence:
    """How long ranks have given no sign of life, as far as it was looked for."""

    def __init__(self, store: c10d.Store) -> None:
        self._store = store
        self._heard: dict[int, tuple[bytes, float]] = {}

    def of(self, rank: int) -> float:
        """Seconds since the last sign of a rank's, or since it was first looked for."""
        key, now = f"alive/{rank}", time.monotonic()
        beat = self._store.get(key) if self._store.check([key]) else b""
        if rank not in self._heard or self._heard[rank][0] != beat:
            self._heard[rank] = (beat, now)
        return now - self._heard[rank][1]


def choose(offers: Mapping[int, int], least: int) -> tuple[int, list[int]]:
    """The step to save after a failure, 0 for none, and the ranks that hold it, of which at least `least` are needed.

    >>> choose({0: 3, 2: 3, 3: 0}, least=1)
    (3, [0, 2])
    """
    step = max(offers.values())
    members = sorted(rank for rank, own in offers.items() if own == step)
    if step <= 0 or min(offers.values()) < 0 or len(members) < least:
        return 0, []
    return step, members


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
                f"the ranks cannot meet at MASTER_ADDR:MASTER_PORT {where} ({_first_line(error)}). Is the port free, "
                "does the first machine answer there, and did every rank start?"
            ) from error
    return World(timeout)


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0][:200]
