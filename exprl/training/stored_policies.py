"""The policies that a run has stored, and the gradients that its rollouts give them."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from typing import Any, cast

import torch
from torch import nn

from exprl.build import Build
from exprl.component import Choice
from exprl.errors import DataError
from exprl.experiment import Experiment
from exprl.resources import Resources
from exprl.rollouts.stored import StoredGroup
from exprl.runs.checkpoints import load_policy
from exprl.runs.versions import Version
from exprl.training.gradients import Part, StepGradient, trained_parameters
from exprl.training.machine import check_kernels, device_of
from exprl.training.parallel import place
from exprl.types import Problem, RolloutGroup, Scaffold, ScoredGroup


class StoredPolicies:
    """A run's policy with the weights of one checkpoint after another.

    Args:
        experiment: the run's.
        part: what of a gradient is wanted.
        objectives: those that will be asked for beside the run's own; any may need the frozen initial policy.

    Raises:
        ConfigError: the policy has no such part, or the kernels cannot run here.
    """

    def __init__(self, experiment: Experiment, part: Part, objectives: Sequence[Choice] = ()) -> None:
        self.experiment = experiment
        self._build = Build(experiment, training=True)
        self._device = device_of(experiment.trainer)
        self._loaded = 0
        policy = self._build.policy
        check_kernels(experiment.update, self._device, policy.compute_dtype or policy.model.dtype)
        if any(choice.build(Resources()).needs_initial_policy for choice in (experiment.objective, *objectives)):
            place(self._build.initial_policy.model, self._device)  # made now, before the weights are others
        place(policy.model, self._device)
        self.part = part.settled(policy.model)
        """What is compared, `auto` decided."""
        self.parameters = trained_parameters(policy.model)
        """How many numbers train."""

    def load(self, version: Version) -> None:
        """Take the weights of `version`; those of the initial policy are there at first, and gone afterwards.

        Raises:
            ModelError: the checkpoint cannot be read.
            ValueError: the initial policy is asked for after another.
        """
        if version.steps == self._loaded:
            return
        if version.checkpoint is None:
            raise ValueError("the initial policy must be asked for first, but others were loaded before")
        load_policy(self._build.policy.model, version.checkpoint, checked=True)
        self._loaded = version.steps

    def gradient(self, scored: Sequence[ScoredGroup], objective: Choice, where: str) -> torch.Tensor:
        """See `StepGradient.of`; raises `DataError` where a token is none of the policy's as well."""
        check_ids(scored, tokens_of(self._build.policy.model), where)
        return StepGradient(
            policy=self._build.policy,
            initial_policy=self._build.kept_initial_policy,
            options=self.experiment.update,
            temperature=self._build.sampling.temperature,
            length_limit=self._build.sampling.max_new_tokens,
            precision=self.experiment.trainer.precision,
            part=self.part,
            device=self._device,
            seed=self.experiment.seed,
        ).of(scored, objective.build(Resources()), where)


def tokens_of(model: nn.Module) -> int:
    """How many tokens a transformers model knows, with those that only fill its table up."""
    return int(cast(Any, model).get_input_embeddings().weight.shape[0])


def check_ids(scored: Sequence[ScoredGroup], known: int, where: str) -> None:
    """Raise `DataError` for a token, of a prompt or a rollout, that is none of the `known` ones of a model."""
    for group in (one.group for one in scored):
        for number, rollout in enumerate(group.rollouts, start=1):
            largest = max((*rollout.prompt.token_ids, *rollout.token_ids), default=0)
            if largest >= known:
                raise DataError(
                    f"{where}: problem {group.problem.id!r}, rollout {number}: token {largest} is not one of this "
                    f"model's {known}: was this sampled with another tokenizer?"
                )


def as_scored(groups: Sequence[StoredGroup]) -> list[ScoredGroup]:
    """A step as training has it, with problems that have no scaffold: nothing of one is near a policy.

    Raises:
        DataError: the rollouts have no rewards or advantages, or nobody knows their log-probs.
    """
    scored = []
    for group in groups:
        if group.rewards is None or group.advantages is None:
            raise DataError(
                f"problem {group.problem_id!r}: its rollouts have no rewards and advantages to compare with."
            )
        if any(isnan(one) for rollout in group.rollouts for one in rollout.sampler_logprobs[:1]):
            raise DataError(
                f"problem {group.problem_id!r}: nobody knows the log-probs that its rollouts were sampled with, and "
                "the loss needs them. Give a run's own rollouts."
            )
        problem = Problem(question=group.question, scaffold=Scaffold(), domain=group.domain)
        own = RolloutGroup(problem=problem, rollouts=group.rollouts)
        scored.append(ScoredGroup(group=own, rewards=group.rewards, advantages=group.advantages))
    return scored
