"""The frozen dataclasses that pass between the stages of one step.

The policy's side (prompt builder, engine, trainer) works on `Question`, `Prompt` and `Rollout`, none of which can hold
a reference. The reference lives in `Scaffold`, wrapped in `Hidden`, and only judges and verifiers reveal it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields, replace
from numbers import Real
from typing import Any, Generic, Literal, NoReturn, TypeVar, get_args

from exprl.errors import ContractError

T = TypeVar("T")

FinishReason = Literal["stop", "length"]
View = Literal["rollout", "prefix", "segment"]
VIEWS: tuple[View, ...] = ("rollout", "prefix", "segment")
JudgementStatus = Literal["ok", "unparseable", "timeout", "error", "empty"]
JUDGEMENT_STATUSES: tuple[JudgementStatus, ...] = ("ok", "unparseable", "timeout", "error", "empty")

LONGEST_RATIONALE = 10_000
"""Characters of a judge's reply that are kept: the paper's 2,048 tokens, and some."""


class Hidden(Generic[T]):
    """A value the policy must never see. Printing, formatting, joining or writing it as JSON never shows it.

    Only `reveal()` gives the value back; judges and verifiers call it, nothing on the policy's side does (but for the
    baselines that train on references, SFT and self-distillation). Pickling keeps it, so that it can pass between
    processes.

    >>> f"{Hidden('the proof')}"
    '<hidden>'
    >>> "Solve: " + Hidden('the proof')
    Traceback (most recent call last):
    TypeError: can only concatenate str (not "Hidden") to str
    """

    __slots__ = ("_value",)
    _value: T

    def __init__(self, value: T) -> None:
        object.__setattr__(self, "_value", value)

    def reveal(self) -> T:
        """The value itself; for the judge's and the verifier's side only."""
        return self._value

    def digest(self) -> str:
        """A hash by which a change is noticed, the same on every machine; the value cannot be read back from it."""
        return hashlib.sha256(repr(self._value).encode("utf-8", "backslashreplace")).hexdigest()

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError("Hidden is immutable")

    def __repr__(self) -> str:
        return "<hidden>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Hidden) and other.reveal() == self.reveal()

    def __hash__(self) -> int:
        return hash(self.reveal())

    def __reduce__(self) -> tuple[Any, ...]:
        return (Hidden, (self.reveal(),))


@dataclass(frozen=True, kw_only=True)
class Question:
    """What the policy may know of a problem."""

    problem_id: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Scaffold:
    """What only judge and verifier may know of a problem; each None where the source has it not.

    Attributes:
        reference: the worked solution.
        answer: the final answer.
        steps: the reference's own intermediate results in order.
        variants: other worked solutions of the same problem, beside the reference.
        rubric: milestones with points, as the JSON that `exprl.judges.rubrics` reads.
        tests: of a program, as the JSON that `exprl.execution.tests` reads.
    """

    reference: Hidden[str] | None = None
    answer: Hidden[str] | None = None
    steps: Hidden[tuple[str, ...]] | None = None
    variants: Hidden[tuple[str, ...]] | None = None
    rubric: Hidden[str] | None = None
    tests: Hidden[str] | None = None

    def __post_init__(self) -> None:
        for name, value in self.fields().items():
            if value is not None and not isinstance(value, Hidden):
                raise TypeError(
                    f"{name}: expected Hidden(...), which keeps it out of sight, but got {type(value).__name__}"
                )

    def fields(self) -> dict[str, Hidden[Any] | None]:
        """Each by its name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One training or evaluation problem. `domain` routes to a verifier or reward where a run has several."""

    question: Question
    scaffold: Scaffold
    domain: str = "math"

    @property
    def id(self) -> str:
        """The question's `problem_id`."""
        return self.question.problem_id

    def without_reference(self) -> Problem:
        """The same without what is made of worked solutions: its question, final answer and tests."""
        return replace(self, scaffold=replace(self.scaffold, reference=None, steps=None, variants=None, rubric=None))


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A question as the policy reads it: chat-templated text and its token ids.

    `reply_opening` is what of the reply the prompt already holds: `<think>` of a template that opens it.
    """

    problem_id: str
    text: str
    token_ids: tuple[int, ...]
    reply_opening: str = ""


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """One sampled response of T tokens.

    Attributes:
        prompt: what it answers.
        token_ids: the T sampled ids, the end-of-sequence token included when it was sampled.
        text: the decoded response without special tokens.
        token_ends: T character offsets into `text`: where each token's text ends, non-decreasing. A slicer cuts by
            these, so nothing is ever tokenised again.
        sampler_logprobs: T log-probs the engine sampled with (temperature applied).
        finish_reason: `stop` at the end-of-sequence token or a stop string, `length` when cut off.
        policy_version: the steps the policy had been trained for.
    """

    prompt: Prompt
    token_ids: tuple[int, ...]
    text: str
    token_ends: tuple[int, ...]
    sampler_logprobs: tuple[float, ...]
    finish_reason: FinishReason
    policy_version: int = 0

    def __post_init__(self) -> None:
        if self.finish_reason not in get_args(FinishReason):
            raise ValueError(
                f"finish_reason: {' or '.join(map(repr, get_args(FinishReason)))}, but got {self.finish_reason!r}; "
                "'length' is a rollout that was cut off"
            )
        lengths = {len(self.token_ids), len(self.token_ends), len(self.sampler_logprobs)}
        if len(lengths) != 1:
            raise ValueError(
                f"token_ids ({len(self.token_ids)}), token_ends ({len(self.token_ends)}) and sampler_logprobs "
                f"({len(self.sampler_logprobs)}) must have one entry a sampled token"
            )

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def reply(self) -> str:
        """The whole reply as verifiers read it: with the thinking that the prompt opened, where it did."""
        return self.prompt.reply_opening + self.text

    def text_of(self, start: int, end: int) -> str:
        """The text of tokens [start, end)."""
        begin = self.token_ends[start - 1] if start > 0 else 0
        finish = self.token_ends[end - 1] if end > 0 else 0
        return self.text[begin:finish]


@dataclass(frozen=True, order=True)
class Segment:
    """Tokens [start, end) of a rollout's response; never empty."""

    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise ContractError(f"a segment needs 0 <= start < end, but got [{self.start}, {self.end})")

    def __len__(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, kw_only=True)
class RolloutGroup:
    """The G rollouts of one problem, with the problem's scaffold: the judge's side of a step."""

    problem: Problem
    rollouts: tuple[Rollout, ...]


@dataclass(frozen=True, kw_only=True)
class JudgeRequest:
    """One trace to grade. `view` says what the trace is: a whole rollout, a prefix of one, or a segment alone."""

    problem: Problem
    trace: str
    view: View = "rollout"


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A judge's verdict: a Likert score in [1, 5] (fractional allowed) if and only if `status` is `ok`.

    `probabilities` are those of the scores 1..5, where the judge's model was asked for them; empty elsewhere.
    Of a `rationale` longer than `LONGEST_RATIONALE` characters beginning and end are kept: it goes into samples and
    checkpoints, and a server may write anything.
    """

    score: float | None
    status: JudgementStatus = "ok"
    rationale: str = ""
    probabilities: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.status not in JUDGEMENT_STATUSES:
            allowed = ", ".join(JUDGEMENT_STATUSES)
            raise ContractError(f"a judgement's status is one of {allowed}, but got {self.status!r}")
        if not isinstance(self.rationale, str):
            raise ContractError(f"a judgement's rationale is text, but got {_shown(self.rationale)}")
        if len(self.rationale) > LONGEST_RATIONALE:
            object.__setattr__(self, "rationale", _without_middle(self.rationale, LONGEST_RATIONALE))
        if (self.status == "ok") != (self.score is not None):
            raise ContractError(
                f"a judgement has a score exactly when it is ok, but got {self.score} with {self.status}"
            )
        if self.score is not None:
            object.__setattr__(self, "score", _likert(self.score))


def _likert(score: Any) -> float:
    if isinstance(score, bool) or not isinstance(score, Real) or not 1.0 <= float(score) <= 5.0:
        raise ContractError(
            f"a Likert score is a number in [1, 5], but got {_shown(score)}. Map a scale from low to high with "
            '1 + 4 * (score - low) / (high - low); a judgement that failed has score=None and a status such as "error"'
        )
    return float(score)


def _value(value: Any) -> float | None:
    if value is not None and not isinstance(value, Real):
        raise ContractError(f"a reward is a number in [0, 1], or None where it failed, but got {_shown(value)}")
    return None if value is None else float(value)


def _shown(value: object) -> str:
    text = repr(value)
    return f"{text if len(text) <= 100 else f'{text[:97]}...'} ({type(value).__name__})"


def _without_middle(text: str, longest: int) -> str:
    mark = f" [... {len(text) - longest} or more characters left out ...] "
    half = (longest - len(mark)) // 2
    return f"{text[:half]}{mark}{text[-half:]}"


@dataclass(frozen=True, kw_only=True)
class RolloutReward:
    """One reward for a whole rollout of `length` tokens; `value` None means: leave this rollout out."""

    value: float | None
    length: int
    judgements: tuple[Judgement, ...] = ()
    cut_off: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", _value(self.value))

    @property
    def valid(self) -> bool:
        """Whether the rollout counts in means, variances and the loss."""
        return self.value is not None


@dataclass(frozen=True, kw_only=True)
class SegmentRewards:
    """One reward a segment: r_1..r_K for K contiguous segments; any None means: leave this rollout out.

    A `cut_off` rollout (length limit, under `clip_length`) has K segments, no values, and zero advantages.
    """

    segments: tuple[Segment, ...]
    values: tuple[float | None, ...]
    judgements: tuple[Judgement, ...] = ()
    cut_off: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(map(_value, self.values)))

    @property
    def valid(self) -> bool:
        """Whether the rollout counts in the loss."""
        return self.cut_off or all(value is not None for value in self.values)

    @property
    def length(self) -> int:
        """T, the number of tokens."""
        return self.segments[-1].end if self.segments else 0


AnyReward = RolloutReward | SegmentRewards


@dataclass(frozen=True, kw_only=True)
class Advantages:
    """Advantages of one rollout, constant over each segment (one segment for a rollout reward).

    `valid` False takes the rollout out of the loss and its denominator.
    """

    segments: tuple[Segment, ...]
    values: tuple[float, ...]
    valid: bool = True

    def per_token(self) -> list[float]:
        """[T] advantages, one a token."""
        return [value for segment, value in zip(self.segments, self.values, strict=True) for _ in range(len(segment))]


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """Who gave a group its rewards.

    Attributes:
        reward: its registered name, or its class's.
        judge: the judge's likewise, with the one that it stands around: `wrong_reference around same_model`; None: the
            reward asks none.
        route: the key within the run's reward where it stands, such as `domains.math`; `""`: it is the run's reward.
    """

    reward: str
    judge: str | None = None
    route: str = ""


@dataclass(frozen=True, kw_only=True)
class ScoredGroup:
    """A rollout group with its rewards and advantages, as it is kept and shown.

    Attributes:
        verdicts: for each rollout whether the verifier accepts it; None where none was asked, or it cannot know.
        scorer: who gave the rewards; None where nobody says.
    """

    group: RolloutGroup
    rewards: tuple[AnyReward, ...]
    advantages: tuple[Advantages, ...]
    verdicts: tuple[bool, ...] | None = None
    scorer: Scorer | None = None

    def __post_init__(self) -> None:
        counts = (len(self.group.rollouts), len(self.rewards), len(self.advantages))
        if len(set(counts)) != 1:
            raise ValueError(
                f"a group needs one reward and one advantage a rollout, but got {counts[1:]} for {counts[0]}"
            )
