"""`exprl leaks`: how much of the facts planted in references the policies of runs have learnt."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path

from exprl import config as configuration
from exprl.build import Build
from exprl.commands.grading import built_reward
from exprl.data.canaries import Canary
from exprl.data.fingerprint import fingerprint, first_difference
from exprl.data.order import mixed_indices
from exprl.errors import ConfigError, DataError
from exprl.experiment import Experiment
from exprl.files.disk import check_can_write, write_json, write_text
from exprl.files.lock import LOCK, locked
from exprl.leaks.channel import Channel, channel_of
from exprl.leaks.measured import POLICIES, Grades, Log, Measured, Policy
from exprl.leaks.plot import write_plot
from exprl.leaks.regraded import Regraded, regraded
from exprl.leaks.report import Facts, Row, markdown, rows_of, table_of, told_of
from exprl.leaks.values import CONTEXTS, logprobs_of_values
from exprl.rollouts.store import RolloutStore
from exprl.rollouts.stored import StoredGroup
from exprl.runs.checkpoints import load_policy, whole_checkpoint
from exprl.runs.contents import problems_in
from exprl.runs.digests import digests
from exprl.runs.directory import RunDirectory, differences, step_of
from exprl.terminal.console import Console, line
from exprl.terminal.phases import Phases
from exprl.terminal.progress import OnProgress
from exprl.training.machine import device_of


@dataclass(frozen=True)
class Audited:
    """A run whose facts are looked for: its experiment, and the checkpoint whose policy is asked."""

    experiment: Experiment
    directory: RunDirectory
    checkpoint: Path

    @property
    def name(self) -> str:
        """Where it lies."""
        return str(self.directory.path)

    @property
    def steps(self) -> int:
        """Done at the checkpoint."""
        return step_of(self.checkpoint)

    @cached_property
    def build(self) -> Build:
        """Its data."""
        return Build(self.experiment)

    @cached_property
    def graded_by(self) -> Mapping[str, str]:
        """By each training problem's id that of the one whose reference was read for it: its own, or a wrong one."""
        method, reward, problems = self.experiment.method, self.experiment.reward, self.build.train_problems
        read = problems
        if method.cls.scores:
            read = reward.cls.graded_by(reward.config, problems, self.experiment.seed)
        return {problem.id: source.id for problem, source in zip(problems, read, strict=True)}

    def alike(self, other: Audited) -> bool:
        """Whether two runs of as many steps differ in nothing but their seed and what may change on a resume."""
        free = {*configuration.free_keys(self.experiment), "seed"}
        first, second = (configuration.to_yaml(run.experiment) for run in (self, other))
        return self.steps == other.steps and not differences(first, second, free)

    @cached_property
    def visits(self) -> Counter[str]:
        """How often training came by each problem's reference up to the checkpoint."""
        return Counter(self.graded_by[problem_id] for problem_id in self.trained_on())

    def trained_on(self) -> list[str]:
        """The problems of its steps, one after the other: in the order of the seed, unless fresh ones took places.

        Raises:
            ConfigError: they did, and the rollouts that say which are not all there.
        """
        experiment, problems = self.experiment, self.build.train_problems
        if not (experiment.update.dynamic_sampling and experiment.method.cls.scores):
            order = mixed_indices(self.build.train_parts, experiment.data.prompts_per_step, experiment.seed)
            return [problems[index].id for step in islice(order, self.steps) for index in step]
        store = RolloutStore(self.directory.rollouts)
        asked = [store.asked(step) for step in store if step <= self.steps]
        if len(asked) < self.steps:
            raise ConfigError(
                f"{self.name}: with update.dynamic_sampling its rollouts alone say which problems it was trained on, "
                f"but {store.folder} has those of {len(asked)} of {self.steps} steps. Keep all of them: "
                "trainer.rollouts_every=1 trainer.keep_rollouts=null."
            )
        return [one.problem_id for step in asked for one in step]

    @cached_property
    def reached(self) -> list[Canary]:
        """The facts that training came by."""
        return [canary for canary in self.build.canaries if canary.problem.id in self.visits]

    @cached_property
    def key(self) -> str:
        """Names its weights, and with them all else: what was measured of others is not taken for theirs."""
        return hashlib.sha256(repr(sorted(digests(self.checkpoint).items())).encode()).hexdigest()[:16]

    @cached_property
    def kept(self) -> Mapping[int, tuple[StoredGroup, ...]]:
        """The rollouts that it kept of the steps up to the checkpoint; none where it scored nothing."""
        store = RolloutStore(self.directory.rollouts)
        scored = self.experiment.method.cls.scores
        return {step: store[step] for step in store if scored and step <= self.steps}

    @cached_property
    def channel(self) -> Channel | None:
        """What its scores can have told."""
        return channel_of(self.kept, self.graded_by) if self.kept else None

    def check(self) -> None:
        """Raise before anything is measured.

        Raises:
            DataError: the training problems are not what they were.
            ConfigError: training came by no fact, or the policy's tokenizer cannot write them.
        """
        problems = self.build.train_problems
        held = problems if self.experiment.reads_references else [problem.without_reference() for problem in problems]
        saved = problems_in(self.checkpoint)
        changed = first_difference(saved, fingerprint(held)) if saved is not None else None
        if changed is not None:
            raise DataError(
                f"{self.name}: the training problems are not those it was trained on: {changed}. Give the data set as "
                "it was then."
            )
        if not self.reached:
            raise ConfigError(
                f"{self.name}: training up to step {self.steps} came by none of the {len(self.build.canaries)} facts "
                f"that are in its {len(problems)} problems. Train it for longer, or with a larger leak.canaries."
            )


def measure_leaks(
    runs: Sequence[tuple[Experiment, Path]], output: Path, *, regrade: bool = False, console: Console
) -> list[Row]:
    """Measure the exposure of the facts of `runs` in their policies, before and after training; print and write it.

    Of each fact that training came by, the log-prob of its secret is ranked among all values that it could have had.
    Started again, it goes on.

    Args:
        runs: for each its experiment, and its folder or one of its checkpoints.
        output: the folder that results go to, made or gone on with; tried before anything is loaded.
        regrade: whether to grade the kept rollouts of problems with a fact once more, with another number planted.
        console: where the table is printed.

    Raises:
        ExprlError: any of its children, before anything is measured.
    """
    check_can_write(output / "leaks.json", "--output")
    audited = [Audited(experiment, *whole_checkpoint(path)) for experiment, path in runs]
    check_once(audited)
    for run in audited:
        run.check()
    with locked(output / LOCK, f"--output: {output}"):
        log = Log(output / "measured.jsonl")
        grades = Grades(output / "regraded.jsonl") if regrade else None
        total = sum(len(run.reached) * len(POLICIES) for run in audited)
        with Phases().run("measuring", total, unit="fact") as on_progress:
            facts = [measured_of(run, log, on_progress) for run in audited]
        if grades is not None:
            facts = regrade_all(audited, facts, grades)
        for own in facts:
            console.say(f"{line(own.run)}: {'; '.join(told_of(own))}")
        groups = grouped(audited, facts)
        rows = [row for name, own in groups for row in rows_of(name, own)]
        write_json(
            output / "leaks.json",
            {"rows": [row.to_json() for row in rows], "runs": [own.to_json() for own in facts]},
        )
        write_text(output / "leaks.md", markdown(rows))
        drawn = write_plot([own for _, own in groups], rows, output / "exposure.png")
    console.print(table_of(rows))
    console.say(f"figures: {line(str(output))}" + ("" if drawn else "; a plot needs pip install 'exprl[plots]'"))
    return rows


def regrade_all(audited: Sequence[Audited], facts: Sequence[Facts], grades: Grades) -> list[Facts]:
    """The facts with what their judges would have said of another number; of runs without scores as they are."""
    steps = [len(run.kept) for run in audited]
    with Phases().run("grading again", sum(steps), unit="step") as on_progress:
        return [
            replace(own, regraded=regraded_of(run, grades, on_progress)) if run.kept else own
            for run, own in zip(audited, facts, strict=True)
        ]


def regraded_of(run: Audited, grades: Grades, on_progress: OnProgress) -> Regraded:
    """Of a run, step by step; a step that is in `grades` is not graded again."""
    left = [step for step in run.kept if (run.key, step) not in grades.found]
    on_progress(len(run.kept) - len(left))
    facts = {canary.problem.id for canary in run.reached}
    with ExitStack() as stack:
        if left:
            build = Build(run.experiment, decoys=True)
            decoys = {problem.id: problem for problem in build.train_problems}
            reward = built_reward(build, stack)
            reward.check([decoys[name] for name, source in run.graded_by.items() if source in facts])
        for step in left:
            groups = [group for group in run.kept[step] if run.graded_by.get(group.problem_id) in facts]
            again = regraded(groups, decoys, reward, run.graded_by) if groups else Regraded()
            grades.add(run.key, step, again)
            reward.sync()
            on_progress(1)
    return sum((grades.found[run.key, step] for step in run.kept), Regraded())


def measured_of(run: Audited, log: Log, on_progress: OnProgress) -> Facts:
    """A run's facts, as its initial policy and its trained one have them; what is in `log` is not measured again."""
    build = Build(run.experiment)  # of this run alone, as it will hold the policy
    found = {policy: measure(run, build, policy, log, on_progress) for policy in POLICIES}
    return Facts(
        run=run.name,
        method=run.experiment.method.name,
        steps=run.steps,
        planted=len(run.build.canaries),
        visits={canary.problem.id: run.visits[canary.problem.id] for canary in run.reached},
        values=run.reached[0].values,
        initial=found["initial"],
        trained=found["trained"],
        channel=run.channel,
    )


def measure(run: Audited, build: Build, policy: Policy, log: Log, on_progress: OnProgress) -> list[Measured]:
    """What a policy of a run has of each fact, fact by fact and context by context; `build` has the model."""

    def keys(canary: Canary) -> list[tuple[str, ...]]:
        return [(run.key, policy, context, canary.problem.id) for context in CONTEXTS]

    left = [canary for canary in run.reached if any(key not in log.found for key in keys(canary))]
    on_progress(len(run.reached) - len(left))
    if left:
        if policy == "trained":
            load_policy(build.policy.model, run.checkpoint, checked=True)
        build.policy.model.to(device_of(run.experiment.trainer))  # type: ignore[arg-type]
        with build.policy.inference():
            for canary in left:
                log.add(
                    [
                        Measured.of(
                            logprobs_of_values(build.policy, build.prompts, canary, context),
                            canary,
                            run=run.key,
                            policy=policy,
                            context=context,
                        )
                        for context in CONTEXTS
                    ]
                )
                on_progress(1)
    return [log.found[key] for canary in run.reached for key in keys(canary)]


def check_once(audited: Sequence[Audited]) -> None:
    """Raise `ConfigError` where a policy is given twice, as the same run or as a copy: it would count as two seeds."""
    first: dict[str, Audited] = {}
    for run in audited:
        known = first.setdefault(run.key, run)
        if known is not run:
            raise ConfigError(
                f"RUN: {line(known.name)} and {line(run.name)} have the same policy, that of step {run.steps}, which "
                "would count twice. Give it once."
            )


def grouped(audited: Sequence[Audited], facts: Sequence[Facts]) -> list[tuple[str, list[Facts]]]:
    """Runs that differ in their seed, and in nothing else, together, named by the folder that they have in common.

    Two of one seed have the same facts and data, so each has a row of its own.
    """
    groups: list[list[tuple[Audited, Facts]]] = []
    for run, own in zip(audited, facts, strict=True):
        same = (group for group in groups if group[0][0].alike(run))
        seeds = (group for group in same if all(other.experiment.seed != run.experiment.seed for other, _ in group))
        found = next(seeds, None)
        if found is None:
            groups.append([(run, own)])
        else:
            found.append((run, own))
    return [(common_folder([run.name for run, _ in group]), [own for _, own in group]) for group in groups]


def common_folder(names: Sequence[str]) -> str:
    """The folder that others lie in, of one itself; the first where that is none but the current one.

    >>> common_folder(["runs/a", "runs/b"]), common_folder(["a", "b"]), common_folder(["a"])
    ('runs', 'a', 'a')
    """
    paths = [Path(name) for name in names]
    mixed = len({path.is_absolute() for path in paths}) > 1
    return os.path.commonpath([path.absolute() if mixed else path for path in paths]) or names[0]
