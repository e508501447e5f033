"""The judge that is left where no reference may be seen and nobody understands the attempt: the verifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from exprl.component import given
from exprl.judges.base import Judge
from exprl.resources import Resources
from exprl.terminal.progress import OnProgress, no_progress
from exprl.types import Judgement, JudgeRequest, Problem
from exprl.verifiers.base import Verifier


class FinalAnswerJudge(Judge):
    """5 where the trace states the right final answer, 1 where it states a wrong one, or none yet.

    The hidden answer is the verifier's: nothing here reads it. So every prefix before the answer has the same score.

    """

    needs_reference: ClassVar[bool] = False
    overlaps: ClassVar[bool] = True

    verifier: Verifier = given(Resources.need_verifier, help="of final answers")

    def without_reference(self, resources: Resources) -> Judge:
        """Itself: it reads none."""
        del resources
        return self

    def judge(self, requests: Sequence[JudgeRequest], on_progress: OnProgress = no_progress) -> list[Judgement]:
        """One judgement a request, always ok."""
        problems, traces = [request.problem for request in requests], [request.trace for request in requests]
        verdicts = self.verifier.verdicts(problems, traces)
        on_progress(len(requests))
        return [_RIGHT if right else _NOT_RIGHT for right in verdicts]

    def check(self, problems: Sequence[Problem]) -> None:
        """Every problem needs a final answer, see `Verifier.check`."""
        self.verifier.check(problems)


_RIGHT = Judgement(score=5.0, rationale="the final answer is right")
_NOT_RIGHT = Judgement(score=1.0, rationale="no right final answer")
