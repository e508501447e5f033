"""What the rank that looks after the servers tells the others."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from itertools import count
from typing import Any

import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d

from exprl.errors import EngineError, ExprlError
from exprl.waiting import Wait

POLL = 0.02
"""Seconds between two looks at the store."""

_NUMBERS = count()
"""What one engine of a process said is nothing to the next."""


class Ranks:
    """This process among those of a run, of which the first looks after the servers.

    They meet in the key-value store of torch's process group: no collective of the trainer is in the way of one.
    A single process is alone, and nothing waits.

    Args:
        limit: seconds they wait for each other.
        rank: of this process.
        size: how many there are.
        store: where they meet; None for one that is alone.
    """

    def __init__(self, limit: float, *, rank: int = 0, size: int = 1, store: c10d.Store | None = None) -> None:
        self._limit = limit
        self.rank, self.size = rank, size
        self._store = store
        self._told, self._met = 0, 0

    @classmethod
    def of_run(cls, limit: float) -> Ranks:
        """Those of torch's process group, if there is one; all ranks ask for as many, in the same order."""
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return cls(limit)
        store = c10d.PrefixStore(f"exprl/servers/{next(_NUMBERS)}", c10d._get_default_store())
        return cls(limit, rank=dist.get_rank(), size=dist.get_world_size(), store=store)

    @property
    def first(self) -> bool:
        """Whether this is the rank that looks after the servers."""
        return self.rank == 0

    def meet(self, what: str) -> None:
        """Have the first rank wait until all others have come here too; those go on at once.

        Raises:
            EngineError: one does not come within the limit.
        """
        if self._store is None:
            return
        self._met += 1
        for rank in range(1, self.size):
            key = f"met/{self._met}/{rank}"
            if self.rank == rank:
                self._store.set(key, "here")
            elif self.first:
                self._wait(key, f"rank {rank}", what, self._store)

    def tell(self, make: Callable[[], Any], what: str) -> Any:
        """What `make` returns on the first rank, on every rank: plain values that JSON can hold.

        Raises:
            EngineError: on every rank, where `make` raises one; or the first rank says nothing within the limit.
        """
        if self._store is None:
            return make()
        self._told += 1
        key = str(self._told)
        return self._make(make, key, self._store) if self.first else self._hear(key, what, self._store)

    def _make(self, make: Callable[[], Any], key: str, store: c10d.Store) -> Any:
        try:
            value = make()
        except ExprlError as error:
            store.set(key, json.dumps({"error": str(error)}))
            raise
        store.set(key, json.dumps({"value": value}))
        return value

    def _hear(self, key: str, what: str, store: c10d.Store) -> Any:
        self._wait(key, "rank 0", what, store)
        told = json.loads(store.get(key))
        if "error" in told:
            raise EngineError(told["error"])
        return told["value"]

    def _wait(self, key: str, whom: str, what: str, store: c10d.Store) -> None:
        wait = Wait(self._limit)
        while not store.check([key]):
            if wait.over():
                raise EngineError(f"rank {self.rank}: {whom} did not come to {what} within {self._limit:g} s.")
            time.sleep(min(POLL, wait.pause))
