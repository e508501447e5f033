"""What ranks tell each other of themselves: which process each is, what it does, that it lives, that it failed."""

from __future__ import annotations

import json
import time

import torch.distributed.distributed_c10d as c10d

from exprl.training.failure import Process
from exprl.waiting import Wait

SILENCE = 4.0
"""Seconds without a sign of life after which a rank is taken for lost, once another has failed."""
ENDED = 1.0
"""The same where its process is not there any more: in another container of this name it would still be heard."""
LOOK = 0.25
"""Seconds between two looks, of those above, that count at most."""


class Board:
    """Each rank's notes in a key-value store, to be left and read also while the process group is busy or broken.

    Args:
        store: the process group's, or one of its own for a process that is alone.
        rank: the one that leaves notes here.
        size: ranks there are.
    """

    def __init__(self, store: c10d.Store, rank: int, size: int) -> None:
        self.store = c10d.PrefixStore("exprl", store)
        self.rank = rank
        self.size = size
        self._beats = 0
        self.store.set(f"process/{rank}", Process.own().to_json())

    def process(self, rank: int) -> Process:
        """Which process a rank is."""
        return Process.from_json(self.store.get(f"process/{rank}"))

    # ------------------------------------------------------------------ what a rank does

    def enter(self, phase: str) -> None:
        """This rank does that from now on."""
        self.store.set(f"phase/{self.rank}", json.dumps([phase, time.time()]))

    def report(self) -> str:
        """What every rank was last seen doing, one line a rank."""
        return "\n".join(f"  rank {rank}: {self._last_seen(rank)}" for rank in range(self.size))

    def _last_seen(self, rank: int) -> str:
        if not self.store.check([f"phase/{rank}"]):
            return "has not started"
        phase, since = json.loads(self.store.get(f"phase/{rank}"))
        return f"{phase}, for {time.time() - since:.0f} s"

    # ------------------------------------------------------------------ that it lives

    def beat(self) -> None:
        """A sign of life from this rank."""
        self._beats += 1
        self.store.set(f"alive/{self.rank}", str(self._beats))

    # ------------------------------------------------------------------ that it failed

    def fail(self, phase: str, reason: str) -> bool:
        """This rank failed; whether it is the first to say so."""
        own = json.dumps([self.rank, phase, reason])
        return self.store.compare_set("failed", "", own).decode() == own

    @property
    def failed(self) -> bool:
        """Whether a rank has failed."""
        return self.store.check(["failed"])

    def failure(self) -> str | None:
        """Which rank failed first, where and why; None as long as none has."""
        if not self.failed:
            return None
        rank, phase, reason = json.loads(self.store.get("failed"))
        return f"rank {rank} failed in {phase}: {reason}"


class Silence:
    """How long ranks have given no sign of life, as far as it was looked for; see `exprl.waiting`."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._heard: dict[int, bytes] = {}
        self._waits: dict[int, tuple[Wait, Wait]] = {}

    def lost(self, rank: int) -> bool:
        """Whether a rank is to be taken for lost."""
        key, store = f"alive/{rank}", self._board.store
        beat = store.get(key) if store.check([key]) else b""
        if self._heard.get(rank) != beat:
            self._heard[rank], self._waits[rank] = beat, (Wait(SILENCE, pause=LOOK), Wait(ENDED, pause=LOOK))
        silent, ended = (wait.over() for wait in self._waits[rank])
        return silent or (ended and self._board.process(rank).ended)
