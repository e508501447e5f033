"""The methods of training by the names that YAML uses.

Each imports its own code only when it is chosen: a run with `rl` never loads what reads references for the policy.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from exprl.component import Component, option
from exprl.errors import ConfigError, DataError
from exprl.registry import METHODS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exprl.build import Build
    from exprl.resources import Resources
    from exprl.training.policy_module import PolicyModule
    from exprl.training.world import World
    from exprl.types import Problem


log = logging.getLogger(__name__)


class Method(Component):
    """What one training step does. Options that a method ignores may stand in the YAML: arms share their base."""

    registered_family: ClassVar[str] = "method"

    samples: ClassVar[bool] = True
    """Whether it trains on the policy's own rollouts."""

    scores: ClassVar[bool] = True
    """Whether `reward` and `advantage` take part."""

    reads_references: ClassVar[bool] = False
    """Whether it reads reference solutions itself, apart from a reward's judge."""

    teacher: ClassVar[bool] = False
    """Whether the frozen initial policy is asked with a reference before it, so that it should be able to read one."""

    @abstractmethod
    def prepare(self, build: Build, world: World) -> PolicyModule:
        """Check what can be checked before any work, raising an `ExprlError`, and make the module that trains."""


@METHODS.register("rl")
class RL(Method):
    """Policy gradient on rewards of the policy's own rollouts: Stage I, Stage II and the sparse baseline."""

    def prepare(self, build: Build, world: World) -> PolicyModule:
        """The run's reward, advantage and objective."""
        from exprl.advantages import check_comparison
        from exprl.granularity import granularities_of
        from exprl.training.advice import about_advantage, about_updates
        from exprl.training.module import ExpRLModule, Parts

        experiment, problems = build.experiment, build.train_problems
        tell(world, about_advantage(experiment))
        tell(world, about_updates(experiment))
        tell_of_dynamic_sampling(build, world)
        advantage = experiment.advantage.build(build.resources)
        for granularity in sorted(set(granularities_of(experiment.reward).values())):
            check_comparison(advantage, granularity, prompts=experiment.data.prompts_per_step, samples=build.sampling.n)
        reward = experiment.reward.build(build.resources)
        reward.check(problems)
        if world.first:
            build.tell_unreadable(problems, "data.train")
        objective = experiment.objective.build(build.resources)
        build.check_lengths(problems, build.sampling.max_new_tokens)
        if objective.needs_initial_policy or experiment.update.log_kl:
            build.initial_policy  # noqa: B018 - made now, before the policy changes
        parts = Parts(
            prompts=build.prompts,
            engine=build.engine,
            reward=reward,
            advantage=advantage,
            objective=objective,
            verifier=build.verifier,
            initial_policy=build.kept_initial_policy,
            domains=frozenset(problem.domain for problem in problems),
        )
        return ExpRLModule(
            build.policy,
            parts,
            build.sampling,
            optimizer=experiment.optimizer,
            update=experiment.update,
            seed=experiment.seed,
            world=world,
        )


@METHODS.register("sft")
class SFT(Method):
    """Supervised training on the reference solutions, no rollouts; `reward`, `advantage`, `objective` are ignored."""

    samples: ClassVar[bool] = False
    scores: ClassVar[bool] = False
    reads_references: ClassVar[bool] = True

    @classmethod
    def check_data(cls, config: Any, problems: Sequence[Problem], resources: Resources) -> None:
        """Every problem needs a reference."""
        del config, resources
        check_references(problems, cls.registered_name)

    def prepare(self, build: Build, world: World) -> PolicyModule:
        """Every problem's reference must fit."""
        from exprl.training.sft import SFTModule, demonstration

        tell_of_dynamic_sampling(build, world)
        for problem in build.train_problems:
            demonstration(problem, build.prompts, build.policy)
        return SFTModule(
            build.policy,
            build.engine,
            build.prompts,
            optimizer=build.experiment.optimizer,
            update=build.experiment.update,
            seed=build.experiment.seed,
            world=world,
        )


@METHODS.register("self_distillation")
class SelfDistillation(Method):
    """On its own rollouts the policy follows its frozen initial self, which also reads the reference.

    `reward` and `advantage` are ignored: the loss is KL(policy ‖ teacher) at every sampled token.
    """

    scores: ClassVar[bool] = False
    reads_references: ClassVar[bool] = True
    teacher: ClassVar[bool] = True

    estimator: Literal["sampled", "exact"] = option(
        default="exact",
        help="sampled: policy gradient by `objective` with advantages log π_teacher - log π of the sampled tokens (the "
        "paper); exact: KL over the whole vocabulary, differentiated; `objective` is ignored",
    )
    template: str | None = option(
        default=None,
        help="the teacher's user message: {task} is the policy's own, {reference} the solution; null: the one that the "
        "model was trained to read, else the one of exprl/judges/prompts/teacher.txt",
    )

    @classmethod
    def check_options(cls, config: Any) -> None:
        """A template must have both places."""
        slots = [] if config.template is None else [s for s in ("{task}", "{reference}") if s not in config.template]
        if slots:
            raise ConfigError(f"template: must have the place {' and '.join(slots)}, but got {config.template!r}.")

    @classmethod
    def check_data(cls, config: Any, problems: Sequence[Problem], resources: Resources) -> None:
        """Every problem needs a reference and an answer."""
        del config
        check_references(problems, cls.registered_name)
        resources.need_verifier(f"method {cls.registered_name!r}").check(problems)

    def prepare(self, build: Build, world: World) -> PolicyModule:
        """The teacher's prompt must leave room for a rollout."""
        from exprl.rewards import SparseReward
        from exprl.training import self_distillation as distillation
        from exprl.training.advice import about_updates
        from exprl.training.module import Parts
        from exprl.training.teacher import TeacherPrompts

        experiment, problems, limit = build.experiment, build.train_problems, build.sampling.max_new_tokens
        reward = SparseReward(clip_length=False, verifier=build.verifier)  # for the log alone
        if world.first:
            build.tell_unreadable(problems, "data.train")
        tell_of_dynamic_sampling(build, world)
        if self.estimator == "sampled":
            tell(world, about_updates(experiment))
        build.check_lengths(problems, limit)
        template = self.template or build.policy.teacher_template
        prompts = TeacherPrompts(build.policy.tokenizer, build.prompting, template)
        for problem in problems:
            distillation.check_room(problem, len(prompts.build(problem)), limit, build.policy)
        parts = Parts(
            prompts=build.prompts,
            engine=build.engine,
            reward=reward,
            advantage=distillation.NoAdvantage(),
            objective=experiment.objective.build(build.resources),
            verifier=build.verifier,
            initial_policy=build.initial_policy,
            domains=frozenset(problem.domain for problem in problems),
        )
        return distillation.DistillationModule(
            build.policy,
            parts,
            build.sampling,
            estimator=self.estimator,
            prompt=prompts.build,
            template=prompts.template,
            optimizer=experiment.optimizer,
            update=experiment.update,
            seed=experiment.seed,
            world=world,
        )


def tell(world: World, advice: str | None) -> None:
    """Warn, once for all ranks."""
    if advice is not None and world.first:
        log.warning("%s", advice)


def tell_of_dynamic_sampling(build: Build, world: World) -> None:
    """Warn where `update.dynamic_sampling` is set and does nothing."""
    from exprl.training.advice import about_dynamic_sampling

    tell(world, about_dynamic_sampling(build.experiment, len(build.train_problems)))


def check_references(problems: Sequence[Problem], method: str) -> None:
    """Raise `DataError` naming the first problem without a reference solution."""
    for problem in problems:
        if problem.scaffold.reference is None:
            raise DataError(
                f"data.train: problem {problem.id!r} has no reference solution, but method.name={method} needs one. "
                "Give the source its column (data.train.columns.reference), drop the row, or choose method.name=rl."
            )
