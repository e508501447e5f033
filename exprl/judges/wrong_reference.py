"""The stress test: every attempt is graded against another problem's reference."""

from __future__ import annotations

import hashlib
import random
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from exprl.errors import JudgeError
from exprl.judges.base import Judge
from exprl.judges.wrapping import WrappingJudge, refused
from exprl.registry import JUDGES
from exprl.resources import Resources
from exprl.types import Problem, Scaffold


@JUDGES.register("wrong_reference")
class WrongReferenceJudge(WrappingJudge):
    """Hands the judge it stands around the scaffold of a different problem: what that then rewards is not the solution.

    Args:
        config: the options.
        judge: who grades, with the wrong reference.
        problems: whose references are handed around; at least two of these must differ.
        seed: of the order they are handed around in.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(WrappingJudge.Config):
        """The judge it stands around."""

        def __post_init__(self) -> None:
            if self.judge is not None and not self.judge.cls.reads_references(self.judge.config):
                raise refused(self.judge, "reads no reference, a wrong one or the right one", _reads)

    def __init__(self, config: Any, judge: Judge, problems: Sequence[Problem], seed: int = 0) -> None:
        super().__init__(config, judge)
        self._seed = seed
        donors = [problem for problem in problems if problem.scaffold.reference is not None]
        random.Random(seed).shuffle(donors)
        self._scaffolds = [problem.scaffold for problem in donors]
        self._contents = [_contents(scaffold) for scaffold in self._scaffolds]
        if len(set(self._contents)) < 2:
            raise JudgeError(
                "judge 'wrong_reference' needs at least 2 different references to swap, but got "
                f"{len(donors)} problems with {len(set(self._contents))}."
            )
        self._place = {problem.id: place for place, problem in enumerate(donors)}

    @classmethod
    def from_config(cls, config: Any, resources: Resources) -> WrongReferenceJudge:
        """Around the judge of its config, with the run's problems."""
        return cls(config, config.judge.build(resources), resources.problems, resources.seed)

    def shown(self, problem: Problem) -> Problem:
        """The problem with another one's scaffold: always the same for a given seed and list of problems."""
        return replace(problem, scaffold=self._scaffold_for(problem))

    def _scaffold_for(self, problem: Problem) -> Scaffold:
        """The next one in the shuffled circle that says something else than the problem's own."""
        count, own = len(self._scaffolds), _contents(problem.scaffold)
        start = self._place.get(problem.id)
        if start is None:  # a problem from elsewhere, as in calibration
            digest = hashlib.blake2b(f"{self._seed}/{problem.id}".encode(), digest_size=8).digest()
            start = int.from_bytes(digest, "big") % count
        places = ((start + step) % count for step in range(1, count + 1))
        return next(self._scaffolds[place] for place in places if self._contents[place] != own)


def _contents(scaffold: Scaffold) -> str:
    """A digest of reference and steps for which letter case, white space and invisible characters do not count."""
    steps = scaffold.steps.reveal() if scaffold.steps is not None else ()
    text = "\0".join([scaffold.reference.reveal() if scaffold.reference is not None else "", *steps])
    plain = unicodedata.normalize("NFKC", text).casefold()
    kept = "".join(" " if c.isspace() else c for c in plain if unicodedata.category(c) != "Cf")
    return hashlib.blake2b(" ".join(kept.split()).encode("utf-8", "replace"), digest_size=16).hexdigest()


def _reads(judge: type[Judge]) -> bool:
    return judge.needs_reference and not issubclass(judge, WrappingJudge)
