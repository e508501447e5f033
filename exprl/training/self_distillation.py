"""On-policy self-distillation: on its own rollouts the policy follows its frozen initial self, which has the reference.

Rollouts are sampled given the question alone, as in `rl`. The reference reaches the policy only through the teacher's
log-probs of what the policy itself wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor

from exprl.advantages import Advantage, AllReduce, Scores, Values
from exprl.engines.base import Sampling
from exprl.errors import ModelError
from exprl.experiment import UpdateConfig
from exprl.kernels.policy import kl_estimate
from exprl.models.base import LanguageModel
from exprl.models.logits import FrozenHidden
from exprl.models.sharding import gathered
from exprl.objectives import Objective
from exprl.training.batching import MicroBatch, TokenSequence
from exprl.training.module import ExpRLModule, Parts
from exprl.training.policy import response_hidden
from exprl.training.policy_module import Shown
from exprl.training.update import Backward, PolicyUpdate, Update, logprobs_of
from exprl.types import Problem, ScoredGroup

if TYPE_CHECKING:
    pass

TeacherPrompt = Callable[[Problem], tuple[int, ...]]


class NoAdvantage(Advantage):
    """0 for every rollout: rewards are for the log alone, the teacher says what each token is worth."""

    def of_batch(self, groups: Sequence[Sequence[Scores]], all_reduce: AllReduce) -> list[list[Values]]:
        """See `Advantage`."""
        return [[(0.0,) * len(scores.values) for scores in group] for group in groups]


@dataclass(frozen=True, kw_only=True)
class TeacherSequence(TokenSequence):
    """A rollout with the prompt under which the teacher reads it."""

    teacher_prompt_ids: tuple[int, ...]

    @property
    def for_teacher(self) -> TokenSequence:
        """The same response after the teacher's prompt."""
        return TokenSequence(prompt_ids=self.teacher_prompt_ids, response_ids=self.response_ids)


@dataclass(frozen=True, kw_only=True)
class TaughtBatch(MicroBatch):
    """A micro-batch with the teacher's: the same N response tokens in the same order, after other prompts."""

    teacher: MicroBatch


class DistillationUpdate(PolicyUpdate):
    """A policy update whose micro-batches come with the teacher's.

    Args:
        policy: the model that trains.
        objective: the loss of a token, where the estimator takes one.
        options: micro-batch budget, packing, epochs.
        teacher: the frozen initial policy.
        prompt: the ids the teacher reads before a problem's rollouts.
        place: temperature, world and device, see `PolicyUpdate`.
    """

    filler: ClassVar[TokenSequence] = TeacherSequence(
        prompt_ids=(0,), response_ids=(0,), sampler_logprobs=(0.0,), teacher_prompt_ids=(0,)
    )

    def __init__(
        self,
        policy: LanguageModel,
        objective: Objective,
        options: UpdateConfig,
        *,
        teacher: LanguageModel,
        prompt: TeacherPrompt,
        **place: Any,
    ) -> None:
        super().__init__(policy, objective, options, **place)
        self.teacher = teacher
        self.prompt = prompt

    def teaches(self, scored: ScoredGroup) -> bool:
        """The teacher has something to say of every rollout."""
        return any(map(len, scored.group.rollouts))

    def sequences(self, scored: Sequence[ScoredGroup]) -> list[TokenSequence]:
        """All rollouts with at least one token, right or wrong."""
        return [
            TeacherSequence(
                prompt_ids=rollout.prompt.token_ids,
                response_ids=rollout.token_ids,
                sampler_logprobs=rollout.sampler_logprobs,
                teacher_prompt_ids=prompt,
            )
            for s in scored
            for prompt in [self.prompt(s.group.problem)]
            for rollout in s.group.rollouts
            if len(rollout)
        ]

    def length(self, sequence: TokenSequence) -> int:
        """That of the longer of policy's and teacher's."""
        return max(sequence.total_tokens, with_teacher(sequence).for_teacher.total_tokens)

    def collate(self, sequences: Sequence[TokenSequence]) -> TaughtBatch:
        """The policy's micro-batch and the teacher's."""
        own, teacher = super().collate(sequences), super().collate([with_teacher(s).for_teacher for s in sequences])
        return TaughtBatch(**{field.name: getattr(own, field.name) for field in fields(own)}, teacher=teacher)


class SampledDistillation(DistillationUpdate):
    """Policy gradient by the objective, each sampled token's advantage log π_teacher - log π as π is now.

    The expectation of its gradient is that of KL(π ‖ π_teacher) at the position; its variance is that of one sample.
    """

    statistics: ClassVar[tuple[str, ...]] = (*PolicyUpdate.statistics, "teacher_kl")

    def token_loss(
        self, batch: MicroBatch, old: Tensor | None, initial: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `PolicyUpdate`; `teacher_kl` is the estimate log π - log π_teacher."""
        assert isinstance(batch, TaughtBatch)
        with self.teacher.inference():
            teacher = self.logprobs(self.teacher, batch.teacher).logp
        current = self.logprobs(self.policy, batch, entropy=True)
        advantages = teacher - current.logp.detach()
        loss, stats = self.objective_loss(current, batch, advantages, old, initial)
        return loss, {**stats, "teacher_kl": -advantages}


class ExactDistillation(DistillationUpdate):
    """KL(π ‖ π_teacher) over the whole vocabulary at every sampled position, differentiated in π."""

    statistics: ClassVar[tuple[str, ...]] = ("loss", "entropy", "kl", "sampler_gap", "teacher_kl")

    def accumulate(
        self,
        update: Update,
        backward: Backward,
        *,
        old: Sequence[Tensor] | None = None,
        initial: Sequence[Tensor] | None = None,
    ) -> dict[str, float]:
        """See `PolicyUpdate`; the backward pass reads the teacher's head too: sharded weights stay whole for it."""
        with gathered(self.teacher.model):
            return super().accumulate(update, backward, old=old, initial=initial)

    def token_loss(
        self, batch: MicroBatch, old: Tensor | None, initial: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `PolicyUpdate`."""
        assert isinstance(batch, TaughtBatch)
        current = self.logprobs(self.policy, batch, entropy=True, frozen=self.teacher_hidden(batch), divergence="rkl")
        loss, logp = current.divergence, current.logp.detach()
        assert loss is not None
        assert batch.sampler_logprobs is not None
        gap = ((logp if old is None else old) - batch.sampler_logprobs).abs()
        stats = {**logprobs_of(current, old, initial), "teacher_kl": loss, "sampler_gap": gap}
        if initial is not None:
            stats["kl"] = kl_estimate(logp, initial, "k3")
        return loss, stats

    def teacher_hidden(self, batch: TaughtBatch) -> FrozenHidden:
        """The teacher's last hidden states [N, D] at the response's positions, without gradient."""
        with self.teacher.inference():
            return FrozenHidden(self.teacher.model, response_hidden(self.teacher.model, batch.teacher))


ESTIMATORS: dict[str, type[DistillationUpdate]] = {"sampled": SampledDistillation, "exact": ExactDistillation}


class DistillationModule(ExpRLModule):
    """Sample, verify, follow the teacher: a step of `rl` with another update.

    Args:
        policy: the model to train.
        parts: of a step; the reward is for the log alone, and `parts.initial_policy` is the teacher.
        sampling: how rollouts are sampled.
        estimator: of the KL.
        prompt: the ids the teacher reads before a problem's rollouts.
        options: see `ExpRLModule`.
    """

    shown: ClassVar[Shown] = (*ExpRLModule.shown, ("update/teacher_kl", "teacher kl", ".4f"))
    samples_dynamically: ClassVar[bool] = False

    def __init__(
        self,
        policy: LanguageModel,
        parts: Parts,
        sampling: Sampling,
        *,
        estimator: Literal["sampled", "exact"],
        prompt: TeacherPrompt,
        template: str = "",
        **options: Any,
    ) -> None:
        super().__init__(policy, parts, sampling, **options)
        self.template = template
        self.estimator = estimator
        self.prompt = prompt

    def texts(self) -> dict[str, str]:
        """Also the teacher's prompt."""
        return {**super().texts(), "the teacher's prompt": self.template}

    def policy_update(self) -> PolicyUpdate:
        """The estimator's update, at the temperature that sampled."""
        assert self.initial_policy is not None
        return ESTIMATORS[self.estimator](
            self.language_model,
            self.parts.objective,
            self.update,
            teacher=self.initial_policy,
            prompt=self.prompt,
            temperature=self.temperature,
            world=self.world,
            device=self.device,
            length_limit=self.sampling.max_new_tokens,
        )

    def update_once(
        self, computing: PolicyUpdate, update: Update, old: list[Tensor] | None, initial: list[Tensor] | None
    ) -> dict[str, float]:
        """See `PolicyModule`; the teacher is on the device meanwhile."""
        with self.held.frozen_on(self.device):
            return super().update_once(computing, update, old, initial)


def check_room(problem: Problem, length: int, max_new_tokens: int, policy: LanguageModel) -> None:
    """Raise `ModelError` where the teacher's prompt of `length` tokens and a rollout exceed the context."""
    context = policy.context_length
    if context is not None and length + max_new_tokens > context:
        raise ModelError(
            f"method.name=self_distillation: problem {problem.id!r}: the teacher's prompt of {length} tokens, with "
            f"the reference, and rollout.max_new_tokens {max_new_tokens} exceed the context of {policy.name} "
            f"({context} tokens). Lower rollout.max_new_tokens, shorten method.template, or drop the row."
        )


def with_teacher(sequence: TokenSequence) -> TeacherSequence:
    """A sequence of this update, which are all of this kind."""
    assert isinstance(sequence, TeacherSequence)
    return sequence
