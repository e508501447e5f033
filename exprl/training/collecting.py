"""From problems to rollouts with rewards: a rank's share of a step, in which no other rank takes part."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

from exprl.checks.contracts import given_by
from exprl.component import title_of
from exprl.engines.base import Engine, Sampling, by_place, generated
from exprl.rewards.base import Reward
from exprl.rewards.checks import check_rewards
from exprl.seeding import derive_seed
from exprl.terminal.phases import Phases
from exprl.text.prompts import PromptBuilder
from exprl.training.dynamic_sampling import Lacking
from exprl.training.exchange import Rewarded
from exprl.types import Problem, Rollout, RolloutGroup


class Collector:
    """Samples rollouts and has them scored.

    Args:
        prompts: makes a question the policy's prompt.
        engine: samples.
        reward: scores, and begins while others are being sampled where its judge can.
        phases: told of both.
        lacking: which groups fresh prompts take the place of, where there are any.
    """

    def __init__(
        self, prompts: PromptBuilder, engine: Engine, reward: Reward, phases: Phases, lacking: Lacking
    ) -> None:
        self.prompts = prompts
        self.engine = engine
        self.reward = reward
        self.phases = phases
        self.lacking = lacking

    def timed_by(self, phases: Phases) -> Collector:
        """The same, but that it tells others of what it does."""
        own = copy.copy(self)
        own.phases = phases
        return own

    def collect(
        self, problems: Sequence[Problem], sampling: Sampling, fresh: Sequence[Sequence[Problem]] = ()
    ) -> list[Rewarded]:
        """A group of rollouts for each problem, or for what took its place, with rewards.

        Args:
            problems: this rank's of the step.
            sampling: how; of each round it has a seed of its own.
            fresh: for each problem those that take its place one after the other while its group is `lacking`
                something; the last group stays as it is.
        """
        rewarded = self.score(self.sample(problems, sampling))
        for number in range(max(map(len, fresh), default=0)):
            places = [place for place, others in enumerate(fresh) if number < len(others)]
            places = [place for place in places if self.lacking(rewarded[place])]
            if not places:
                break
            again = replace(
                sampling,
                seed=derive_seed(sampling.seed, "round", number + 1),
                numbers=[sampling.number(place) for place in places],
            )
            groups = self.score(self.sample([fresh[place][number] for place in places], again))
            for place, group in zip(places, groups, strict=True):
                rewarded[place] = group
        return rewarded

    def sample(self, problems: Sequence[Problem], sampling: Sampling) -> list[RolloutGroup]:
        """Rollouts for each problem; the engine is given prompts made from questions, nothing else."""
        prompts = [self.prompts.build(problem.question, problem.domain) for problem in problems]
        rollouts: list[list[Rollout]] = [[] for _ in prompts]
        with self.phases.run("sampling", len(prompts) * sampling.n) as on_progress:
            for index, rollout in generated(self.engine, prompts, sampling):
                rollouts[index].append(rollout)
                # A judge that can begins here, while the engine is still sampling.
                self.reward.start(problems[index], rollout)
                on_progress(1)
        with given_by(f"engine {title_of(self.engine)}"):
            return [RolloutGroup(problem=p, rollouts=by_place(r)) for p, r in zip(problems, rollouts, strict=True)]

    def score(self, groups: Sequence[RolloutGroup]) -> list[Rewarded]:
        """Rewards of each group."""
        who = f"reward {title_of(self.reward)}"
        with self.phases.run("judging", unit="verdict") as on_progress, given_by(who):
            rewards = self.reward.score(groups, on_progress)
        check_rewards(groups, rewards, who)
        return list(zip(groups, rewards, strict=True))
