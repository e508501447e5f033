"""The stress test: every attempt is graded against another problem's reference."""

from __future__ import annotations

import hashlib
import random
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from exprl.component import given
from exprl.errors import JudgeError
from exprl.judges.base import Judge
from exprl.judges.wrapping import WrappingJudge, refused
from exprl.registry import JUDGES
from exprl.resources import Resources
from exprl.terminal.wording import counted
from exprl.types import Problem, Scaffold


@JUDGES.register("wrong_reference")
class WrongReferenceJudge(WrappingJudge):
    """Hands the judge within the scaffold of a different problem: what that then rewards is not the solution."""

    reads_all_problems: ClassVar[bool] = True

    problems: Sequence[Problem] = given(
        lambda run, _: run.problems, help="whose references are handed around; at least two of these must differ"
    )
    seed: int = given(lambda run, _: run.seed, default=0, help="of the order they are handed around in")

    @classmethod
    def check_options(cls, config: Any) -> None:
        """The judge within must read references."""
        if not config.around.cls.reads_references(config.around.config):
            raise refused(config.around, "reads no reference, a wrong one or the right one", _reads)

    @classmethod
    def check_data(cls, config: Any, problems: Sequence[Problem], resources: Resources) -> None:
        """A problem without a reference is shown with another one's."""

    @classmethod
    def graded_by(cls, config: Any, problems: Sequence[Problem], seed: int) -> Sequence[Problem]:
        """Another one each."""
        del config
        circle = _Circle(problems, seed)
        return [circle.next_to(problem) for problem in problems]

    def setup(self) -> None:
        """Shuffle the references."""
        self._circle = _Circle(self.problems, self.seed)

    def shown(self, problem: Problem) -> Problem:
        """The problem with another one's scaffold: always the same for a given seed and list of problems."""
        return replace(problem, scaffold=self._circle.next_to(problem).scaffold)


class _Circle:
    """The problems whose scaffolds are handed around, in shuffled order.

    Raises:
        JudgeError: they do not hold two different references.
    """

    def __init__(self, problems: Sequence[Problem], seed: int) -> None:
        self._seed = seed
        self._donors = [problem for problem in problems if _has_solution(problem.scaffold)]
        random.Random(seed).shuffle(self._donors)
        self._contents = [_contents(problem.scaffold) for problem in self._donors]
        if len(set(self._contents)) < 2:
            raise JudgeError(
                "judge 'wrong_reference' needs at least 2 different references to swap, but got "
                f"{counted(len(self._donors), 'problem')} with {len(set(self._contents))}."
            )
        self._place = {problem.id: place for place, problem in enumerate(self._donors)}

    def next_to(self, problem: Problem) -> Problem:
        """The next one in the circle that says something else than the problem's own scaffold."""
        count, own = len(self._donors), _contents(problem.scaffold)
        start = self._place.get(problem.id)
        if start is None:  # a problem from elsewhere, as in calibration
            digest = hashlib.blake2b(f"{self._seed}/{problem.id}".encode(), digest_size=8).digest()
            start = int.from_bytes(digest, "big") % count
        places = ((start + step) % count for step in range(1, count + 1))
        return next(self._donors[place] for place in places if self._contents[place] != own)


def _has_solution(scaffold: Scaffold) -> bool:
    """A worked solution, or the rubric that stands for one."""
    return scaffold.reference is not None or scaffold.rubric is not None


def _contents(scaffold: Scaffold) -> str:
    """A digest of reference and steps for which letter case, white space and invisible characters do not count.

    Of a row without a reference its rubric is what it says.
    """
    steps = scaffold.steps.reveal() if scaffold.steps is not None else ()
    said = scaffold.reference if scaffold.reference is not None else scaffold.rubric
    text = "\0".join([said.reveal() if said is not None else "", *steps])
    plain = unicodedata.normalize("NFKC", text).casefold()
    kept = "".join(" " if c.isspace() else c for c in plain if unicodedata.category(c) != "Cf")
    return hashlib.blake2b(" ".join(kept.split()).encode("utf-8", "replace"), digest_size=16).hexdigest()


def _reads(judge: type[Judge]) -> bool:
    return judge.needs_reference and not issubclass(judge, WrappingJudge)
