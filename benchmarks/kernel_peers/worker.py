"""Measures cells in a process of its own, so that a peer that crashes, hangs or breaks the GPU costs its cell alone."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection

import torch
import torch._dynamo.config

from kernel_peers import ADAPTERS
from kernel_peers.base import Problem, Size, Task
from kernel_peers.exact import Exact, exact
from kernel_peers.measure import Measurement, measure
from kernel_peers.problems import make_problem
from kernel_peers.variants import Variants, count_variants


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One peer on one task at one size."""

    peer: str
    task: Task
    size: Size


@dataclass(frozen=True)
class Failure:
    """`short` goes into the cell, `detail` into a footnote; after a `fatal` one the process can do no more."""

    short: str
    detail: str = ""
    fatal: bool = False


NO_TIME = Failure("no time left")
"""Of what the budget ended, before it began or after."""
GRACE = 5.0
"""Seconds for a process that is to end, in which it removes what it shares, such as semaphores."""


@dataclass(frozen=True)
class CountVariants:
    """Asks for the number of compiled Triton variants at several lengths."""

    vocabulary: int


class Worker:
    """Starts a process when it is asked something, and again after one that was lost."""

    def __init__(self, device: str, repeats: int) -> None:
        self._arguments = (device, repeats)
        self._process: multiprocessing.process.BaseProcess | None = None
        self._connection: Connection | None = None

    def ask(self, question: Cell | CountVariants, seconds: float, left: float) -> Measurement | Variants | Failure:
        """The answer, or why there is none after so many `seconds`, or when none of the budget is `left`."""
        if self._process is None:
            self._start()
        assert self._connection is not None
        self._connection.send(question)
        try:
            if not self._connection.poll(max(0.0, min(seconds, left))):
                self._kill()
                return NO_TIME if left <= seconds else Failure("too slow", f"no result after {seconds:.0f} s")
            answer = self._connection.recv()
        except (EOFError, ConnectionError):
            self._process.join(5)
            code = self._process.exitcode
            self._kill()
            return Failure("crashed", f"the process ended with code {code}")
        if isinstance(answer, Failure) and answer.fatal:
            self._kill()
        return answer

    def close(self) -> None:
        """Let the process end, which it does when nothing more can be asked."""
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.join(10)
        self._kill()

    def _kill(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.join(GRACE)
            self._process.kill()
            self._process.join()
        self._process = self._connection = None

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, *self._arguments))
        self._process.start()
        theirs.close()


def _serve(connection: Connection, device: str, repeats: int) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # what is shared is removed at the end
    os.dup2(2, 1)  # peers print; standard output is for the tables
    torch._dynamo.config.recompile_limit = 64  # several sizes, and none may fall back to eager unnoticed
    bench = _Bench(torch.device(device), repeats)
    while True:
        try:
            question = connection.recv()
        except EOFError:
            return
        connection.send(bench.answer(question))


class _Bench:
    """Keeps the inputs and exact results of the last task and size."""

    def __init__(self, device: torch.device, repeats: int) -> None:
        self._device, self._repeats = device, repeats
        self._key: tuple[Task, Size] | None = None
        self._problem: Problem | None = None
        self._exact: Exact | None = None

    def answer(self, question: Cell | CountVariants) -> Measurement | Variants | Failure:
        try:
            if isinstance(question, CountVariants):
                return count_variants(self._device, question.vocabulary)
            return self._measure(question)
        except Exception as error:  # noqa: BLE001 - whatever a peer raises becomes its cell
            return _failure(error, self._device)
        finally:
            gc.collect()
            if self._device.type == "cuda" and torch.cuda.is_initialized():
                _quietly_empty_cache()

    def _measure(self, cell: Cell) -> Measurement | Failure:
        adapter = next(x for x in ADAPTERS if (x.peer, x.task) == (cell.peer, cell.task))
        if self._device.type == "cpu" and not adapter.on_cpu:
            return Failure("not on cpu")
        adapter.load()  # before the inputs are made: an absent peer costs nothing
        problem = self._prepare(cell)
        return measure(adapter, problem, self._exact, self._repeats)

    def _prepare(self, cell: Cell) -> Problem:
        if self._problem is None or self._key != (cell.task, cell.size):
            self._key = self._problem = self._exact = None
            gc.collect()
            problem = make_problem(cell.task, cell.size, self._device)
            self._exact = exact(problem, _kinds(cell.task))
            self._problem, self._key = problem, (cell.task, cell.size)
        return self._problem


def _kinds(task: Task) -> set[str]:
    """Every `Outputs.kind` that an adapter of the task may give."""
    if task == "logits":
        return {"logp", "logp+entropy"}
    if task == "linear":
        return {"logp", "logp+entropy", "mean"}
    return {"loss"} if task == "policy" else {"divergence", "logp+entropy+divergence", "mean"}


def _failure(error: Exception, device: torch.device) -> Failure:
    name = type(error).__name__
    text = " ".join(str(error).split())[:300]
    if isinstance(error, ImportError):
        return Failure("absent", f"{name}: {text}")
    traceback.print_exc(file=sys.stderr)
    if isinstance(error, torch.OutOfMemoryError):
        return Failure("out of memory", text[:120])
    return Failure("failed", f"{name}: {text}", fatal=not _usable(device))


def _usable(device: torch.device) -> bool:
    """A GPU that met an illegal access answers nothing more in this process."""
    if device.type != "cuda":
        return True
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def _quietly_empty_cache() -> None:
    try:
        torch.cuda.empty_cache()
    except RuntimeError:
        return  # the GPU is lost to this process, which the answer says
