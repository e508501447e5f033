"""The frozen dataclasses that pass between the stages of one step.

The policy's side (prompt builder, engine, trainer) works on `Question`, `Prompt` and `Rollout`, none of which can hold
a reference. The reference lives in `Scaffold`, wrapped in `Hidden`, and only judges and verifiers reveal it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

from exprl import invariants
from exprl.errors import ContractError
from exprl.hidden import Hidden as Hidden

FinishReason = Literal["stop", "length"]
View = Literal["rollout", "prefix", "segment"]
VIEWS: tuple[View, ...] = ("rollout", "prefix", "segment")
JudgementStatus = Literal["ok", "unparseable", "timeout", "error", "empty"]
JUDGEMENT_STATUSES: tuple[JudgementStatus, ...] = ("ok", "unparseable", "timeout", "error", "empty")

LONGEST_RATIONALE = 10_000
"""Characters of a judge's reply that are kept: the paper's 2,048 tokens, and some."""


def _set(new: object, **values: object) -> None:
    """The attributes of a frozen dataclass that is being made."""
    for name, value in values.items():
        object.__setattr__(new, name, value)


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
        return {own.name: getattr(self, own.name) for own in fields(self)}


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

    def __post_init__(self) -> None:
        _set(self, token_ids=invariants.token_ids(self.token_ids))


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """One sampled response of T tokens.

    Attributes:
        prompt: what it answers.
        token_ids: the T sampled ids, the end-of-sequence token included when it was sampled.
        text: the decoded response without special tokens.
        token_ends: T character offsets into `text`: where each token's text ends, non-decreasing, the last one
            `len(text)`. A slicer cuts by these, so nothing is ever tokenised again.
        sampler_logprobs: T log-probs the engine sampled with (temperature applied), at most 0 but for rounding; NaN
            where nobody knows them.
        finish_reason: `stop` at the end-of-sequence token or a stop string, `length` when cut off.
        policy_version: the steps the policy had been trained for.
        place: its index in the group to come, whichever finishes first; None: the engine does not say, or it is stored.

    Raises:
        ContractError: one of them is something else.
    """

    prompt: Prompt
    token_ids: tuple[int, ...]
    text: str
    token_ends: tuple[int, ...]
    sampler_logprobs: tuple[float, ...]
    finish_reason: FinishReason
    policy_version: int = 0
    place: int | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        invariants.check_end(self.finish_reason, get_args(FinishReason))
        _set(
            self,
            token_ids=invariants.token_ids(self.token_ids),
            text=invariants.text(self.text),
            token_ends=invariants.whole_numbers("token_ends", self.token_ends),
            sampler_logprobs=invariants.logprobs(self.sampler_logprobs),
            policy_version=invariants.version(self.policy_version),
        )
        lengths = {len(self.token_ids), len(self.token_ends), len(self.sampler_logprobs)}
        if len(lengths) != 1:
            raise ContractError(
                f"token_ids ({len(self.token_ids)}), token_ends ({len(self.token_ends)}) and sampler_logprobs "
                f"({len(self.sampler_logprobs)}) must have one entry a sampled token"
            )
        invariants.check_ends(self.token_ends, self.text)

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def reply(self) -> str:
        """The whole reply as verifiers read it: with the thinking that the prompt opened, where it did."""
        return self.prompt.reply_opening + self.text

    def text_of(self, start: int, end: int) -> str:
        """The text of tokens [start, end)."""
        begin, finish = (self.token_ends[count - 1] if count > 0 else 0 for count in (start, end))
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

    def __post_init__(self) -> None:
        others = [own.prompt.problem_id for own in self.rollouts if own.prompt.problem_id != self.problem.id]
        if others:
            raise ContractError(
                f"a group holds rollouts of one problem, here {self.problem.id!r}, but got one of {others[0]!r}"
            )


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
        _set(self, rationale=invariants.rationale(self.rationale, LONGEST_RATIONALE))
        if (self.status == "ok") != (self.score is not None):
            raise ContractError(
                f"a judgement has a score exactly when it is ok, but got {self.score} with {self.status}"
            )
        if self.score is not None:
            _set(self, score=invariants.likert(self.score))


@dataclass(frozen=True, kw_only=True)
class RolloutReward:
    """One reward for a whole rollout of `length` tokens, in [0, 1]; `value` None means: leave this rollout out.

    Raises:
        ContractError: the value is something else, NaN for example.
    """

    value: float | None
    length: int
    judgements: tuple[Judgement, ...] = ()
    cut_off: bool = False

    def __post_init__(self) -> None:
        _set(self, value=invariants.reward(self.value), length=invariants.tokens(self.length))

    @property
    def valid(self) -> bool:
        """Whether the rollout counts in means, variances and the loss."""
        return self.value is not None

    @property
    def asked(self) -> tuple[Judgement, ...]:
        """Every judgement that was asked for."""
        return self.judgements


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A judge's scores of a rollout's prefixes.

    Attributes:
        ends: after how many tokens each of n prefixes ends, ascending.
        judgements: n, of each the score alone, or what it failed for.
    """

    ends: tuple[int, ...]
    judgements: tuple[Judgement, ...]

    def __post_init__(self) -> None:
        if len(self.ends) != len(self.judgements):
            raise ValueError(f"a curve needs a judgement a prefix, but got {len(self.judgements)} for {len(self.ends)}")
        _set(self, judgements=tuple(map(_bare, self.judgements)))

    @property
    def scores(self) -> tuple[float | None, ...]:
        """[n] Likert scores; None where the judgement failed."""
        return tuple(judgement.score for judgement in self.judgements)


def _bare(judgement: Judgement) -> Judgement:
    """Without its words, unless it failed: a curve has many, and a step's rollouts have many curves."""
    rationale = judgement.rationale if judgement.score is None else ""
    return replace(judgement, rationale=rationale, probabilities=())


@dataclass(frozen=True, kw_only=True)
class SegmentRewards:
    """One reward a segment: r_1..r_K in [0, 1] for K segments; any None means: leave this rollout out.

    Segments follow each other from token 0 to the rollout's last. A `cut_off` rollout (length limit, under
    `clip_length`) has K segments, no values, and zero advantages. Where the judge was asked about more prefixes than
    those that end with a segment, `curve` has them all.

    Raises:
        ContractError: segments leave a gap, there are more or fewer values, or one is something else, such as NaN.
    """

    segments: tuple[Segment, ...]
    values: tuple[float | None, ...]
    judgements: tuple[Judgement, ...] = ()
    cut_off: bool = False
    curve: Curve | None = None

    def __post_init__(self) -> None:
        values = tuple(map(invariants.reward, invariants.each("values", self.values)))
        segments = invariants.each("segments", self.segments, Segment)
        invariants.check_covering(segments, None if self.cut_off and not values else values, "rewards")
        _set(self, values=values, segments=segments)

    @property
    def valid(self) -> bool:
        """Whether the rollout counts in the loss."""
        return self.cut_off or all(value is not None for value in self.values)

    @property
    def length(self) -> int:
        """T, the number of tokens."""
        return self.segments[-1].end if self.segments else 0

    @property
    def asked(self) -> tuple[Judgement, ...]:
        """Every judgement that was asked for, those of the segments among them."""
        return self.judgements if self.curve is None else self.curve.judgements


AnyReward = RolloutReward | SegmentRewards


@dataclass(frozen=True, kw_only=True)
class Advantages:
    """Advantages of one rollout, constant over each segment (one segment for a rollout reward).

    Segments follow each other from token 0 to the rollout's last. `valid` False takes the rollout out of the loss and
    its denominator.

    Raises:
        ContractError: segments leave a gap, there are more or fewer values, or one is not finite.
    """

    segments: tuple[Segment, ...]
    values: tuple[float, ...]
    valid: bool = True

    def __post_init__(self) -> None:
        values = tuple(map(invariants.advantage, invariants.each("values", self.values)))
        segments = invariants.each("segments", self.segments, Segment)
        invariants.check_covering(segments, values, "advantages")
        _set(self, values=values, segments=segments)

    @property
    def length(self) -> int:
        """T, the number of tokens."""
        return self.segments[-1].end if self.segments else 0

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
