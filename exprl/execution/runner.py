"""Many programs at once, each by its tests; the same program with the same tests is run once."""

from __future__ import annotations

import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor

from exprl.execution.judging import Bench, Outcome, judge
from exprl.execution.limits import Limits
from exprl.execution.sandboxes import Sandbox
from exprl.execution.tests import Tests, to_json


class Runner:
    """Judges programs with up to `workers` at once; safe to call from any thread.

    `every`: all tests of a program are run; else they end with the first that does not pass.
    """

    def __init__(self, sandbox: Sandbox, limits: Limits, *, workers: int | None = None, every: bool = True) -> None:
        self._bench = Bench(sandbox=sandbox, limits=limits, stopping=threading.Event())
        self._every = every
        self._lock = threading.Lock()
        self._known: dict[tuple[str | None, str], Future[Outcome]] = {}
        self._pool = ThreadPoolExecutor(workers or _cores(), thread_name_prefix="exprl-programs")

    def start(self, program: str | None, tests: Tests) -> Future[Outcome]:
        """The outcome to come; the one that was begun before, where it was and did not fail."""
        key = (program, to_json(tests))
        with self._lock:
            known = self._known.get(key)
            if known is None or (known.done() and known.exception() is not None):
                known = self._known[key] = self._pool.submit(judge, program, tests, self._bench, every=self._every)
            return known

    def forget(self) -> None:
        """Keep no outcome any longer; what is running runs on."""
        with self._lock:
            self._known.clear()

    def close(self) -> None:
        """End everything that runs, and wait for that; what has not begun is cancelled."""
        self._bench.stopping.set()
        self._pool.shutdown(wait=True, cancel_futures=True)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
