"""RL on rollouts: sample, score, compare, learn. Everything else is delegated to registered components."""

from __future__ import annotations

import logging
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from exprl.advantages import Advantage
from exprl.checks.finite import check_sampled
from exprl.config.kinds import is_a
from exprl.engines.base import Engine, Sampling
from exprl.errors import ConfigError
from exprl.experiment import OptimizerConfig, UpdateConfig
from exprl.invariants import shown
from exprl.models.base import LanguageModel
from exprl.objectives import Objective
from exprl.rewards.base import Reward
from exprl.rewards.steps import StepChecks, advice_on, judged_as, scorers_of
from exprl.seeding import derive_seed
from exprl.text.prompts import PromptBuilder
from exprl.training import metrics
from exprl.training.advice import about_cut_off
from exprl.training.collecting import Collector
from exprl.training.comparing import compared
from exprl.training.dynamic_sampling import NoSignal, replacement_metrics, rounds_of
from exprl.training.exchange import Rewarded, everyones, own_groups
from exprl.training.lookahead_module import LookaheadModule
from exprl.training.no_update import no_update
from exprl.training.policy_module import Shown
from exprl.training.update import PolicyUpdate
from exprl.training.world import World
from exprl.types import Problem, ScoredGroup
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


class ExpRLModule(LookaheadModule):
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

    samples_dynamically: ClassVar[bool] = True
    """Whether `update.dynamic_sampling` means anything: groups are compared, and may be without a signal."""

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
        self.rounds = update.dynamic_sampling if self.samples_dynamically else 0
        lacking = NoSignal(advantage=parts.advantage, tolerance=update.signal_tolerance)
        self.collect_by(Collector(parts.prompts, parts.engine, parts.reward, self.phases, lacking))

    # ------------------------------------------------------------------ one step

    def training_step(self, problems: list[Problem], batch_idx: int) -> None:
        """One step on this rank's problems."""
        del batch_idx
        rewarded = self.batch_of_step(problems)
        scored = self.compare(rewarded)
        self.advise(scored)
        correct = self.verify(scored)
        rounds = self.rounds_of_step(scored)
        self.note_age(scored)
        with self.changing_policy():
            update = self.learn(scored, max(rounds, default=0))
        self.checks.count([s.group.problem for s in scored], [s.rewards for s in scored])
        self.unlocked |= {s.group.problem.id for s, verdicts in zip(scored, correct, strict=False) if any(verdicts)}
        tokens = sum(len(rollout) for s in scored for rollout in s.group.rollouts)
        described = {**self.describe(scored, correct), **(replacement_metrics(rounds) if rounds else {}), **self.age}
        self.report({**described, **update, **self.timing(tokens)}, self.documented(scored, correct))

    def collecting(self, step: int, problems: Sequence[Problem]) -> Callable[[Collector], list[Rewarded]]:
        """See `LookaheadModule`."""
        sampling = self.sampling_of_step(step, len(problems))
        fresh = self.fresh_problems(step, sampling)
        return lambda collector: collector.collect(problems, sampling, fresh)

    def sampling_of_step(self, step: int, count: int) -> Sampling:
        """The run's sampling with the seed of the step after `step` others, for this rank's `count` prompts of it.

        All ranks have the same seed, and of a step's prompts each has those after the ranks' before it.
        """
        seed = derive_seed(self.seed, "rollout", step, 0)
        first = sum(self.world.gather(count, f"the prompts of step {step + 1}")[: self.world.rank])
        return replace(self.sampling, seed=seed, numbers=range(first, first + count))

    def fresh_problems(self, step: int, sampling: Sampling) -> list[list[Problem]]:
        """What takes the place of a step's problems, see `Collector.collect`; `sampling` has this rank's places."""
        if not self.rounds:
            return []
        fresh = self.data_for("update.dynamic_sampling").step_replacements(step, self.rounds)
        return [fresh[place] for place in sampling.numbers or ()]

    def rounds_of_step(self, scored: Sequence[ScoredGroup]) -> list[int]:
        """How often each place of the step under way was given a fresh problem; empty: none could be."""
        if not self.rounds:
            return []
        data = self.data_for("update.dynamic_sampling")
        fresh = data.step_replacements(self.steps_done, self.rounds)
        own = [problem.id for problem in data.step_problems(self.steps_done)]
        kept = [s.group.problem.id for s in scored]
        return rounds_of(kept, own, [[problem.id for problem in others] for others in fresh])

    def compare(self, rewarded: Sequence[Rewarded]) -> list[ScoredGroup]:
        """Advantages over the groups of all ranks, rank by rank: the same on every rank but for others' texts.

        Raises:
            NonFiniteError: on every rank, where one has a log-prob that is not finite.
            JudgeError: on every rank, where too many judgements of all ranks failed.
            ContractError: on every rank, where the advantage gives something else than advantages of the rollouts.
        """
        everyone = everyones(self.world, rewarded, f"the update of {self.step}")
        self.check_rewarded(everyone, self.checks)
        return compared(self.parts.advantage, everyone)

    def check_batch(self, batch: Sequence[Rewarded]) -> None:
        """See `LookaheadModule`; the step itself counts it among the last ones (`StepChecks`)."""
        self.check_rewarded(batch, StepChecks(self.parts.reward))

    def check_rewarded(self, everyone: Sequence[Rewarded], checks: StepChecks) -> None:
        """Raise where the rewards of all ranks stop the step under way."""
        groups, rewards = zip(*everyone, strict=True)
        check_sampled(groups, self.step)
        checks.check([group.problem for group in groups], rewards)

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

    def learn(self, scored: Sequence[ScoredGroup], rounds: int = 0) -> dict[str, float]:
        """Update the policy on every group with a learning signal; returns the update's metrics.

        `rounds` of fresh prompts were there before, which a step without an update tells.
        """
        computing = self.policy_update()
        updates, dropped = computing.plan(scored)
        self.last_no_update = None if updates else no_update(scored, dropped, rounds)
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
            length_limit=self.sampling.max_new_tokens,
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
            **self.world.sum({f"rollout/{name}": count for name, count in self.engine.counts().items()}),
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

    def setup(self, stage: str) -> None:
        """Also see that fresh problems can be had, if any are wanted."""
        super().setup(stage)
        if self.rounds:
            self.data_for("update.dynamic_sampling")

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
        return {**super().rank_state(), "reward": self.reward_state}

    def load_rank_state(self, state: Mapping[str, Any]) -> None:
        """The inverse of `rank_state`."""
        self.parts.reward.load_state_dict(state["reward"])

    def shared_state(self) -> dict[str, Any]:
        """The problems solved at least once, and what the checks remember of the last steps."""
        return {"unlocked": sorted(self.unlocked), "checks": self.checks.state_dict()}

    def load_shared_state(self, state: Mapping[str, Any]) -> None:
        """The inverse of `shared_state`."""
        self.unlocked = set(state["unlocked"])
        self.checks.load_state_dict(state["checks"])

    def close(self) -> None:
        """Reward first: its judge may use the engine."""
        self.end_beside()
        try:
            self.parts.reward.close()
        finally:
            super().close()
