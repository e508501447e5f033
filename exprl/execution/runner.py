"""Many programs at once, each by its tests; the same program with the same tests is run once."""

from __future__ import annotations

import hashlib
import os
import resource
import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor

from exprl.errors import ExecutionError
from exprl.execution.judging import Bench, Outcome, judge
from exprl.execution.limits import Limits
from exprl.execution.sandboxes import Sandbox
from exprl.execution.tests import Tests
from exprl.types import Problem

_REMEMBERED = 2**14
FILES_EACH = 20
"""That are open for a program at once, at most: pipes to two sandboxes, and what these are handed."""
_ANY = 2**16


def outcome_of(problem: Problem, future: Future[Outcome]) -> Outcome:
    """What was found; an `ExecutionError` names the problem."""
    try:
        return future.result()
    except ExecutionError as error:
        raise ExecutionError(f"problem {problem.id!r}: {error}") from error


class Memory:
    """The outcomes that this process found last: what a reward has run, the verifier need not run again."""

    def __init__(self, size: int = _REMEMBERED) -> None:
        self._size = size
        self._lock = threading.Lock()
        self._outcomes: OrderedDict[str, Outcome] = OrderedDict()

    def get(self, key: str) -> Outcome | None:
        """What was found, if it is remembered."""
        with self._lock:
            return self._outcomes.get(key)

    def put(self, key: str, outcome: Outcome) -> None:
        """Remember it in place of the oldest."""
        with self._lock:
            self._outcomes[key] = outcome
            while len(self._outcomes) > self._size:
                self._outcomes.popitem(last=False)


_SHARED = Memory()


class Runner:
    """Judges programs with up to `workers` at once; safe to call from any thread.

    `every`: all tests of a program are run; else they end with the first that does not pass.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        limits: Limits,
        *,
        workers: int | None = None,
        every: bool = True,
        memory: Memory = _SHARED,
    ) -> None:
        self._bench = Bench(sandbox=sandbox, limits=limits, stopping=threading.Event())
        self._every = every
        self._memory = memory
        self._lock = threading.Lock()
        self._begun: dict[str, Future[Outcome]] = {}
        self._pool = ThreadPoolExecutor(workers or min(_cores(), most_workers()), thread_name_prefix="exprl-programs")

    def start(self, program: str | None, tests: Tests) -> Future[Outcome]:
        """The outcome to come; the one that was begun before, where it was and did not fail."""
        key = self._key(program, tests)
        with self._lock:
            begun = self._begun.get(key)
            if begun is None or (begun.done() and begun.exception() is not None):
                begun = self._begun[key] = self._pool.submit(self._judge, program, tests, key)
            return begun

    def forget(self) -> None:
        """Begin anew with each program; what is running runs on, and outcomes are remembered."""
        with self._lock:
            self._begun.clear()

    def close(self) -> None:
        """End everything that runs, and wait for that; what has not begun is cancelled."""
        self._bench.stopping.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _judge(self, program: str | None, tests: Tests, key: str) -> Outcome:
        for every in (True, self._every):
            if (known := self._memory.get(f"{key} {every}")) is not None:
                return known
        outcome = judge(program, tests, self._bench, every=self._every)
        self._memory.put(f"{key} {self._every}", outcome)
        return outcome

    def _key(self, program: str | None, tests: Tests) -> str:
        sandbox = self._bench.sandbox
        asked = (type(sandbox).__qualname__, sandbox.config, self._bench.limits, program, tests.digest)
        return hashlib.sha256(repr(asked).encode("utf-8", "backslashreplace")).hexdigest()


def most_workers() -> int:
    """How many programs may run at once so that half of the files which this process may have open stay for others."""
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _ANY if allowed == resource.RLIM_INFINITY else max(1, allowed // (2 * FILES_EACH))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
