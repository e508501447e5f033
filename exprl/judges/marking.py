"""From the milestones that a trace has established to its judgement: pure functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from exprl.judges.backends.base import Query
from exprl.judges.prefixes import PrefixRequest
from exprl.judges.rubrics import Rubric
from exprl.judges.verdict import HIGHEST, LOWEST
from exprl.terminal.progress import OnProgress
from exprl.types import Judgement, JudgeRequest

Marks = tuple[float, ...]
"""How far each milestone of a rubric is established, from 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Marked:
    """A trace by each of its problem's rubrics: `marks` has one entry a rubric."""

    rubrics: tuple[Rubric, ...]
    marks: tuple[Marks, ...]

    def judgement(self) -> Judgement:
        """By the rubric that gives it most: a trace follows one way, and each reference is one."""
        scores = [rubric.score(marks) for rubric, marks in zip(self.rubrics, self.marks, strict=True)]
        best = scores.index(max(scores))
        shown = [f"{m.title}: {p:.2f}" for m, p in zip(self.rubrics[best].milestones, self.marks[best], strict=True)]
        return Judgement(score=scores[best], rationale="; ".join(shown))

    def with_at_least(self, before: Marked) -> Marked:
        """No milestone less established than `before`, which is by the same rubrics."""
        pairs = zip(self.marks, before.marks, strict=True)
        return Marked(rubrics=self.rubrics, marks=tuple(tuple(map(max, own, other)) for own, other in pairs))


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What one request asks of the model: one query a milestone of each rubric; none where it has failed already."""

    rubrics: tuple[Rubric, ...]
    queries: tuple[Query, ...]
    failed: str = ""

    def marked(self, answers: Iterator[Judgement]) -> Marked | Judgement:
        """Its marks, from as many `answers` as it has queries; the failed judgement where one of them has failed."""
        if self.failed:
            return Judgement(score=None, status="error", rationale=self.failed)
        own = list(islice(answers, len(self.queries)))
        if (failed := next((answer for answer in own if answer.score is None), None)) is not None:
            return failed
        marks = iter([(answer.score - LOWEST) / (HIGHEST - LOWEST) for answer in own if answer.score is not None])
        return Marked(
            rubrics=self.rubrics,
            marks=tuple(tuple(islice(marks, len(rubric.milestones))) for rubric in self.rubrics),
        )


def kept(requests: Sequence[JudgeRequest], marked: Sequence[Marked | Judgement]) -> list[Marked | Judgement]:
    """What was established once stays so: each prefix of a rollout has at least the marks of those before it.

    Where rewards are differences of prefix scores, a milestone is then paid once, where it is first reached, and
    neither taken back nor paid again. Judgements that failed stay as they are. Prefixes belong together that are views
    on one text, about one problem; other traces stand alone.

    Args:
        requests: what was asked.
        marked: for each its marks, or the failed judgement.
    """
    highest: dict[tuple[int, str], Marked] = {}
    raised = list(marked)
    for index in sorted(range(len(requests)), key=lambda index: _length(requests[index])):
        request, own = requests[index], raised[index]
        if isinstance(request, PrefixRequest) and isinstance(own, Marked):
            rollout = (id(request.prefix.whole), request.problem.id)
            before = highest.get(rollout)
            raised[index] = highest[rollout] = own if before is None else own.with_at_least(before)
    return raised


def _length(request: JudgeRequest) -> int:
    return request.prefix.count if isinstance(request, PrefixRequest) else 0


def in_parts(on_progress: OnProgress, parts: int, wholes: int) -> Callable[[int], None]:
    """Reports `wholes` things while `parts` are done, of which they are made; what is left over is for the end.

    >>> seen = []
    >>> report = in_parts(seen.append, parts=6, wholes=2)
    >>> for _ in range(6): report(1)
    >>> seen
    [1, 1]
    """
    done = reported = 0

    def report(count: int) -> None:
        nonlocal done, reported
        done += count
        now = done * wholes // parts
        if now > reported:
            on_progress(now - reported)
            reported = now

    return report
