"""RL on rollouts: sample, score, compare, learn. Everything else is delegated to registered components."""

from __future__ import annotations

import logging
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from exprl.advantages import Advantage
from exprl.checks.contracts import check_estimates, given_by, shown
from exprl.checks.finite import check_advantages, check_rollouts
from exprl.component import title_of
from exprl.config.kinds import is_a
from exprl.engines.base import Engine, Sampling
from exprl.errors import ConfigError
from exprl.experiment import OptimizerConfig, UpdateConfig
from exprl.models.base import LanguageModel
from exprl.objectives import Objective
from exprl.rewards.base import Reward
from exprl.rewards.checks import check_rewards
from exprl.rewards.steps import StepChecks, advice_on, judged_as, scorers_of
from exprl.seeding import derive_seed
from exprl.text.prompts import PromptBuilder
from exprl.training import metrics
from exprl.training.advice import about_cut_off
from exprl.training.exchange import Rewarded, everyones, own_groups
from exprl.training.no_update import no_update
from exprl.training.policy_module import PolicyModule, Shown
from exprl.training.update import PolicyUpdate
from exprl.training.world import World
from exprl.types import Problem, Rollout, RolloutGroup, ScoredGroup
from exprl.verifiers.base import Verifier

log = logging.getLogger(__name__)

ADVISED_STEPS = 3
"""Steps whose rewards are looked at for what a config forgot; what comes later the policy has learned."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The components one step runs through, in order.

    `initial_policy`, the frozen initial policy, is there if the loss, the logged KL (`log_kl`) or a judge needs it.
    `domains` are those of the training problems; of several the main metrics are logged for each as well.
    """

    prompts: PromptBuilder
    engine: Engine
    reward: Reward
    advantage: Advantage
    objective: Objective
    verifier: Verifier | None = None
    initial_policy: LanguageModel | None = None
    domains: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        kinds = typing.get_type_hints(type(self))
        for field in fields(self):
            value, kind = getattr(self, field.name), kinds[field.name]
            if not is_a(value, kind):
                raise ConfigError(f"Parts: {field.name}: expected {field.type}, but got {shown(value)}.")


class ExpRLModule(PolicyModule):
    """One training step: sample, score, estimate advantages, update, sync.

    Args:
        policy: the model to train.
        parts: the components of a step.
        sampling: how rollouts are sampled; its seed is replaced each step.
        optimizer: AdamW and its schedule.
        update: how rollouts become optimizer updates.
        seed: every step's sampling seed derives from it, the step number and the rank.
        world: the ranks; None: those of the Trainer.
    """

    shown: ClassVar[Shown] = (
        ("reward/mean", "reward", ".3f"),
        ("outcome/accuracy", "accuracy", ".3f"),
        ("update/entropy", "entropy", ".3f"),
        ("update/kl", "kl", ".4f"),
        ("rollout/length_mean", "length", ".0f"),
        ("rollout/cut_off_rate", "cut off", ".0%"),
    )

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
        super().__init__(
            policy,
            parts.engine,
            optimizer=optimizer,
            update=update,
            initial_policy=parts.initial_policy,
            seed=seed,
            world=world,
        )
        if parts.objective.needs_initial_policy and parts.initial_policy is None:
            raise ConfigError(
                "objective: kl_coef is above 0, so the loss needs Parts(initial_policy=...): a frozen copy of the "
                "policy as it is before training, for example another load() of its provider."
            )
        self.parts = parts
        self.sampling = sampling
        self.unlocked: set[str] = set()
        self.advised = False
        self.checks = StepChecks(parts.reward)

    # ------------------------------------------------------------------ one step

    def training_step(self, problems: list[Problem], batch_idx: int) -> None:
        """One step on this rank's problems."""
        del batch_idx
        with self.whole_models():
            rewarded = self.score(self.sample(problems))
        scored = self.compare(rewarded)
        self.advise(scored)
        correct = self.verify(scored)
        with self.changing_policy():
            update = self.learn(scored)
        self.unlocked |= {s.group.problem.id for s, verdicts in zip(scored, correct, strict=False) if any(verdicts)}
        tokens = sum(len(rollout) for s in scored for rollout in s.group.rollouts)
        self.report(
            {**self.describe(scored, correct), **update, **self.timing(tokens)}, self.documented(scored, correct)
        )

    def sample(self, problems: Sequence[Problem]) -> list[RolloutGroup]:
        """Rollouts for each problem; the engine is given prompts made from questions, nothing else."""
        prompts = [self.parts.prompts.build(problem.question, problem.domain) for problem in problems]
        sampling = self.sampling_of_step(len(problems))
        rollouts: list[list[Rollout]] = [[] for _ in prompts]
        with self.phases.run("sampling", len(prompts) * sampling.n) as on_progress:
            for index, rollout in self.engine.generate(prompts, sampling):
                rollouts[index].append(rollout)
                # A judge that can begins here, while the engine is still sampling.
                self.parts.reward.start(problems[index], rollout)
                on_progress(1)
        return [RolloutGroup(problem=p, rollouts=tuple(r)) for p, r in zip(problems, rollouts, strict=True)]

    def sampling_of_step(self, count: int) -> Sampling:
        """The run's sampling with this step's own seed, for this rank's `count` prompts of the step's.

        All ranks have the same seed, and of a step's prompts each has those after the ranks' before it.
        """
        seed = derive_seed(self.seed, "rollout", self.steps_done, 0)
        first = sum(self.world.gather(count, f"the prompts of {self.step}")[: self.world.rank])
        return replace(self.sampling, seed=seed, numbers=range(first, first + count))

    def score(self, groups: Sequence[RolloutGroup]) -> list[Rewarded]:
        """Rewards of each group."""
        who = f"reward {title_of(self.parts.reward)}"
        with self.phases.run("judging", unit="verdict") as on_progress, given_by(who):
            rewards = self.parts.reward.score(groups, on_progress)
        check_rewards(groups, rewards, who)
        return list(zip(groups, rewards, strict=True))

    def compare(self, rewarded: Sequence[Rewarded]) -> list[ScoredGroup]:
        """Advantages over the groups of all ranks, rank by rank: the same on every rank but for others' texts.

        Raises:
            NonFiniteError: on every rank, where one has a reward, an advantage or a log-prob that is not finite.
            JudgeError: on every rank, where too many judgements of all ranks failed.
            ContractError: on every rank, where the advantage gives something else than advantages of the rollouts.
        """
        groups, rewards = zip(*everyones(self.world, rewarded, f"the update of {self.step}"), strict=True)
        who = f"advantage {title_of(self.parts.advantage)}"
        check_rollouts(groups, rewards, self.step, f"reward {title_of(self.parts.reward)}")
        problems = [group.problem for group in groups]
        self.checks.check(problems, rewards)
        with given_by(who):
            advantages = self.parts.advantage.estimate(rewards, [problem.domain for problem in problems])
        check_estimates(rewards, advantages, who)
        scored = [
            ScoredGroup(group=group, rewards=reward, advantages=advantage)
            for group, reward, advantage in zip(groups, rewards, advantages, strict=True)
        ]
        check_advantages(scored, self.step, who)
        return scored

    def advise(self, scored: Sequence[ScoredGroup]) -> None:
        """Say once, in one of the first steps, what the reward would have changed."""
        if self.advised or not self.world.first or self.steps_done >= ADVISED_STEPS:
            return
        advice = advice_on(self.parts.reward, [s.group.problem for s in scored], [s.rewards for s in scored])
        if advice is not None:
            self.advised = True
            log.warning("%s: %s%s", self.step, advice, about_cut_off([s.group for s in scored]))

    def verify(self, scored: Sequence[ScoredGroup]) -> list[list[bool]]:
        """Which rollouts of each group have the right answer; of a group none where the verifier cannot know.

        Each rank verifies its own and all know the whole, so that any of them can write what a checkpoint keeps once.
        """
        verifier = self.parts.verifier
        if verifier is None:
            return []
        mine = own_groups(scored)
        known = [verifier.knows(s.group.problem) for s in mine]
        asked = [
            (s.group.problem, rollout.reply)
            for s, knows in zip(mine, known, strict=True)
            if knows
            for rollout in s.group.rollouts
        ]
        verdicts = iter(verifier.verdicts(*zip(*asked, strict=True)) if asked else ())
        own = [
            [next(verdicts) for _ in s.group.rollouts] if knows else [] for s, knows in zip(mine, known, strict=True)
        ]
        return [right for part in self.world.gather(own, f"the outcomes of {self.step}") for right in part]

    def learn(self, scored: Sequence[ScoredGroup]) -> dict[str, float]:
        """Update the policy on every group with a learning signal; returns the update's metrics."""
        computing = self.policy_update()
        updates, dropped = computing.plan(scored)
        self.last_no_update = None if updates else no_update(scored, dropped)
        return {**self.update_policy(computing, updates), "update/dropped_groups": float(dropped)}

    def policy_update(self) -> PolicyUpdate:
        """The objective's loss at the temperature that sampled."""
        return PolicyUpdate(
            self.language_model,
            self.parts.objective,
            self.update,
            temperature=self.temperature,
            world=self.world,
            device=self.device,
        )

    @property
    def temperature(self) -> float:
        """That of the rollouts."""
        return self.sampling.temperature

    @property
    def needs_initial_logprobs(self) -> bool:
        """For the loss or the logged KL."""
        return self.parts.objective.needs_initial_policy or self.update.log_kl

    # ------------------------------------------------------------------ what is logged

    def describe(self, scored: Sequence[ScoredGroup], correct: Sequence[Sequence[bool]]) -> dict[str, float]:
        """Reward, judge, rollout and, of the groups on which there are verdicts, outcome metrics of a step.

        Where the run has several domains the main ones stand there for each as well.
        """
        problems = [s.group.problem for s in scored]
        who = judged_as(self.parts.reward, problems)
        described = {
            **metrics.reward_metrics(scored),
            **metrics.judge_metrics(scored, who),
            **metrics.rollout_metrics(scored),
            **metrics.behaviour_metrics(self.world.sum(metrics.behaviour_counts(own_groups(scored)))),
        }
        if len(self.parts.domains) > 1:
            described |= metrics.domain_metrics(scored, correct, who, tolerance=self.update.signal_tolerance)
        if not any(correct):
            return described
        shares = metrics.outcome_metrics([problem.id for problem in problems], correct)
        return {**described, **shares, "outcome/unlocked_prompts": float(len(self.unlocked))}

    def documented(self, scored: Sequence[ScoredGroup], correct: Sequence[Sequence[bool]]) -> list[ScoredGroup]:
        """The groups with what is kept beside their rewards: the verdicts, where there are any, and who scored."""
        scorers = scorers_of(self.parts.reward, [s.group.problem for s in scored])
        verdicts = [tuple(own) or None for own in correct] or [None] * len(scored)
        return [
            replace(s, verdicts=own, scorer=scorer) for s, own, scorer in zip(scored, verdicts, scorers, strict=True)
        ]

    # ------------------------------------------------------------------ around the steps

    def on_train_start(self) -> None:
        """Also let the reward begin."""
        super().on_train_start()
        self.parts.reward.prepare()

    def policy_changed(self) -> None:
        """A judge that is the policy itself has changed too."""
        self.parts.reward.sync()

    def texts(self) -> dict[str, str]:
        """Also the reward's."""
        return {**super().texts(), **self.parts.reward.texts()}

    def rank_state(self) -> dict[str, Any]:
        """The judge's cache."""
        return {"reward": self.parts.reward.state_dict()}

    def load_rank_state(self, state: Mapping[str, Any]) -> None:
        """The inverse of `rank_state`."""
        self.parts.reward.load_state_dict(state["reward"])

    def shared_state(self) -> dict[str, Any]:
        """The problems solved at least once."""
        return {"unlocked": sorted(self.unlocked)}

    def load_shared_state(self, state: Mapping[str, Any]) -> None:
        """The inverse of `shared_state`."""
        self.unlocked = set(state["unlocked"])

    def close(self) -> None:
        """Reward first: its judge may use the engine."""
        try:
            self.parts.reward.close()
        finally:
            super().close()
