"""Final answers compared as mathematics, by math-verify in a process of its own."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from exprl.component import Component, option
from exprl.config.ranges import Range
from exprl.errors import ExprlError
from exprl.registry import VERIFIERS
from exprl.types import Problem
from exprl.verifiers.answers import last_boxed, last_line, last_statement, without_marks
from exprl.verifiers.base import Verifier

_WORKER = Path(__file__).with_name("math_worker.py")
_LONGEST = 1000
"""Characters of a stated answer; what is longer is no final answer and only costs the parser time."""


@VERIFIERS.register("math")
class MathVerifier(Verifier):
    r"""Right if the stated answer equals the problem's as mathematics: `\frac{1}{2}`, `1/2` and `0.5` are the same.

    The last `\boxed{}` counts; without one what follows the last "answer is" or "answer:", and without that the last
    line if it is an expression by itself. One answer is read, none is searched for, so stating several is wrong
    unless the problem's answer is that set.

    math-verify guards against endless simplification with signals, which work in the main thread only and never stop
    a computation inside C. So comparisons run in one child process, started at the first one, which ends itself after
    `timeout` seconds (the answer then counts as wrong) and is started again. Safe to call from any thread.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Component.Config):
        """How an answer is found and how long a comparison may take."""

        require_boxed: bool = option(False, r"only an answer in \boxed{} counts")
        timeout: Annotated[float, Range(gt=0, le=3600)] = option(
            5.0, "seconds for one comparison; after them the answer counts as wrong"
        )

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config)
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def verify(self, problem: Problem, response: str) -> bool:
        """Whether the stated answer equals the problem's; False without one, or when the comparison takes too long."""
        answer, stated = problem.scaffold.answer, self._stated(response)
        if answer is None or not stated or len(stated) > _LONGEST:
            return False
        boxed = last_boxed(answer.reveal())
        gold = without_marks(boxed[1] if boxed is not None else answer.reveal())
        return gold == stated or self._is_equal(gold, stated)

    def _stated(self, response: str) -> str | None:
        if boxed := last_boxed(response):
            return without_marks(boxed[1])
        if self.config.require_boxed:
            return None
        statement = last_statement(response)
        return without_marks(statement[1] if statement is not None else last_line(response))

    def _is_equal(self, gold: str, answer: str) -> bool:
        request = json.dumps({"gold": gold, "answer": answer, "seconds": self.config.timeout})
        with self._lock:
            process = self._worker()
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(request + "\n")
            process.stdin.flush()
            reply = process.stdout.readline()
            if not reply:  # it ended itself, and may not be gone yet
                process.wait()
        return reply.strip() == "true"

    def _worker(self) -> subprocess.Popen[str]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        # -P: beside the worker lie modules whose names must not shadow those math-verify imports.
        process = subprocess.Popen(
            [sys.executable, "-P", str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdout is not None
        if process.stdout.readline().strip() != "ready":
            raise ExprlError("verifier 'math' cannot start math-verify. Install it: pip install 'math-verify>=0.8'.")
        self._process = process
        weakref.finalize(self, _stop, process)
        return process


def _stop(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
