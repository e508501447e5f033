"""The LightningModule that owns the policy update and delegates everything else to registered components."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor
from transformers import PreTrainedModel

from exprl.advantages import Advantage
from exprl.engines.base import Engine, Sampling
from exprl.experiment import OptimizerConfig, UpdateConfig
from exprl.models.base import LanguageModel
from exprl.models.sharding import awaken, gathered
from exprl.objectives import Objective
from exprl.prompts import PromptBuilder
from exprl.rewards.base import Reward
from exprl.seeding import derive_seed
from exprl.training import metrics
from exprl.training.optimizer import build_optimizer
from exprl.training.parallel import check_strategy, clip_gradients, on_device, place, shard_for, sum_gradients
from exprl.training.phases import Phases
from exprl.training.randomness import random_state, restore_random_state
from exprl.training.update import PolicyUpdate, Update
from exprl.training.world import World
from exprl.types import AnyReward, Problem, Rollout, RolloutGroup, ScoredGroup
from exprl.verifiers.base import Verifier

Rewarded = tuple[RolloutGroup, tuple[AnyReward, ...]]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The components one step runs through, in order.

    `reference`, the frozen initial policy, is there if the loss, the logged KL (`log_kl`) or a judge needs it.
    """

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
        parts: the components of a step. `parts.reference` stays out of the module tree so that it is neither moved into
            checkpoints nor trained.
        sampling: how rollouts are sampled; its seed is replaced each step.
        optimizer: AdamW and its schedule.
        update: how rollouts become optimizer updates.
        seed: every step's sampling seed derives from it, the step number and the rank.
        world: the ranks; None: those of the Trainer.
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
        world: World | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.policy = policy.model
        self.language_model = policy
        self.parts = parts
        self.sampling = sampling
        self.optimizer_config = optimizer
        self.update = update
        self.seed = seed
        self.given_world = world
        self.world = world or World()
        self.phases = Phases(lambda name: self.world.enter(f"{name} of step {self.steps_done + 1}"))
        self.steps_done = 0
        self.unlocked: set[str] = set()
        self.updating = False
        self.last_scored: list[ScoredGroup] = []
        self.last_metrics: dict[str, float] = {}

    # ------------------------------------------------------------------ one step

    def training_step(self, problems: list[Problem], batch_idx: int) -> None:
        """One step on this rank's problems."""
        del batch_idx
        with self.whole_models():
            rewarded = self.score(self.sample(problems))
        scored = self.compare(rewarded)
        self.updating = True
        self.parts.engine.sleep()
        update = self.learn(scored)
        self.steps_done += 1
        self.parts.engine.sync(self.steps_done)
        self.parts.reward.sync()
        self.updating = False
        self.last_scored = scored
        if self.world.first:
            self.last_metrics = {**self.describe(scored), **update, **self.timing(scored)}

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
        seed = derive_seed(self.seed, "rollout", self.steps_done, self.world.rank)
        return replace(self.sampling, seed=seed)

    def score(self, groups: Sequence[RolloutGroup]) -> list[Rewarded]:
        """Rewards of each group."""
        with self.phases.run("judging", unit="verdict") as advance:
            return list(zip(groups, self.parts.reward.score(groups, advance), strict=True))

    def compare(self, rewarded: Sequence[Rewarded]) -> list[ScoredGroup]:
        """Advantages over the groups of all ranks, rank by rank: the same list on every rank."""
        everyone = self.world.gather(list(rewarded), f"the update of step {self.steps_done + 1}")
        groups, rewards = zip(*(pair for own in everyone for pair in own), strict=True)
        advantages = self.parts.advantage.estimate(rewards)
        return [
            ScoredGroup(group=group, rewards=reward, advantages=advantage)
            for group, reward, advantage in zip(groups, rewards, advantages, strict=True)
        ]

    @contextmanager
    def whole_models(self) -> Iterator[None]:
        """Inside, this rank holds all weights of the policy and the reference, on its device."""
        with ExitStack() as stack:
            stack.enter_context(gathered(self.policy))
            if self.frozen is not None:
                stack.enter_context(on_device(self.frozen, self.device, offload=self.update.offload_reference))
                stack.enter_context(gathered(self.frozen))
            yield

    @property
    def frozen(self) -> PreTrainedModel | None:
        """The reference's own weights; None without one, and with an adapter, where it is the policy without that."""
        reference = self.parts.reference
        return None if reference is None or reference.model is self.policy else reference.model

    # ------------------------------------------------------------------ the update

    def learn(self, scored: Sequence[ScoredGroup]) -> dict[str, float]:
        """Update the policy on every group with a learning signal; returns the update's metrics."""
        computing = self.policy_update()
        updates, dropped = computing.plan(scored)
        what = f"the update of step {self.steps_done + 1}"
        totals: defaultdict[str, float] = defaultdict(float)
        with (
            self.world.collective(what),
            self.phases.run("updating", len(updates) * self.update.epochs, unit="update") as advance,
        ):
            reference = self.reference_logprobs(computing, updates)
            old = self.old_logprobs(computing, updates)
            for _ in range(self.update.epochs):
                for update, before, frozen in zip(updates, old, reference, strict=True):
                    for name, value in self.update_once(computing, update, before, frozen).items():
                        totals[name] += value
                    advance(1)
        counts = {"update/dropped_groups": float(dropped), "update/count": totals.pop("updates", 0.0)}
        return {**average(totals), **counts}

    def policy_update(self) -> PolicyUpdate:
        """What computes gradients, on this module's device."""
        return PolicyUpdate(
            self.language_model,
            self.parts.objective,
            self.update,
            temperature=self.sampling.temperature,
            world=self.world,
            device=self.device,
        )

    def reference_logprobs(self, computing: PolicyUpdate, updates: Sequence[Update]) -> list[list[Tensor] | None]:
        """Log-probs under the frozen initial policy, where the loss or the logged KL takes them."""
        reference = self.parts.reference
        if reference is None or not (self.parts.objective.needs_reference or self.update.log_kl):
            return [None for _ in updates]
        with on_device(self.frozen, self.device, offload=self.update.offload_reference):
            return [computing.frozen_logprobs(reference, update) for update in updates]

    def old_logprobs(self, computing: PolicyUpdate, updates: Sequence[Update]) -> list[list[Tensor] | None]:
        """Log-probs before the step's first update; None where the policy still is that policy when it updates."""
        if len(updates) * self.update.epochs <= 1:
            return [None for _ in updates]
        return [computing.frozen_logprobs(self.language_model, update) for update in updates]

    def update_once(
        self, computing: PolicyUpdate, update: Update, old: list[Tensor] | None, reference: list[Tensor] | None
    ) -> dict[str, float]:
        """One optimizer update; sums of the per-token statistics over all ranks."""
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        assert not isinstance(optimizer, list)
        assert scheduler is not None
        assert not isinstance(scheduler, list)
        optimizer.zero_grad()
        sums = computing.accumulate(update, self.manual_backward, old=old, reference=reference)
        sum_gradients(self.policy, self.world)
        norm = clip_gradients(self.policy, self.optimizer_config.max_grad_norm)
        optimizer.step()
        scheduler.step()
        rate = float(scheduler.get_last_lr()[0])
        return {**self.world.sum(sums), "tokens": float(update.tokens), "updates": 1.0, "grad_norm": norm, "lr": rate}

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

    def timing(self, scored: Sequence[ScoredGroup]) -> dict[str, float]:
        """Seconds of each phase on this rank, and sampled tokens of all ranks a second of the whole step."""
        seconds = self.phases.take()
        tokens = sum(len(rollout) for s in scored for rollout in s.group.rollouts)
        total = sum(seconds.values())
        rates = {"time/tokens_per_second": tokens / total if total else 0.0, "time/step_seconds": total}
        return {**{f"time/{name}_seconds": value for name, value in seconds.items()}, **rates}

    # ------------------------------------------------------------------ Lightning

    def setup(self, stage: str) -> None:
        """Take the ranks of a Trainer of one's own; raises `ConfigError` if its strategy sums gradients itself."""
        check_strategy(self.trainer.strategy)
        if self.given_world is None:
            self.world = World()

    def configure_model(self) -> None:
        """Shard policy and reference where the strategy shards."""
        precision = str(self.trainer.precision)
        shard_for(self.trainer.strategy, self.policy, precision)
        if self.frozen is not None:
            shard_for(self.trainer.strategy, self.frozen, precision, offload=self.update.offload_reference)

    def configure_optimizers(self) -> Any:
        """AdamW with linear warm-up."""
        optimizer, schedule = build_optimizer(self.policy, self.optimizer_config)
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_train_start(self) -> None:
        """Give the engine the weights of the checkpoint, if the run goes on from one."""
        awaken(self.policy, self.device)
        if self.frozen is not None:
            awaken(self.frozen, self.device)
            place(self.frozen, torch.device("cpu") if self.update.offload_reference else self.device)
        self.parts.engine.sync(self.steps_done)
        self.parts.reward.prepare()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What Lightning does not keep: steps, unlocked prompts, and each rank's random states and judge's cache."""
        own = {"rng": random_state(), "reward": self.parts.reward.state_dict()}
        checkpoint["exprl"] = {
            "steps_done": self.steps_done,
            "unlocked": sorted(self.unlocked),
            "ranks": self.world.gather(own, f"the checkpoint of step {self.steps_done}", despite_failure=True),
        }

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """The inverse of `on_save_checkpoint`; a rank that did not save starts with fresh random states."""
        state = checkpoint["exprl"]
        self.steps_done = state["steps_done"]
        self.unlocked = set(state["unlocked"])
        if self.world.rank < len(state["ranks"]):
            own = state["ranks"][self.world.rank]
            restore_random_state(own["rng"])
            self.parts.reward.load_state_dict(own["reward"])


def average(totals: Mapping[str, float]) -> dict[str, float]:
    """Token sums as token means, update sums as update means; NaN for a step without an update."""
    totals = dict(totals)
    tokens, updates = totals.pop("tokens", 0.0), max(totals.get("updates", 1.0), 1.0)
    per_update = {name: totals.pop(name, float("nan")) / updates for name in ("grad_norm", "lr")}
    names = ("loss", "entropy", "kl", "clipped", "ratio", "is_weight", "sampler_gap")
    means = {name: totals[name] / tokens if tokens and name in totals else float("nan") for name in names}
    return {f"update/{name}": value for name, value in {**means, **per_update}.items()}
