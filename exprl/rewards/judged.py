"""What the rewards that ask a judge share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from exprl.checks.contracts import given_by
from exprl.component import option, required_choice, title_of
from exprl.config.ranges import Share
from exprl.judges.base import Judge
from exprl.judges.pairing import one_each
from exprl.judges.prefixes import says_nothing
from exprl.registry import JUDGES
from exprl.rewards.base import Reward
from exprl.rewards.checks import check_failures
from exprl.rewards.normalization import Normalization, normalize
from exprl.terminal.progress import OnProgress, no_progress
from exprl.types import AnyReward, Judgement, JudgeRequest, Problem, Rollout

NOTHING_WRITTEN = Judgement(score=1.0, rationale="nothing was written")
"""The verdict on an empty trace, which no judge is asked about: no progress."""


class JudgedReward(Reward):
    """Asks a judge about every trace of a step in one call; a step in which too much fails is not learned from."""

    overlaps: ClassVar[bool] = True

    judge: Judge = required_choice(JUDGES, help="who grades")
    normalization: Normalization = option(default="smooth", help="from Likert score to reward")
    clip_length: bool = option(
        default=True, help="a rollout cut off at the length limit earns nothing: 0 (outcome), zero advantages (process)"
    )
    max_failure_rate: Share = option(
        default=0.25,
        help="stop when more than this share of a step's judgements fail, or of its rollouts is lost to them",
        free=True,
    )

    @classmethod
    def reads_references(cls, config: Any) -> bool:
        """If the judge does."""
        return bool(config.judge.cls.reads_references(config.judge.config))

    @classmethod
    def graded_by(cls, config: Any, problems: Sequence[Problem], seed: int) -> Sequence[Problem]:
        """As the judge says."""
        return config.judge.cls.graded_by(config.judge.config, problems, seed)  # type: ignore[no-any-return]

    def check(self, problems: Sequence[Problem]) -> None:
        """Let the judge see that every problem has what it needs."""
        self.judge.check(problems)

    @abstractmethod
    def requests(self, problem: Problem, rollout: Rollout) -> list[JudgeRequest]:
        """What the judge is asked about one rollout, in order; nothing about one that is cut off."""

    def start(self, problem: Problem, rollout: Rollout) -> None:
        """Let the judge begin with this rollout."""
        self.begin(self.requests(problem, rollout))

    def begin(self, requests: Sequence[JudgeRequest]) -> None:
        """Let the judge begin with these requests."""
        asked = [request for request in requests if not says_nothing(request)]
        with given_by(self._judge):
            self.judge.start(asked)

    def cut_off(self, rollout: Rollout) -> bool:
        """Whether a rollout earns nothing for having reached the length limit."""
        return bool(self.clip_length) and rollout.finish_reason == "length"

    def ask(self, requests: Sequence[JudgeRequest], on_progress: OnProgress = no_progress) -> list[Judgement]:
        """Judge every request; an empty trace scores 1 without being asked about.

        Raises:
            JudgeError: the judge returns anything but one judgement a request.
            ContractError: it makes a judgement that is none, with a score outside [1, 5] for example.
        """
        asked = [request for request in requests if not says_nothing(request)]
        with given_by(self._judge):
            given = self.judge.judge(asked, on_progress) if asked else []
        answers = iter(one_each(asked, given, Judgement, self._judge))
        return [NOTHING_WRITTEN if says_nothing(request) else next(answers) for request in requests]

    @property
    def _judge(self) -> str:
        return f"judge {title_of(self.judge)}"

    def check_step(self, rewards: Sequence[tuple[AnyReward, ...]]) -> None:
        """Raise `JudgeError` where more than `max_failure_rate` of the judgements failed, or of the rollouts is lost.

        Also where no rollout has a reward. Shows counts and the last replies.
        """
        check_failures(rewards, self.max_failure_rate)

    def value(self, judgement: Judgement) -> float | None:
        """The reward of one judgement; None if it failed or its score is dropped."""
        return None if judgement.score is None else normalize(judgement.score, self.normalization)
