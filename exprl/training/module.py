"""The LightningModule that owns the policy update and delegates everything else to registered components."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from lightning import LightningModule
from torch import Tensor
from transformers import PreTrainedModel

from exprl.advantages import Advantage, has_signal
from exprl.engines.base import Engine, Sampling
from exprl.experiment import OptimizerConfig, UpdateConfig
from exprl.kernels import TokenStatistics
from exprl.models.base import LanguageModel
from exprl.objectives import Objective
from exprl.prompts import PromptBuilder
from exprl.rewards.base import Reward
from exprl.seeding import derive_seed
from exprl.training import metrics
from exprl.training.batching import MicroBatch, TokenSequence, collate, split_by_tokens
from exprl.training.optimizer import build_optimizer
from exprl.training.phases import Phases
from exprl.training.policy import response_logprobs
from exprl.types import Problem, Rollout, RolloutGroup, ScoredGroup
from exprl.verifiers.base import Verifier


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The components one step runs through, in order."""

    prompts: PromptBuilder
    engine: Engine
    reward: Reward
    advantage: Advantage
    objective: Objective
    verifier: Verifier | None = None
    reference: LanguageModel | None = None


class ExpRLModule(LightningModule):
    """One training step: sample, score, estimate advantages, update, sync.

    Args:
        policy: the model to train.
        parts: the components of a step. `parts.reference`, the frozen initial policy, stays out of the module tree so
            that it is neither moved into checkpoints nor trained.
        sampling: how rollouts are sampled; its seed is replaced each step.
        optimizer: AdamW and its schedule.
        update: how rollouts become optimizer updates.
        seed: every step's sampling seed derives from it and the step number.
    """

    def __init__(
        self,
        policy: LanguageModel,
        parts: Parts,
        sampling: Sampling,
        *,
        optimizer: OptimizerConfig,
        update: UpdateConfig,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.policy = policy.model
        self.tokenizer = policy.tokenizer
        self.parts = parts
        self.sampling = sampling
        self.optimizer_config = optimizer
        self.update = update
        self.seed = seed
        self.phases = Phases()
        self.steps_done = 0
        self.unlocked: set[str] = set()
        self.updating = False
        self.last_scored: list[ScoredGroup] = []
        self.last_metrics: dict[str, float] = {}

    # ------------------------------------------------------------------ one step

    def training_step(self, problems: list[Problem], batch_idx: int) -> None:
        """One step on a list of problems."""
        del batch_idx
        groups = self.sample(problems)
        scored = self.score(groups)
        self.updating = True
        update = self.learn(scored)
        self.steps_done += 1
        self.parts.engine.sync(self.steps_done)
        self.parts.reward.sync()
        self.updating = False
        self.last_scored = scored
        self.last_metrics = {**self.describe(scored), **update, **self.timing(groups)}

    def sample(self, problems: Sequence[Problem]) -> list[RolloutGroup]:
        """Rollouts for each problem; the engine is given prompts made from questions, nothing else."""
        prompts = [self.parts.prompts.build(problem.question) for problem in problems]
        sampling = self.sampling_of_step()
        rollouts: list[list[Rollout]] = [[] for _ in prompts]
        with self.phases.run("sampling", len(prompts) * sampling.n) as advance:
            for index, rollout in self.parts.engine.generate(prompts, sampling):
                rollouts[index].append(rollout)
                # A judge that can begins here, while the engine is still sampling.
                self.parts.reward.start(problems[index], rollout)
                advance(1)
        return [RolloutGroup(problem=p, rollouts=tuple(r)) for p, r in zip(problems, rollouts, strict=True)]

    def sampling_of_step(self) -> Sampling:
        """The run's sampling with this step's own seed."""
        seed = derive_seed(self.seed, "rollout", self.steps_done, self.global_rank)
        return replace(self.sampling, seed=seed)

    def score(self, groups: Sequence[RolloutGroup]) -> list[ScoredGroup]:
        """Rewards and advantages of each group."""
        with self.phases.run("judging", unit="verdict") as advance:
            rewards = self.parts.reward.score(groups, advance)
        advantages = self.parts.advantage.estimate(rewards)
        return [
            ScoredGroup(group=group, rewards=reward, advantages=advantage)
            for group, reward, advantage in zip(groups, rewards, advantages, strict=True)
        ]

    # ------------------------------------------------------------------ the update

    def learn(self, scored: Sequence[ScoredGroup]) -> dict[str, float]:
        """Update the policy on every group with a learning signal; returns the update's metrics."""
        size, tolerance = self.update.prompts_per_update or len(scored), self.update.signal_tolerance
        kept = [s if has_signal(s.advantages, tolerance) else None for s in scored]
        chunks = [trainable([s for s in kept[i : i + size] if s]) for i in range(0, len(kept), size)]
        updates = [samples for samples in chunks if samples]
        totals: defaultdict[str, float] = defaultdict(float)
        with self.phases.run("updating", len(updates) * self.update.epochs, unit="update") as advance:
            old = self.old_logprobs(updates)
            for _ in range(self.update.epochs):
                for samples, old_logprobs in zip(updates, old, strict=True):
                    for name, value in self.update_once(samples, old_logprobs).items():
                        totals[name] += value
                    advance(1)
        dropped = {"update/dropped_groups": float(kept.count(None)), "update/count": totals.pop("updates", 0.0)}
        return {**average(totals), **dropped}

    def old_logprobs(self, updates: Sequence[Sequence[TokenSequence]]) -> list[list[Tensor] | None]:
        """Log-probs before the step's first update; None where the policy still is that policy when it updates."""
        if len(updates) * self.update.epochs <= 1:
            return [None for _ in updates]
        return [self.frozen_logprobs(samples) for samples in updates]

    @torch.no_grad()
    def frozen_logprobs(self, samples: Sequence[TokenSequence]) -> list[Tensor]:
        """[T] log-probs of each sample under the current policy, without gradient."""
        result: dict[int, Tensor] = {}
        for indices in self.split(samples):
            chosen = [samples[i] for i in indices]
            logp = self.logprobs(self.policy, self.collate(chosen)).logp
            pieces = logp.split([len(sample.response_ids) for sample in chosen])
            result.update(zip(indices, pieces, strict=True))
        return [result[i] for i in range(len(samples))]

    def update_once(self, samples: Sequence[TokenSequence], old_logprobs: list[Tensor] | None) -> dict[str, float]:
        """One optimizer update over `samples` in micro-batches; sums of the per-token statistics."""
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        optimizer.zero_grad()
        sums = self.accumulate_gradients(samples, old_logprobs)
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.optimizer_config.max_grad_norm)
        optimizer.step()
        scheduler = self.lr_schedulers()
        assert scheduler is not None
        assert not isinstance(scheduler, list)
        scheduler.step()
        return {**sums, "updates": 1.0, "grad_norm": float(norm), "lr": float(scheduler.get_last_lr()[0])}

    def accumulate_gradients(
        self, samples: Sequence[TokenSequence], old_logprobs: list[Tensor] | None = None
    ) -> dict[str, float]:
        """Add the gradient of the token-mean loss over all of `samples`, whatever the micro-batch size."""
        tokens = sum(len(sample.response_ids) for sample in samples)
        sums: defaultdict[str, float] = defaultdict(float)
        for indices in self.split(samples):
            old = torch.cat([old_logprobs[i] for i in indices]) if old_logprobs is not None else None
            loss, stats = self.token_loss([samples[i] for i in indices], old)
            self.manual_backward(loss / tokens)
            for name, value in stats.items():
                sums[name] += value.detach().sum().item()
        return {**sums, "tokens": float(tokens)}

    def token_loss(self, samples: Sequence[TokenSequence], old: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The summed loss of one micro-batch, and per-token statistics [N]."""
        batch = self.collate(samples)
        current = self.logprobs(self.policy, batch, entropy=True)
        assert current.entropy is not None
        reference = None
        if self.parts.reference is not None:
            with torch.no_grad():
                reference = self.logprobs(self.parts.reference.model, batch).logp
        result = self.parts.objective.token_loss(
            current.logp,
            current.logp.detach() if old is None else old,
            batch.advantages,
            sampler_logp=batch.sampler_logprobs,
            ref_logp=reference,
        )
        gap = (current.logp.detach() if old is None else old) - batch.sampler_logprobs
        stats = {**result.stats, "entropy": current.entropy.detach(), "sampler_gap": gap.abs(), "loss": result.loss}
        return result.loss.sum(), stats

    def logprobs(self, model: PreTrainedModel, batch: MicroBatch, *, entropy: bool = False) -> TokenStatistics:
        """Statistics [N] of the batch's response tokens under a model, at the temperature that sampled them."""
        temperature, backend = self.sampling.temperature, self.update.kernels
        return response_logprobs(model, batch, temperature=temperature, backend=backend, entropy=entropy)

    def split(self, samples: Sequence[TokenSequence]) -> list[list[int]]:
        """Indices of `samples` in micro-batches under the token budget."""
        return split_by_tokens([sample.total_tokens for sample in samples], self.update.micro_batch_tokens)

    def collate(self, samples: Sequence[TokenSequence]) -> MicroBatch:
        """A padded micro-batch on the policy's device."""
        pad = self.tokenizer.pad_token_id
        assert isinstance(pad, int)
        return collate(samples, pad_token_id=pad, device=self.device)

    # ------------------------------------------------------------------ what is logged

    def describe(self, scored: Sequence[ScoredGroup]) -> dict[str, float]:
        """Reward, judge, rollout and outcome metrics of a step."""
        described = {
            **metrics.reward_metrics(scored),
            **metrics.judge_metrics(scored),
            **metrics.rollout_metrics(scored),
        }
        verifier = self.parts.verifier
        if verifier is None or any(s.group.problem.scaffold.answer is None for s in scored):
            return described
        correct = [[verifier.verify(s.group.problem, r.text) for r in s.group.rollouts] for s in scored]
        self.unlocked |= {s.group.problem.id for s, group in zip(scored, correct, strict=True) if any(group)}
        return {**described, **metrics.outcome_metrics(correct), "outcome/unlocked_prompts": float(len(self.unlocked))}

    def timing(self, groups: Sequence[RolloutGroup]) -> dict[str, float]:
        """Seconds of each phase and sampled tokens a second of the whole step."""
        seconds = self.phases.take()
        tokens = sum(len(rollout) for group in groups for rollout in group.rollouts)
        total = sum(seconds.values())
        rates = {"time/tokens_per_second": tokens / total if total else 0.0, "time/step_seconds": total}
        return {**{f"time/{name}_seconds": value for name, value in seconds.items()}, **rates}

    # ------------------------------------------------------------------ Lightning

    def configure_optimizers(self) -> Any:
        """AdamW with linear warm-up."""
        optimizer, schedule = build_optimizer(self.policy, self.optimizer_config)
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_train_start(self) -> None:
        """Give the engine the weights of the checkpoint, if the run goes on from one."""
        self.parts.engine.sync(self.steps_done)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Steps, unlocked prompts and the random state, none of which Lightning keeps."""
        checkpoint["exprl"] = {
            "steps_done": self.steps_done,
            "unlocked": sorted(self.unlocked),
            "rng": {"torch": torch.get_rng_state(), "numpy": np.random.get_state(), "python": random.getstate()},
        }

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """The inverse of `on_save_checkpoint`."""
        state = checkpoint["exprl"]
        self.steps_done = state["steps_done"]
        self.unlocked = set(state["unlocked"])
        torch.set_rng_state(state["rng"]["torch"])
        np.random.set_state(state["rng"]["numpy"])
        random.setstate(state["rng"]["python"])


def trainable(scored: Sequence[ScoredGroup]) -> list[TokenSequence]:
    """The rollouts that enter the loss: valid ones with at least one token."""
    return [
        TokenSequence.of(rollout, advantages)
        for s in scored
        for rollout, advantages in zip(s.group.rollouts, s.advantages, strict=True)
        if advantages.valid and len(rollout)
    ]


def average(totals: Mapping[str, float]) -> dict[str, float]:
    """Token sums as token means, update sums as update means; NaN for a step without an update."""
    totals = dict(totals)
    tokens, updates = totals.pop("tokens", 0.0), max(totals.get("updates", 1.0), 1.0)
    per_update = {name: totals.pop(name, float("nan")) / updates for name in ("grad_norm", "lr")}
    names = ("loss", "entropy", "kl", "clipped", "ratio", "is_weight", "sampler_gap")
    means = {name: totals[name] / tokens if tokens and name in totals else float("nan") for name in names}
    return {f"update/{name}": value for name, value in {**means, **per_update}.items()}
