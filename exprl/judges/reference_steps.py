"""The judge without an LLM: how far a trace has come through the reference's own intermediate results, in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from exprl.component import option
from exprl.errors import JudgeError
from exprl.judges.base import Judge
from exprl.judges.final_answer import FinalAnswerJudge
from exprl.judges.rubrics import rubric_of_steps
from exprl.registry import JUDGES
from exprl.resources import Resources
from exprl.terminal.progress import OnProgress, no_progress
from exprl.types import Judgement, JudgeRequest, Problem


@JUDGES.register("reference_steps")
class ReferenceStepsJudge(Judge):
    """Scores 1 + 4 times the share of the reference's steps reached, in order; deterministic, no model.

    It is the judge `rubric` without a language model: steps are milestones of equal weight, and a comparison of texts
    says which are reached. So they may be any number, and none that follows one not reached counts.

    It compares texts and understands nothing: a right step in other words does not count. It is meant for worlds whose
    references state checkable intermediate results (`scaffold.steps`, or else the reference's lines), for runs on a
    CPU, and as a cheap baseline for LLM judges.
    """

    overlaps: ClassVar[bool] = True

    strict: bool = option(
        default=True,
        help="the trace's lines are the steps, and the first that says of the reference's next step something else "
        "(all but its last word the same) ends the count; false: steps may stand anywhere in order, so that a trace "
        "can collect them by listing guesses",
    )

    def judge(self, requests: Sequence[JudgeRequest], on_progress: OnProgress = no_progress) -> list[Judgement]:
        """One judgement a request, always ok."""
        judgements = [self._grade(request) for request in requests]
        on_progress(len(requests))
        return judgements

    def check(self, problems: Sequence[Problem]) -> None:
        """Also raise `JudgeError` for a reference without a single step."""
        super().check(problems)
        for problem in problems:
            if not reference_steps(problem):
                raise JudgeError(f"problem {problem.id!r}: its reference has no step to reach; drop the row.")

    def without_reference(self, resources: Resources) -> Judge:
        """Without its steps there is nothing to compare with: what is left is whether the final answer is right."""
        who = "judge 'no_reference' around 'reference_steps'"
        return FinalAnswerJudge(verifier=resources.need_verifier(who))

    def _grade(self, request: JudgeRequest) -> Judgement:
        steps = reference_steps(request.problem)
        reached = steps_reached(request.trace, steps, strict=self.strict)
        score = rubric_of_steps(steps).score([float(number < reached) for number in range(len(steps))])
        return Judgement(score=score, rationale=f"{reached} of {len(steps)} steps reached")


def reference_steps(problem: Problem) -> tuple[str, ...]:
    """The reference's steps, none blank: `scaffold.steps`, or the lines of the reference (`check` has seen to one)."""
    scaffold = problem.scaffold
    steps = scaffold.steps.reveal() if scaffold.steps is not None else ()
    if not steps:
        if scaffold.reference is None:
            raise JudgeError(
                f"problem {problem.id!r} has no reference solution, but judge 'reference_steps' needs one."
            )
        steps = tuple(scaffold.reference.reveal().splitlines())
    return tuple(step for step in steps if step.strip())


def steps_reached(trace: str, steps: Sequence[str], *, strict: bool) -> int:
    r"""How many of `steps`, from the first on, a trace reaches in order; white space does not matter.

    Strict: the lines that are the steps, up to the first that contradicts the next one: all but its last word is the
    same, and the last is not. Lines on which the reference is silent are passed over. Otherwise: steps found one after
    the other anywhere, each as whole words, the next searched for behind the last. Both are linear in the trace.

    >>> steps_reached("a 1\nb 2\nc 9\nd 4", ["a 1", "b 2", "c 3", "d 4"], strict=True)
    2
    >>> steps_reached("a 1\nb 2\nc 3\nd 4", ["b 2", "d 4"], strict=True)
    2
    >>> steps_reached("so 1 and 55, then 5", ["1", "5"], strict=False)
    2
    """
    wanted = [" ".join(step.split()) for step in steps]
    if strict:
        return _lines_in_order([" ".join(line.split()) for line in trace.splitlines()], wanted)
    return _in_order(" ".join(trace.split()), wanted)


def _lines_in_order(lines: Sequence[str], wanted: Sequence[str]) -> int:
    reached = 0
    for line in filter(None, lines):
        if reached == len(wanted):
            break
        if line == wanted[reached]:
            reached += 1
        elif line.rpartition(" ")[0] == wanted[reached].rpartition(" ")[0]:
            break
    return reached


def _in_order(text: str, wanted: Sequence[str]) -> int:
    position = 0
    for reached, step in enumerate(wanted):
        found = _find_whole(text, step, position)
        if found < 0:
            return reached
        position = found + len(step)
    return len(wanted)


def _find_whole(text: str, step: str, start: int) -> int:
    """Where `step` stands in `text` from `start` on, not inside a longer word or number; -1 if nowhere."""
    found = text.find(step, start)
    while found >= 0:
        end = found + len(step)
        inside_left = found > 0 and text[found - 1].isalnum() and step[:1].isalnum()
        inside_right = end < len(text) and text[end].isalnum() and step[-1:].isalnum()
        if not (inside_left or inside_right):
            return found
        found = text.find(step, found + 1)
    return -1
