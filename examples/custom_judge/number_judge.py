"""A judge of one's own: how many of the numbers in the reference does the trace mention?"""

from __future__ import annotations

import re
from collections.abc import Sequence

from exprl import JUDGES, Judge, Judgement, JudgeRequest, OnProgress, no_progress, option


@JUDGES.register("numbers")
class NumberJudge(Judge):
    """Scores 1 + 4 times the share of the reference's distinct numbers that the trace mentions."""

    min_digits: int = option(default=1, help="numbers with fewer digits are ignored")

    def judge(self, requests: Sequence[JudgeRequest], on_progress: OnProgress = no_progress) -> list[Judgement]:
        """One judgement a request; a reference without numbers cannot be judged."""
        judgements = [self.grade(request) for request in requests]
        on_progress(len(requests))
        return judgements

    def grade(self, request: JudgeRequest) -> Judgement:
        """Only a judge may reveal the reference; the policy's side has no way to."""
        reference = request.problem.scaffold.reference
        wanted = self.numbers(reference.reveal()) if reference else set()
        if not wanted:
            return Judgement(score=None, status="error", rationale="the reference has no number")
        found = wanted & self.numbers(request.trace)
        return Judgement(score=1 + 4 * len(found) / len(wanted), rationale=f"{len(found)} of {len(wanted)} numbers")

    def numbers(self, text: str) -> set[str]:
        """The distinct numbers in `text`."""
        return {number for number in re.findall(r"\d+", text) if len(number) >= self.min_digits}
