"""Judges' requests, and backends to answer them."""

from __future__ import annotations

import pytest

from exprl.judges.backends.base import JudgeBackend, Reply
from exprl.judges.backends.transformers import TransformersBackend
from exprl.models.base import LanguageModel
from exprl.types import Hidden, JudgeRequest, Problem, Question, Scaffold

NAN = float("nan")


def problem(problem_id: str, text: str = "What is 2 + 3?", reference: str | None = "2 + 3 = 5", steps=None) -> Problem:
    return Problem(
        question=Question(problem_id=problem_id, text=text),
        scaffold=Scaffold(
            reference=None if reference is None else Hidden(reference), steps=None if steps is None else Hidden(steps)
        ),
    )


def backend(language_model: LanguageModel, **options) -> TransformersBackend:
    share = options.pop("share_prefixes", True)
    return TransformersBackend(**options, language_model=language_model, share_prefixes=share)


def nested_requests() -> list[JudgeRequest]:
    """Prefixes of two rollouts for each of two problems, in an order that is not sorted."""
    problems = [problem("a"), problem("b", "Name a prime above 10.", "11 has no divisor but 1 and itself.")]
    requests = [
        JudgeRequest(
            problem=p, trace="".join(f"\n### Step {k}: {k * r} is next." for k in range(1, last)), view="prefix"
        )
        for r in (3, 8)
        for p in problems
        for last in (4, 2, 3)
    ]
    return requests + requests[:1]


def scores(judgements) -> list[float]:
    """To compare: what a weight's place in memory changes lies in the last bits."""
    return pytest.approx([judgement.score for judgement in judgements], abs=1e-5)


class Canned(JudgeBackend):
    """A backend whose replies are given: stands at the network's edge to inject faults."""

    def __init__(self, *replies: Reply, room: tuple[int, int | None] = (10, None)) -> None:
        super().__init__()
        self.replies, self._room = list(replies), room

    identity = "canned"

    @classmethod
    def open(cls, config, model, resources):
        raise NotImplementedError

    def run(self, queries, on_progress):
        return self.replies

    def room(self, prompt):
        return self._room
