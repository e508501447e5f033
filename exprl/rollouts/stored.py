"""What is kept of a problem's rollouts: all that scoring them again needs but the problem's scaffold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from exprl.data.fingerprint import digest_of
from exprl.errors import ContractError, DataError
from exprl.types import Advantages, AnyReward, Problem, Prompt, Question, Rollout, RolloutGroup, ScoredGroup, Scorer

NO_ROLLOUTS = "rollouts: a group has at least one"


@dataclass(frozen=True, kw_only=True)
class Label:
    """What a person, or a verifier, says of a rollout; each None where it was not said.

    Attributes:
        correct: whether it is right.
        first_error: the character of its text at which the first wrong step begins; None with `correct` False: not
            known, or the rollout is wrong for what it leaves out.
        author: who wrote the rollout, a model's name.
    """

    correct: bool | None = None
    first_error: int | None = None
    author: str | None = None

    def __post_init__(self) -> None:
        first = self.first_error
        if not isinstance(self.correct, bool | None) or not isinstance(self.author, str | None):
            raise ContractError(
                f"a label's correct is true, false or null and its author text or null, but got {self.correct!r} and "
                f"{self.author!r}"
            )
        if first is not None and (isinstance(first, bool) or not isinstance(first, int) or first < 0):
            raise ContractError(f"a label's first_error is a character's number from 0 on, or null, but got {first!r}")


@dataclass(frozen=True, kw_only=True)
class StoredGroup:
    """The rollouts of one problem as they are kept; its scaffold is not among the fields.

    Attributes:
        question: what the policy was asked.
        domain: the problem's.
        digest: of question, domain and scaffold (`digest_of`), by which the scaffold is known again; None where the
            rollouts come without one.
        rollouts: with token ids, sampler log-probs (NaN where nobody knows them) and policy version, all of one prompt.
        rewards: one a rollout, with its judgements; None before they are scored.
        advantages: one a rollout; None where there are none.
        labels: one a rollout; None where nobody gave any.
        verdicts: for each rollout whether the run's verifier accepted it; None where none was asked, or it cannot know.
        scorer: who gave the rewards; None where nobody says.
    """

    question: Question
    domain: str
    digest: str | None
    rollouts: tuple[Rollout, ...]
    rewards: tuple[AnyReward, ...] | None = None
    advantages: tuple[Advantages, ...] | None = None
    labels: tuple[Label, ...] | None = None
    verdicts: tuple[bool, ...] | None = None
    scorer: Scorer | None = None

    def __post_init__(self) -> None:
        if not self.rollouts:
            raise ValueError(NO_ROLLOUTS)
        for name in ("rewards", "advantages", "labels", "verdicts"):
            given: Sequence[object] | None = getattr(self, name)
            if given is not None and len(given) != len(self.rollouts):
                raise ValueError(f"{name}: needs one a rollout, but got {len(given)} for {len(self.rollouts)}")
        if any(rollout.prompt != self.rollouts[0].prompt for rollout in self.rollouts):
            raise ValueError("rollouts: the rollouts of a group answer one prompt")

    @property
    def problem_id(self) -> str:
        """The question's."""
        return self.question.problem_id

    @property
    def prompt(self) -> Prompt:
        """What all of its rollouts answer; there is at least one."""
        return self.rollouts[0].prompt

    @classmethod
    def of(cls, scored: ScoredGroup) -> StoredGroup:
        """What is kept of a group of a training step."""
        own = cls.of_rewarded(scored.group, scored.rewards)
        return replace(own, advantages=scored.advantages, verdicts=scored.verdicts, scorer=scored.scorer)

    @classmethod
    def of_rewarded(cls, group: RolloutGroup, rewards: Sequence[AnyReward]) -> StoredGroup:
        """What is kept of a group that was scored and is not compared yet."""
        problem = group.problem
        return cls(
            question=problem.question,
            domain=problem.domain,
            digest=digest_of(problem),
            rollouts=group.rollouts,
            rewards=tuple(rewards),
        )

    def with_problem(self, problem: Problem) -> RolloutGroup:
        """The judge's side again.

        Raises:
            DataError: `problem` is another one, or its question, domain or scaffold has changed since.
        """
        if problem.id != self.problem_id or not is_of(self.digest, problem):
            raise DataError(
                f"problem {self.problem_id!r}: its question, domain, reference or answer is not what it was when the "
                "rollouts were made. Give the data set as it was then, with the same seed and leak options."
            )
        return RolloutGroup(problem=problem, rollouts=self.rollouts)

    def scored(self, rewards: Sequence[AnyReward], scorer: Scorer) -> StoredGroup:
        """The same rollouts with the rewards that `scorer` gave, not compared yet."""
        return replace(self, rewards=tuple(rewards), scorer=scorer, advantages=None)


def is_of(digest: str | None, problem: Problem) -> bool:
    """Whether a digest, if there is one, is that of `problem`, scaffold included.

    A run that reads no references holds problems without them, so that form counts as well.
    """
    return digest is None or digest in (digest_of(problem), digest_of(problem.without_reference()))
