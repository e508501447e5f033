"""A judge around another one: it changes what that one sees or says, whichever it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from exprl.component import Choice, wrapped
from exprl.errors import ConfigError
from exprl.judges.base import Judge
from exprl.registry import JUDGES
from exprl.resources import Resources
from exprl.terminal.progress import OnProgress, no_progress
from exprl.types import Judgement, JudgeRequest, Problem


class WrappingJudge(Judge):
    """Shows another judge each problem as `shown` makes it, and passes everything else on.

    Args:
        config: the options; those of the other judge are within, under `judge`.
        judge: the other judge.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """The judge it stands around; one handed over built is None here."""

        judge: Annotated[Choice, JUDGES] = wrapped(
            JUDGES, "the judge it stands around; where the name of this one alone is set, the judge that was there"
        )

    config: Any

    def __init__(self, config: Any, judge: Judge) -> None:
        super().__init__(config)
        self.inner = judge

    @classmethod
    def from_config(cls, config: Any, resources: Resources) -> WrappingJudge:
        """Around the judge of its config."""
        return cls(config, config.judge.build(resources))

    @classmethod
    def reads_references(cls, config: Any) -> bool:
        """If the judge within does."""
        within = config.judge
        return cls.needs_reference and (within is None or bool(within.cls.reads_references(within.config)))

    def shown(self, problem: Problem) -> Problem:
        """What of a problem the judge within is given."""
        return problem

    def judge(self, requests: Sequence[JudgeRequest], on_progress: OnProgress = no_progress) -> list[Judgement]:
        """The other judge's verdicts on the same attempts at the problems as they are shown."""
        return self.inner.judge(self._shown(requests), on_progress)

    def start(self, requests: Sequence[JudgeRequest]) -> None:
        """Pass the hint on."""
        self.inner.start(self._shown(requests))

    def check(self, problems: Sequence[Problem]) -> None:
        """Let the other judge check the problems as they are shown."""
        self.inner.check([self.shown(problem) for problem in problems])

    def texts(self) -> dict[str, str]:
        """The other judge's."""
        return self.inner.texts()

    def prepare(self) -> None:
        """Pass it on."""
        self.inner.prepare()

    def close(self) -> None:
        """Pass it on."""
        self.inner.close()

    def state_dict(self) -> dict[str, Any]:
        """The other judge's."""
        return self.inner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.inner.load_state_dict(state)

    def sync(self) -> None:
        """Pass a policy update on."""
        self.inner.sync()

    def _shown(self, requests: Sequence[JudgeRequest]) -> list[JudgeRequest]:
        return [replace(request, problem=self.shown(request.problem)) for request in requests]


def refused(within: Choice, reason: str, takes: Callable[[type[Judge]], bool]) -> ConfigError:
    """What to say of a judge that a wrapper cannot stand around, with the names of those for which `takes` is true."""
    names = ", ".join(name for name in JUDGES.names() if takes(JUDGES.get(name)))
    return ConfigError(f"judge: {within.name!r} {reason}. Name one under `judge` that does: {names}.")
