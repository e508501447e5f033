"""`exprl judge`: stored rollouts graded with a reward, judge and slicer of one's choice, into the same format."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from exprl import config as configuration
from exprl.advantages import Advantage
from exprl.build import Build
from exprl.checks.contracts import given_by
from exprl.component import Choice, title_of
from exprl.config.fields import choices_in
from exprl.errors import DataError, JudgeError
from exprl.experiment import Experiment
from exprl.files.disk import read_json, write_json, write_text
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
from exprl.runs.directory import differences, saved_config
from exprl.runs.preflight import check_judging
from exprl.terminal.console import Console, line
from exprl.terminal.phases import Phases
from exprl.terminal.progress import OnProgress
from exprl.types import AnyReward, Problem, RolloutGroup

CHAMP = "champ"
"""As SOURCE: what language models wrote for CHAMP's problems."""
AT_ONCE = 16
"""Rollouts graded in one call, or the fewest groups that have as many; what is done of a step survives a kill in such
parts. With a judgement a segment they fill a batch of a judge's model."""


def judge_rollouts(experiment: Experiment, source: str, output: Path, *, console: Console) -> RolloutStore:
    """Grade the rollouts of `source` with `experiment`'s reward, step by step, and write them to `output`.

    Advantages are made anew where the rollouts had some. Started again, it goes on after what is done.

    Args:
        experiment: its reward and advantage; its data, which must hold the problems that were attempted.
        source: a run or another folder of rollouts, a file of responses in JSON lines, or `champ`.
        output: the folder, made or gone on with.
        console: where it is told what came out.

    Raises:
        DataError: a problem of the rollouts is not in the data, or is not what it was; it is named.
        ExprlError: any of its children, before anything is graded.
    """
    check_judging(experiment)
    build = Build(experiment)
    problems = Known(build)
    rollouts = read_source(source, problems, experiment)
    asked = {step: asked_in(rollouts, step) for step in rollouts}
    for step, of_step in asked.items():
        problems.check(of_step, step)
    output.mkdir(parents=True, exist_ok=True)
    with locked(output / LOCK, f"--output: {output}"), ExitStack() as stack:
        claim(output, experiment, source)
        done, unfinished = RolloutStore(output), RolloutStore(output / "unfinished")
        left = [step for step in rollouts if step not in done]
        total = sum(one.rollouts for of_step in asked.values() for one in of_step)
        console.say(f"{total} rollouts in {len(asked)} steps, {len(asked) - len(left)} steps done before")
        if left:
            reward = built_reward(build, stack)
            reward.check(problems.all_of(one for step in left for one in asked[step]))
            checks = StepChecks(reward)
            advantage: Advantage = experiment.advantage.build(Resources())
            with Phases().run("judging", sum(one.rollouts for step in left for one in asked[step])) as on_progress:
                for step in left:
                    groups = rollouts[step]
                    scored = in_parts(step, groups, problems, reward, unfinished, on_progress)
                    check_judged(scored, problems, checks, unfinished)
                    done.write(step, with_advantages(scored, groups, advantage))
                    shutil.rmtree(unfinished.folder, ignore_errors=True)
                    reward.sync()
        tell(rollouts, done, console)
    return done


# ------------------------------------------------------------------ what is graded


class Known:
    """The problems of an experiment's data, training and held-out ones, by what rollouts know of them."""

    def __init__(self, build: Build) -> None:
        held_out = build.evaluation_problems if build.experiment.evaluation.source is not None else []
        training = build.train_problems if build.experiment.data.train is not None else []
        self.all: list[Problem] = [*training, *held_out]
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
                "it was then."
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
    return [Asked(problem_id=g.problem_id, digest=g.digest, rollouts=len(g.rollouts)) for g in rollouts[step]]


# ------------------------------------------------------------------ where it goes


def claim(output: Path, experiment: Experiment, source: str) -> None:
    """Begin in a folder, or go on there with the same source and experiment.

    Raises:
        DataError: it holds something else.
    """
    config, about = output / "config.yaml", output / "source.json"
    text = configuration.to_yaml(experiment)
    if not config.is_file():
        if any(path.name != LOCK for path in output.iterdir()):
            raise DataError(f"--output: {output} already holds something. Give a new folder; nothing is overwritten.")
        write_json(about, {"source": source if source == CHAMP else str(Path(source).resolve())})
        write_text(config, text)  # last: with it, the folder can be gone on with
        return
    before = read_json(about, "Choose another --output.")["source"]
    now = source if source == CHAMP else str(Path(source).resolve())
    found = differences(saved_config(config), text, configuration.free_keys(experiment))
    if before != now:
        found.insert(0, f"SOURCE: {before} -> {now}")
    if found:
        raise DataError(
            f"--output: {output} was begun with another source or experiment ({'; '.join(found)}). Choose another."
        )


# ------------------------------------------------------------------ grading


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
    return list(unfinished[step])


def check_judged(scored: Sequence[StoredGroup], problems: Known, checks: StepChecks, unfinished: RolloutStore) -> None:
    """Raise `JudgeError` where too many judgements of a step failed; it is then asked anew the next time."""
    try:
        checks.check([problems.of(group) for group in scored], [group.rewards or () for group in scored])
    except JudgeError:
        shutil.rmtree(unfinished.folder, ignore_errors=True)
        raise


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
    if any(group.advantages is None for group in before):
        return list(scored)
    rewards = [group.rewards or () for group in scored]
    with given_by(f"advantage {title_of(advantage)}"):
        estimated = advantage.estimate(rewards, [group.domain for group in scored])
    return [replace(group, advantages=tuple(new)) for group, new in zip(scored, estimated, strict=True)]


# ------------------------------------------------------------------ what is told


def tell(before: Mapping[int, tuple[StoredGroup, ...]], after: RolloutStore, console: Console) -> None:
    """How many judgements failed, and how many rollouts have the rewards that they had before, if any."""
    counts = {"rollouts": 0, "judgements": 0, "failed": 0, "had": 0, "same": 0}
    for step in before:
        for old, new in zip(before[step], after[step], strict=True):
            rewards: Sequence[Any] = new.rewards or ()
            judgements = [judgement for reward in rewards for judgement in reward.judgements]
            counts["rollouts"] += len(rewards)
            counts["judgements"] += len(judgements)
            counts["failed"] += sum(judgement.status != "ok" for judgement in judgements)
            counts["had"] += len(old.rewards or ())
            counts["same"] += sum(map(same_values, old.rewards or (), rewards))
    console.say(
        f"{counts['rollouts']} rollouts graded, {counts['failed']} of {counts['judgements']} judgements failed: "
        f"{line(str(after.folder))}"
    )
    if counts["had"]:
        console.say(f"{counts['same']} of {counts['had']} rollouts have the rewards that they had before")


def same_values(one: AnyReward, other: AnyReward) -> bool:
    """Whether two rewards of a rollout are the same, whatever the judges said."""
    return all(getattr(one, name, None) == getattr(other, name, None) for name in ("value", "values", "segments"))
