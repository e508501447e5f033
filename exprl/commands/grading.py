"""Stored rollouts graded with an experiment's reward, in parts that survive a kill, into a folder of their own."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

from exprl.advantages import Advantage
from exprl.build import Build
from exprl.checks.contracts import given_by
from exprl.commands.claims import CONFIG, OUTPUT, Wording, check_all, claim
from exprl.component import Choice, title_of
from exprl.config.fields import choices_in
from exprl.errors import DataError, JudgeError
from exprl.experiment import Experiment
from exprl.files.disk import check_can_write
from exprl.files.lock import LOCK, locked
from exprl.resources import Resources
from exprl.rewards.base import Reward
from exprl.rewards.checks import check_rewards
from exprl.rewards.steps import StepChecks, scorers_of
from exprl.rollouts.champ import champ_rollouts
from exprl.rollouts.format import Asked, encode
from exprl.rollouts.importing import import_rollouts
from exprl.rollouts.store import RolloutStore, file_name, load_rollouts
from exprl.rollouts.stored import StoredGroup, is_of
from exprl.terminal.progress import OnProgress
from exprl.types import AnyReward, Problem, RolloutGroup

CHAMP = "champ"
"""As SOURCE: what language models wrote for CHAMP's problems."""
AT_ONCE = 16
"""Rollouts graded in one call, or the fewest groups that have as many; what is done of a step survives a kill in such
parts. With a judgement a segment they fill a batch of a judge's model."""


# ------------------------------------------------------------------ what is graded


class Known:
    """The problems of an experiment's data, training and held-out ones, by what rollouts know of them."""

    def __init__(self, build: Build) -> None:
        held_out = build.evaluation_problems if build.experiment.evaluation.source is not None else []
        training = build.train_problems if build.experiment.data.train is not None else []
        self.all: list[Problem] = [*training, *held_out]
        self.given = training if build.experiment.data.train is not None else held_out
        """Those that a judge is given, whichever of them were attempted."""
        self.by_id: dict[str, list[Problem]] = {}
        for problem in self.all:
            self.by_id.setdefault(problem.id, []).append(problem)

    def of(self, asked: Asked | StoredGroup) -> Problem:
        """The problem, scaffold included, that was attempted; raises `DataError`, naming it."""
        named = self.by_id.get(asked.problem_id, [])
        same = next((problem for problem in named if is_of(asked.digest, problem)), None)
        if same is None:
            what = (
                "is neither in data.train nor in evaluation.source"
                if not named
                else "has another question, domain, reference or answer there than when the rollouts were made"
            )
            raise DataError(
                f"problem {asked.problem_id!r} {what}, so nothing can be graded by its reference. Give the data set as "
                "it was then, with the same seed and leak options."
            )
        return same

    def all_of(self, asked: Iterable[Asked]) -> list[Problem]:
        """Those that were attempted, each once."""
        return list({id(problem): problem for problem in map(self.of, asked)}.values())

    def check(self, groups: Sequence[Asked], step: int) -> None:
        """Raise `DataError` where one of a step's problems is missing."""
        for one in groups:
            try:
                self.of(one)
            except DataError as error:
                raise DataError(f"step {step}: {error}") from None


@dataclass(frozen=True, kw_only=True)
class Material:
    """What is graded.

    Attributes:
        name: what a folder that was begun with it says of it.
        problems: by whose references.
        rollouts: by step.
        steps: which of these are graded; None: all.
    """

    name: str
    problems: Known
    rollouts: Mapping[int, tuple[StoredGroup, ...]]
    steps: Collection[int] | None = None

    @cached_property
    def asked(self) -> dict[int, list[Asked]]:
        """Which problems each step has; raises `DataError` for one that is not there, or not what it was."""
        steps = [step for step in self.rollouts if self.steps is None or step in self.steps]
        asked = {step: asked_in(self.rollouts, step) for step in steps}
        for step, of_step in asked.items():
            self.problems.check(of_step, step)
        return asked

    def left(self, done: RolloutStore) -> list[int]:
        """The steps that are not graded yet."""
        return [step for step in self.asked if step not in done]

    def count(self, steps: Iterable[int]) -> int:
        """The rollouts of these steps."""
        return sum(one.rollouts for step in steps for one in self.asked[step])


def read_material(source: str, build: Build, steps: Collection[int] | None = None) -> Material:
    """The rollouts of a source with the problems of an experiment's data; raises `DataError` as `judge_rollouts`."""
    problems = Known(build)
    rollouts = read_source(source, problems, build.experiment)
    material = Material(name=name_of(source), problems=problems, rollouts=rollouts, steps=steps)
    _ = material.asked  # a problem that is missing is told before anything is begun
    check_all(source, build.experiment, problems.given)
    return material


def name_of(source: str) -> str:
    """A source as a folder that was begun with it calls it, from wherever the command is started."""
    return source if source == CHAMP else str(Path(source).resolve())


def read_source(source: str, problems: Known, experiment: Experiment) -> Mapping[int, tuple[StoredGroup, ...]]:
    """The rollouts by step, texts with the tokens of `experiment`'s model; raises `DataError` where there are none."""
    path = Path(source)
    if source != CHAMP and not path.is_file():
        return load_rollouts(path)
    tokenizer = experiment.model.build(Resources()).load_tokenizer()
    return (
        champ_rollouts(problems.all, tokenizer) if source == CHAMP else import_rollouts(path, problems.all, tokenizer)
    )


def asked_in(rollouts: Mapping[int, tuple[StoredGroup, ...]], step: int) -> list[Asked]:
    """Which problems a step has."""
    if isinstance(rollouts, RolloutStore):
        return rollouts.asked(step)
    return [Asked.of(group) for group in rollouts[step]]


# ------------------------------------------------------------------ grading


class Grader:
    """An experiment's reward over any rollouts, built when there is something to grade; for a `with` block."""

    def __init__(self, build: Build) -> None:
        self._build = build
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @cached_property
    def _reward(self) -> Reward:
        return built_reward(self._build, self._stack)

    def grade(
        self, material: Material, output: Path, on_progress: OnProgress, wording: Wording = OUTPUT
    ) -> RolloutStore:
        """Grade what of some rollouts is not graded yet, into a folder of their own.

        Raises:
            DataError: the folder holds something else.
            JudgeError: too many judgements of a step failed.
        """
        check_can_write(output / CONFIG, wording.option)
        experiment = self._build.experiment
        with locked(output / LOCK, f"{wording.option}: {output}"):
            claim(output, experiment, material.name, problems=material.problems.given, wording=wording)
            done, unfinished = RolloutStore(output), RolloutStore(output / "unfinished")
            left = material.left(done)
            if left:
                attempted = material.problems.all_of(one for step in left for one in material.asked[step])
                with self._build.naming("data.train"):
                    self._reward.check(attempted)
                checks = StepChecks(self._reward)
                advantage: Advantage = experiment.advantage.build(Resources())
            for step in left:
                groups = material.rollouts[step]
                scored = in_parts(step, groups, material.problems, self._reward, unfinished, on_progress)
                check_judged(scored, material.problems, checks, unfinished)
                done.write(step, with_advantages(scored, groups, advantage))
                shutil.rmtree(unfinished.folder, ignore_errors=True)
                self._reward.sync()
        return done


def built_reward(build: Build, stack: ExitStack) -> Reward:
    """The reward, ready; closed with `stack`. The policy is loaded only for a reward that may ask it."""
    experiment = build.experiment
    if any(asks_policy(choice) for _, choice in choices_in(experiment.reward, "reward")):
        resources = build.resources
        if build.engine_is_built:
            stack.callback(build.engine.close)
    else:
        problems = build.train_problems if experiment.data.train is not None else build.evaluation_problems
        resources = Resources(problems=problems, verifier=build.verifier, seed=experiment.seed)
    reward: Reward = experiment.reward.build(resources)
    stack.callback(reward.close)
    reward.prepare()
    return reward


def asks_policy(choice: Choice) -> bool:
    """Whether a component's options name the policy's weights, or it is somebody's own, which may ask for anything."""
    return getattr(choice.config, "weights", None) is not None or not choice.cls.__module__.startswith("exprl.")


def in_parts(
    step: int,
    groups: Sequence[StoredGroup],
    problems: Known,
    reward: Reward,
    unfinished: RolloutStore,
    on_progress: OnProgress,
) -> list[StoredGroup]:
    """The groups of a step with their rewards; a part that was graded before a kill is read back."""
    parts = list(divided(groups))
    for number, part in enumerate(parts):
        name = file_name(step, number, len(parts))
        if not (unfinished.folder / name).exists():
            scorers = scorers_of(reward, [problems.of(group) for group in part])
            given = score(part, problems, reward)
            graded = [own.scored(rewards, who) for own, rewards, who in zip(part, given, scorers, strict=True)]
            unfinished.put(name, encode(graded, step=step))
        on_progress(sum(len(group.rollouts) for group in part))
    return list(unfinished[step]) if parts else []


def check_judged(scored: Sequence[StoredGroup], problems: Known, checks: StepChecks, unfinished: RolloutStore) -> None:
    """Raise `JudgeError` where too many judgements of a step failed; it is then asked anew the next time."""
    if not scored:  # a step whose file has no rollouts
        return
    step = [problems.of(group) for group in scored], [group.rewards or () for group in scored]
    try:
        checks.check(*step)
    except JudgeError:
        shutil.rmtree(unfinished.folder, ignore_errors=True)
        raise
    checks.count(*step)


def divided(groups: Sequence[StoredGroup]) -> Iterator[list[StoredGroup]]:
    """Neighbours, of at least `AT_ONCE` rollouts together but for the last ones."""
    part: list[StoredGroup] = []
    for group in groups:
        part.append(group)
        if sum(len(own.rollouts) for own in part) >= AT_ONCE:
            yield part
            part = []
    if part:
        yield part


def score(groups: Sequence[StoredGroup], problems: Known, reward: Reward) -> list[tuple[AnyReward, ...]]:
    """The rewards of some groups; raises `RewardError` where they are none."""
    asked: list[RolloutGroup] = [group.with_problem(problems.of(group)) for group in groups]
    who = f"reward {title_of(reward)}"
    with given_by(who):
        rewards = reward.score(asked)
    check_rewards(asked, rewards, who)
    return rewards


def with_advantages(
    scored: Sequence[StoredGroup], before: Sequence[StoredGroup], advantage: Advantage
) -> list[StoredGroup]:
    """A step's groups with the advantages that their rewards give; without, where the rollouts had none."""
    if not before or any(group.advantages is None for group in before):
        return list(scored)
    rewards = [group.rewards or () for group in scored]
    with given_by(f"advantage {title_of(advantage)}"):
        estimated = advantage.estimate(rewards, [group.domain for group in scored])
    return [replace(group, advantages=tuple(new)) for group, new in zip(scored, estimated, strict=True)]
