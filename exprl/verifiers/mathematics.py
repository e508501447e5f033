"""Final answers compared as mathematics: by text and arithmetic, and by math-verify in processes of its own."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import repeat
from typing import Annotated

from exprl.component import option
from exprl.config.ranges import PositiveInt, Range
from exprl.registry import VERIFIERS
from exprl.types import Problem
from exprl.verifiers.answers import stated_answers, without_marks
from exprl.verifiers.base import Verifier, read_as
from exprl.verifiers.comparison import Undecided, compare, is_comparable
from exprl.verifiers.gold import gold_answer
from exprl.verifiers.statements import begins_like_a_value, stated_value
from exprl.verifiers.worker_pool import OutOfTimeError, WorkerLostError, WorkerPool

_LOG = logging.getLogger(__name__)
_REMEMBERED = 8192
"""Decided comparisons: the rollouts of a group mostly give the same few answers."""
_OPTION = re.compile(r"\(?([A-H])[.)]\s+(\S.*)")
_SHORTEST_SECONDS = 0.25
"""Of a comparison's limit in a batch in which many ran out of time; one that ends takes about a tenth of it."""


@VERIFIERS.register("math")
class MathVerifier(Verifier):
    r"""Right if the stated answer equals the problem's as mathematics: `\frac{1}{2}`, `1/2` and `0.5` are the same.

    The last `\boxed{}` counts, or a later "answer is" or "answer:" of a value; without both the last line if it is an
    expression by itself. What stands in `<think>` is no answer. One answer is read, none is searched for, so stating
    several is wrong unless the problem's answer is that set. Numbers are compared exactly, 5 cm and 5 m differ, and
    words, dates and numerals of a base are compared as text.

    math-verify guards against endless simplification with signals, which work in the main thread only and never stop
    a computation inside C. So it runs in child processes, started when they are needed; a comparison that takes
    `timeout` seconds of CPU, which a busy machine does not shorten, counts as wrong, one whose process is lost is done
    again. Safe to call from any thread.
    """

    require_boxed: bool = option(default=False, help=r"only an answer in \boxed{} counts")
    timeout: Annotated[float, Range(gt=0, le=3600)] = option(
        default=5.0, help="seconds of CPU for one comparison; after them the answer counts as wrong"
    )
    workers: PositiveInt = option(default=2, help="processes that compare at once; each holds about 100 MB")

    def setup(self) -> None:
        """The processes start with the first comparison."""
        self._pool = WorkerPool(self.workers)
        self._is_equal = lru_cache(maxsize=_REMEMBERED)(self._pool.ask)

    def verify(self, problem: Problem, response: str) -> bool:
        """Whether the stated answer equals the problem's; False without one, or when the comparison takes too long."""
        return self._verify(problem, response, _Patience(self.timeout))

    def verify_batch(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[bool]:
        """`verify` of each pair, several at once.

        Each comparison that runs out of time shortens the limit of the others, `timeout / (1 + number of those)`, so
        that a batch of answers made to be slow takes no longer than a few of them would.
        """
        if len(problems) != len(responses):
            raise ValueError(f"Expected a response for each problem, but got {len(responses)} for {len(problems)}.")
        patience = _Patience(self.timeout)
        with ThreadPoolExecutor(self.workers) as threads:
            return list(threads.map(self._verify, problems, responses, repeat(patience)))

    def _verify(self, problem: Problem, response: str, patience: _Patience) -> bool:
        gold, stated = self.gold(problem), self._stated(response)
        if gold is None or not stated:
            return False
        return any(self._compare(problem.id, accepted, stated, patience) for accepted in _accepted(gold))

    def _compare(self, problem_id: str, gold: str, stated: str, patience: _Patience) -> bool:
        verdict = compare(gold, stated)
        if isinstance(verdict, Undecided):
            return any(self._ask(problem_id, *pair, patience) for pair in verdict.pairs)
        return verdict

    def explain(self, problem: Problem, response: str) -> str:
        """The answer that is compared."""
        del problem
        return read_as(self._stated(response))

    def gold(self, problem: Problem) -> str | None:
        """The problem's answer, or what a solution given as answer ends in; None where nothing is left to compare."""
        answer = problem.scaffold.answer
        place = gold_answer(answer.reveal()) if answer is not None else None
        if place is None:
            return None
        value = stated_value(place.text) if place.kind == "statement" else without_marks(place.text)
        return value if is_comparable(value) else None

    def _stated(self, response: str) -> str | None:
        places = stated_answers(response)
        boxes = [place for place in places if place.kind == "box"]
        for place in boxes if self.require_boxed else places:
            if place.kind != "statement":
                return without_marks(place.text)
            if not boxes or begins_like_a_value(place.text):  # "the answer is reasonable" takes no box back
                return stated_value(place.text)
        return None

    def _ask(self, problem_id: str, gold: str, answer: str, patience: _Patience) -> bool:
        if (gold, answer) in patience.given_up:
            return False
        try:
            return self._is_equal(gold, answer, patience.seconds())
        except OutOfTimeError:
            patience.lose(gold, answer)
        except WorkerLostError:
            _LOG.warning(
                "verifier 'math' lost two worker processes over one answer to problem %r, which counts as wrong. "
                "They were killed from outside, or ran out of memory.",
                problem_id,
            )
        return False


def _accepted(gold: str) -> tuple[str, ...]:
    """What answers `gold`: of a choice with its text, `C. Paris`, either alone as well."""
    option = _OPTION.fullmatch(gold)
    return (gold, option[1], option[2]) if option else (gold,)


@dataclass
class _Patience:
    """How long the next comparison of a batch may take, and which ones were given up."""

    timeout: float
    given_up: set[tuple[str, str]] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def seconds(self) -> float:
        return max(self.timeout / (1 + len(self.given_up)), min(self.timeout, _SHORTEST_SECONDS))

    def lose(self, gold: str, answer: str) -> None:
        with self._lock:
            self.given_up.add((gold, answer))
