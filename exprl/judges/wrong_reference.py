"""The stress test: every attempt is graded against another problem's reference."""

from __future__ import annotations

import hashlib
import random
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from exprl.component import Choice, choose, option
from exprl.errors import JudgeError
from exprl.judges.backends.base import JudgeBackend
from exprl.judges.base import Judge
from exprl.judges.llm import ReferenceJudge
from exprl.judges.reference_steps import ReferenceStepsJudge
from exprl.judges.same_model import Weights, policy_backend
from exprl.judges.smaller_model import own_backend
from exprl.registry import JUDGES, MODELS
from exprl.resources import Resources
from exprl.terminal.progress import OnProgress, no_progress
from exprl.types import Judgement, JudgeRequest, Problem, Scaffold


@JUDGES.register("wrong_reference")
class WrongReferenceJudge(Judge):
    """Hands another judge the scaffold of a different problem: what it then rewards is not closeness to the solution.

    Swapping the name of a `same_model`, `smaller_model` or (with `grader: reference_steps`) `reference_steps` judge for
    this one keeps all their options.

    Args:
        config: the options.
        judge: who grades, with the wrong reference.
        problems: whose references are handed around; at least two of these must differ.
        seed: of the order they are handed around in.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ReferenceJudge.Config):
        """Who grades with the wrong reference."""

        grader: Literal["llm", "reference_steps"] = option(
            "llm", "who grades: a language model, or the judge `reference_steps`"
        )
        weights: Weights = option("frozen", "llm: frozen: the initial policy judges throughout; live: as it trains")
        model: Annotated[Choice, MODELS] | None = choose(MODELS, None, "llm: a model of its own; null: the policy's")
        strict: bool = option(ReferenceStepsJudge.Config.strict, "reference_steps: see that judge")

    def __init__(self, config: Any, judge: Judge, problems: Sequence[Problem], seed: int = 0) -> None:
        super().__init__(config)
        self.inner = judge
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
        """With the grader of its config and the run's problems."""
        judge: Judge
        if config.grader == "reference_steps":
            judge = ReferenceStepsJudge(ReferenceStepsJudge.Config(strict=config.strict))
        else:
            judge = ReferenceJudge(config, _backend(config, resources))
        return cls(config, judge, resources.problems, resources.seed)

    def judge(self, requests: Sequence[JudgeRequest], on_progress: OnProgress = no_progress) -> list[Judgement]:
        """The other judge's verdicts on the same attempts beside another problem's reference."""
        return self.inner.judge(
            [replace(request, problem=self.swapped(request.problem)) for request in requests], on_progress
        )

    def start(self, requests: Sequence[JudgeRequest]) -> None:
        """Pass the hint on, with the wrong references."""
        self.inner.start([replace(request, problem=self.swapped(request.problem)) for request in requests])

    def swapped(self, problem: Problem) -> Problem:
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

    def check(self, problems: Sequence[Problem]) -> None:
        """Let the other judge check the swapped problems."""
        self.inner.check([self.swapped(problem) for problem in problems])

    def state_dict(self) -> dict[str, Any]:
        """The other judge's."""
        return self.inner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.inner.load_state_dict(state)

    def texts(self) -> dict[str, str]:
        """The other judge's."""
        return self.inner.texts()

    def prepare(self) -> None:
        """Pass it on."""
        self.inner.prepare()

    def close(self) -> None:
        """Pass it on."""
        self.inner.close()

    def sync(self) -> None:
        """Pass a policy update on."""
        self.inner.sync()


def _contents(scaffold: Scaffold) -> str:
    """A digest of reference and steps for which letter case, white space and invisible characters do not count."""
    steps = scaffold.steps.reveal() if scaffold.steps is not None else ()
    text = "\0".join([scaffold.reference.reveal() if scaffold.reference is not None else "", *steps])
    plain = unicodedata.normalize("NFKC", text).casefold()
    kept = "".join(" " if c.isspace() else c for c in plain if unicodedata.category(c) != "Cf")
    return hashlib.blake2b(" ".join(kept.split()).encode("utf-8", "replace"), digest_size=16).hexdigest()


def _backend(config: Any, resources: Resources) -> JudgeBackend:
    if config.model is not None:
        return own_backend(config, resources, WrongReferenceJudge.registered_name)
    return policy_backend(config, resources, WrongReferenceJudge.registered_name)
