"""The policy update: rollouts with advantages to gradients, in micro-batches that are shared by the ranks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from exprl.advantages import has_signal
from exprl.errors import ConfigError
from exprl.experiment import UpdateConfig
from exprl.kernels import Divergence, TokenStatistics, by_token
from exprl.models.base import LanguageModel
from exprl.models.layers import checkpointing, compiled
from exprl.models.logits import FrozenHidden
from exprl.models.modes import evaluating
from exprl.models.sharding import is_sharded
from exprl.models.shared_prompts import sharing_attention
from exprl.objectives import Objective
from exprl.training.batching import MicroBatch, TokenSequence, collate, prompts_together
from exprl.training.micro_batches import share
from exprl.training.policy import response_logprobs
from exprl.training.world import World
from exprl.types import ScoredGroup

Backward = Callable[[Tensor], None]
T = TypeVar("T")
MicroBatchSequences = tuple[TokenSequence, ...]

PACKING_ATTENTION = ("flash_attention_2", "flash_attention_3", "flex_attention")
"""Attention that skips what lies between packed sequences; sdpa and eager pack exactly too, but build an S x S mask."""

LESS_MEMORY = (
    "Lower update.micro_batch_tokens, or set update.activation_checkpointing=true or "
    "update.offload_initial_policy=true; a run goes on with them by --resume."
)


@dataclass(frozen=True, kw_only=True)
class Update:
    """One optimizer update as one rank sees it.

    Attributes:
        micro_batches: this rank's; an empty one keeps it in step with ranks that have more.
        tokens: response tokens of all ranks together, the denominator of statistics and, as a rule, of the loss.
        rollouts: of all ranks together.
    """

    micro_batches: tuple[MicroBatchSequences, ...]
    tokens: int
    rollouts: int


class PolicyUpdate:
    """Computes the gradient of the loss of one update, whatever the micro-batches and the ranks.

    Args:
        policy: the model that trains.
        objective: the loss of a token.
        options: micro-batch budget, packing, epochs, aggregation.
        temperature: of the sampling, applied to every log-prob.
        length_limit: tokens that a rollout may have, for `aggregation: constant`.
        world: the ranks.
        device: where it computes.
    """

    statistics: ClassVar[tuple[str, ...]] = (
        *("loss", "entropy", "kl", "clipped", "ratio", "is_weight", "is_outside", "sampler_gap"),
    )
    """What is logged of the tokens; NaN for what a run has not."""

    filler: ClassVar[TokenSequence] = TokenSequence(
        prompt_ids=(0,), response_ids=(0,), advantages=(0.0,), sampler_logprobs=(0.0,)
    )
    """What a rank with nothing left computes for nothing."""

    def __init__(
        self,
        policy: LanguageModel,
        objective: Objective,
        options: UpdateConfig,
        *,
        temperature: float,
        world: World,
        device: torch.device,
        length_limit: int | None = None,
    ) -> None:
        self.policy = policy
        self.objective = objective
        self.options = options
        self.aggregated_length = options.aggregation_length or length_limit
        if options.aggregation == "constant" and self.aggregated_length is None:
            raise ConfigError(
                "update.aggregation: constant divides by update.aggregation_length tokens a rollout. Set that, usually "
                "to the length limit of sampling."
            )
        self.temperature = temperature
        self.world = world
        self.device = device
        self.packed = wants_packing(policy.model, options)
        self.sharing = options.packing == "auto" and not options.compile_layers
        self.overhead = overhead(sum(weight.numel() for weight in policy.model.parameters()), device)

    # ------------------------------------------------------------------ what is computed together

    def plan(self, scored: Sequence[ScoredGroup]) -> tuple[list[Update], int]:
        """The step's updates in order, and the number of groups without a learning signal, which are left out.

        `scored` are the groups of all ranks, in the order of the step's prompts.
        """
        kept = [s if self.teaches(s) else None for s in scored]
        samples = [self.sequences([s for s in part if s is not None]) for part in self.parts(kept)]
        return [self.share(sequences) for sequences in samples if sequences], kept.count(None)

    def teaches(self, scored: ScoredGroup) -> bool:
        """Whether a group has a learning signal."""
        return has_signal(scored.advantages, self.options.signal_tolerance)

    def sequences(self, scored: Sequence[ScoredGroup]) -> list[TokenSequence]:
        """The rollouts that enter the loss: valid ones with at least one token."""
        return [
            TokenSequence.of(rollout, advantages)
            for s in scored
            for rollout, advantages in zip(s.group.rollouts, s.advantages, strict=True)
            if advantages.valid and len(rollout)
        ]

    def parts(self, items: Sequence[T]) -> list[list[T]]:
        """What belongs to each update, one item a prompt: the next prompts of the step, whatever the ranks."""
        size = self.options.prompts_per_update or len(items)
        return [list(items[start : start + size]) for start in range(0, len(items), size)]

    def share(self, sequences: Sequence[TokenSequence]) -> Update:
        """This rank's micro-batches of `sequences`, which every rank has in the same order."""
        shares = share(
            [self.length(sequence) for sequence in sequences],
            budget=self.options.micro_batch_tokens,
            ranks=self.world.size,
            packed=self.packed,
            overhead=self.overhead,
        )
        return Update(
            micro_batches=tuple(
                tuple(prompts_together([sequences[i] for i in batch])) for batch in shares[self.world.rank]
            ),
            tokens=sum(len(sequence.response_ids) for sequence in sequences),
            rollouts=len(sequences),
        )

    def length(self, sequence: TokenSequence) -> int:
        """Tokens that a sequence takes of a micro-batch's budget."""
        return sequence.total_tokens

    # ------------------------------------------------------------------ log-probs

    def frozen_logprobs(self, model: LanguageModel, update: Update) -> list[Tensor]:
        """[N] log-probs of each micro-batch's response tokens under a model as it is, without gradient."""
        with model.inference(), compiled(model.model, on=self.options.compile_layers):
            return [self.logprobs(model, batch).logp for _, batch in self.batches(update)]

    def logprobs(
        self,
        model: LanguageModel,
        batch: MicroBatch,
        *,
        entropy: bool = False,
        frozen: FrozenHidden | None = None,
        divergence: Divergence | None = None,
    ) -> TokenStatistics:
        """Statistics [N] of a micro-batch's response tokens, at the temperature that sampled them."""
        return response_logprobs(
            model.model,
            batch,
            temperature=self.temperature,
            backend=self.options.kernels,
            entropy=entropy,
            frozen=frozen,
            divergence=divergence,
        )

    def batches(self, update: Update) -> Iterator[tuple[bool, MicroBatch]]:
        """Each micro-batch as tensors, and whether it counts.

        Sharded weights are gathered by all ranks together, so a rank with nothing left computes something for nothing.
        """
        for sequences in update.micro_batches:
            if sequences or is_sharded(self.policy.model):
                yield bool(sequences), self.collate(sequences or (self.filler,))
            self.world.progress()

    def collate(self, sequences: Sequence[TokenSequence]) -> MicroBatch:
        """A micro-batch on the policy's device."""
        pad = self.policy.tokenizer.pad_token_id
        assert isinstance(pad, int)
        return collate(sequences, pad_token_id=pad, device=self.device, packed=self.packed, sharing=self.sharing)

    # ------------------------------------------------------------------ the loss

    def accumulate(
        self,
        update: Update,
        backward: Backward,
        *,
        old: Sequence[Tensor] | None = None,
        initial: Sequence[Tensor] | None = None,
    ) -> dict[str, float]:
        """Add this rank's part of the gradient; returns its sums of the per-token statistics, log-probs among them.

        Args:
            update: what to compute.
            backward: called with each micro-batch's scaled loss.
            old: [N] log-probs of each micro-batch before the step's first update; None: this is the first.
            initial: [N] log-probs of each micro-batch under the frozen initial policy.
        """
        # FSDP averages over ranks what here is a sum.
        scale = (self.world.size if is_sharded(self.policy.model) else 1) / update.tokens
        sums: defaultdict[str, float] = defaultdict(float)
        model, options = self.policy.model, self.options
        with (
            evaluating(model),
            checkpointing(model, on=options.activation_checkpointing),
            compiled(model, on=options.compile_layers),
            sharing_attention(),
        ):
            for number, (counts, batch) in enumerate(self.batches(update)):
                before = old[number] if old is not None else None
                loss, stats = self.token_loss(batch, before, initial[number] if initial is not None else None)
                loss = self.aggregated(loss, batch.lengths, update)
                backward(loss.sum() * (scale if counts else 0.0))
                for name, value in total({**stats, "loss": loss}).items() if counts else ():
                    sums[name] += value
        return dict(sums)

    def aggregated(self, loss: Tensor, lengths: Sequence[int], update: Update) -> Tensor:
        """The losses [N] times what each counts in the update's token mean.

        Weights are of the whole update, so they are the same however it is cut into micro-batches.
        """
        if self.options.aggregation == "token":
            return loss
        mean_length = update.tokens / update.rollouts
        if self.options.aggregation == "constant":
            assert self.aggregated_length is not None
            return loss * (mean_length / self.aggregated_length)
        weights = torch.tensor([mean_length / length for length in lengths], dtype=loss.dtype, device=loss.device)
        return loss * by_token(weights, lengths)

    def token_loss(
        self, batch: MicroBatch, old: Tensor | None, initial: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss [N] of one micro-batch's tokens, and statistics [N] of them."""
        current = self.logprobs(self.policy, batch, entropy=True)
        return self.objective_loss(current, batch, batch.advantages, old, initial)

    def objective_loss(
        self,
        current: TokenStatistics,
        batch: MicroBatch,
        advantages: Tensor,
        old: Tensor | None,
        initial: Tensor | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`token_loss` by the objective, with these advantages [N]."""
        before = current.logp.detach() if old is None else old
        sampler = batch.sampler_logprobs
        result = self.objective.token_loss(
            current.logp,
            before,
            advantages,
            sampler_logp=sampler,
            initial_logp=initial,
            lengths=batch.lengths,
            entropy=current.entropy,
        )
        stats = {**result.stats, **logprobs_of(current, old, initial)}
        if sampler is not None:
            stats["sampler_gap"] = (before - sampler).abs()
        return result.loss, stats


def logprobs_of(current: TokenStatistics, old: Tensor | None, initial: Tensor | None) -> dict[str, Tensor]:
    """[N] each: what an update starts from. A clamp hides an infinite one of these from every other statistic."""
    assert current.entropy is not None
    parts = {"logp": current.logp, "entropy": current.entropy, "old_logp": old, "initial_logp": initial}
    return {name: part.detach() for name, part in parts.items() if part is not None}


def total(stats: Mapping[str, Tensor]) -> dict[str, float]:
    """The sum of each [N], in one transfer from the device."""
    sums = torch.stack([value.detach().sum().double() for value in stats.values()]).tolist()
    return dict(zip(stats, sums, strict=True))


_OVERHEAD_FLOPS = {"cpu": 10**11, "cuda": 10**13}
"""What a device computes while Python runs a micro-batch through a model, amply: a little padding may stay."""

_OVERHEAD_TOKENS = 64
"""As long as adding a micro-batch's gradients takes, which grows with the weights as a token does."""


def overhead(parameters: int, device: torch.device) -> int:
    """Tokens that take about as long as a micro-batch does beside its tokens, at 6 FLOPs a parameter and token."""
    return _OVERHEAD_TOKENS + _OVERHEAD_FLOPS.get(device.type, _OVERHEAD_FLOPS["cuda"]) // (6 * max(parameters, 1))


def wants_packing(model: PreTrainedModel, options: UpdateConfig) -> bool:
    """Whether rollouts are packed; raises `ConfigError` where the model would mix packed sequences."""
    config = model.config
    attention = str(getattr(config, "_attn_implementation", ""))
    kinds = set(getattr(config, "layer_types", None) or ())
    recurrent = {kind for kind in kinds if "attention" not in kind or "linear" in kind}
    if options.packing is True and recurrent:
        raise ConfigError(
            f"update.packing: layers of kind {', '.join(sorted(recurrent))} would carry state from one packed rollout "
            "into the next. Set update.packing=false."
        )
    if options.packing == "auto":
        return attention in PACKING_ATTENTION and not recurrent
    return bool(options.packing)
