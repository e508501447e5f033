"""A judge around another one: it changes what that one sees or says, whichever it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from exprl.component import Choice, wrapped
from exprl.config.fields import wrapped_option
from exprl.errors import ConfigError
from exprl.judges.base import Judge
from exprl.judges.prefixes import about
from exprl.registry import JUDGES
from exprl.terminal.progress import OnProgress, no_progress
from exprl.types import Judgement, JudgeRequest, Problem


class WrappingJudge(Judge):
    """Shows another judge each problem as `shown` makes it, and passes everything else on."""

    overlaps: ClassVar[bool] = True

    around: Judge = wrapped(
        JUDGES, help="the judge it stands around; where the name of this one alone is set, the judge that was there"
    )

    @classmethod
    def reads_references(cls, config: Any) -> bool:
        """If the judge within does."""
        return cls.needs_reference and bool(config.around.cls.reads_references(config.around.config))

    @classmethod
    def graded_by(cls, config: Any, problems: Sequence[Problem], seed: int) -> Sequence[Problem]:
        """As the judge within says; define it where `shown` gives another problem's scaffold."""
        return config.around.cls.graded_by(config.around.config, problems, seed)  # type: ignore[no-any-return]

    def shown(self, problem: Problem) -> Problem:
        """What of a problem the judge within is given."""
        return problem

    def judge(self, requests: Sequence[JudgeRequest], on_progress: OnProgress = no_progress) -> list[Judgement]:
        """The other judge's verdicts on the same attempts at the problems as they are shown."""
        return self.around.judge(self._shown(requests), on_progress)

    def start(self, requests: Sequence[JudgeRequest]) -> None:
        """Pass the hint on."""
        self.around.start(self._shown(requests))

    def check(self, problems: Sequence[Problem]) -> None:
        """Let the other judge check the problems as they are shown."""
        self.around.check([self.shown(problem) for problem in problems])

    def _shown(self, requests: Sequence[JudgeRequest]) -> list[JudgeRequest]:
        problems = {id(request.problem): request.problem for request in requests}
        shown = {key: self.shown(problem) for key, problem in problems.items()}
        return [about(request, shown[id(request.problem)]) for request in requests]


def refused(within: Choice, reason: str, takes: Callable[[type[Judge]], bool]) -> ConfigError:
    """What to say of a judge that a wrapper cannot stand around, with the names of those for which `takes` is true."""
    names = ", ".join(name for name in JUDGES.names() if takes(JUDGES.get(name)))
    inner = wrapped_option(JUDGES, within.name)
    both = f" {within.name!r} is a wrapper itself: one of the two has to go."
    return ConfigError(
        f"around: {within.name!r} {reason}.{both if inner else ''} Name one under `around` that does: {names}."
    )
