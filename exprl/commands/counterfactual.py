"""`exprl counterfactual`: what other ways of scoring a run's rollouts would have taught, step by step."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from exprl.commands.claims import Wording, claim
from exprl.commands.grading import name_of, with_advantages
from exprl.commands.judge import judge_rollouts
from exprl.errors import DataError, PathError
from exprl.evaluation.rescoring import rescored
from exprl.files.disk import check_can_write, read_json, write_json, write_text
from exprl.files.lock import LOCK, locked
from exprl.resources import Resources
from exprl.rollouts.store import RolloutStore, load_rollouts
from exprl.rollouts.stored import StoredGroup
from exprl.runs.versions import Version, nearest_versions
from exprl.study.alternatives import Alternative, Plan, grading
from exprl.study.counterfactual import (
    BRIEF,
    BRIEF_MEANS,
    Record,
    StepRecord,
    markdown,
    report_json,
    step_rows,
    summary_rows,
    table_of,
)
from exprl.study.counterfactual_plots import write_plot
from exprl.terminal.console import Console, line
from exprl.terminal.phases import Phases
from exprl.terminal.progress import OnProgress
from exprl.terminal.wording import counted
from exprl.training.gradients import Part, inner, norm
from exprl.training.machine import check_attention, check_kernels, device_of
from exprl.training.stored_policies import StoredPolicies, as_scored

Scorings = Mapping[str, "Scoring"]


def counterfactual(
    plan: Plan,
    output: Path,
    *,
    part: Part = Part("auto"),  # noqa: B008 - frozen
    steps: Sequence[int] = (),
    every: int = 1,
    console: Console,
) -> list[StepRecord]:
    """Score the run's rollouts by each alternative, compare gradients, and write and print what comes of it.

    Started again it goes on: rollouts that were graded lie in `rollouts/NAME`, as `exprl judge` writes them, and the
    figures of a step in `steps/`. `counterfactual.json` has all figures, `counterfactual.md` the tables,
    `counterfactual.png` the plot, of all alternatives and steps that were asked for so far.

    Args:
        plan: the run and the alternatives.
        output: the folder, made or gone on with.
        part: what of the gradients is compared.
        steps: which to look at; none: all that are stored.
        every: of these, every so many.
        console: where the tables go.

    Returns:
        The steps in order.

    Raises:
        DataError: the run has no such rollouts; or a problem is missing, which is named.
        ExprlError: any of its children, before what it concerns is begun.
    """
    stored = load_rollouts(plan.run.path)
    chosen = chosen_steps(stored, steps, every, console)
    device = device_of(plan.experiment.trainer)
    check_kernels(plan.experiment.update, device)
    check_attention(plan.experiment.model, device)
    check_can_write(output / "counterfactual.json", "--output")
    with locked(output / LOCK, f"--output: {output}"):
        claim(output, plan.own, name_of(str(plan.run.path)))
        known_records(output / "steps")  # a damaged one is told before anything is graded
        scorings = {one.name: scored_by(plan, one, chosen, output, console) for one in plan.alternatives}
        records = measured(plan, part, stored, chosen, scorings, output / "steps", console)
        report(plan, records, output, console)
    return records


def chosen_steps(stored: RolloutStore, steps: Sequence[int], every: int, console: Console) -> list[int]:
    """The steps to look at; raises `DataError` for one that is asked for and not stored, or has no rollouts."""
    known = list(stored)
    for step in steps:
        if step not in known:
            raise DataError(
                f"--step {step}: the run has no rollouts of it, but those of {counted(len(known), 'step')} from "
                f"{known[0]} to {known[-1]} (trainer.rollouts_every, trainer.keep_rollouts)."
            )
    chosen = sorted(set(steps) or known)[::every]
    empty = [step for step in chosen if not stored.asked(step)]
    if empty and (steps or empty == chosen):
        option = f"--step {empty[0]}: " if steps else ""
        raise DataError(f"{option}{stored.folder}: the file of step {empty[0]} is whole, but holds no rollouts.")
    if empty:
        console.say(f"left out, as their files hold no rollouts: {counted(len(empty), 'step')}, the first {empty[0]}")
    return [step for step in chosen if step not in empty]


# ------------------------------------------------------------------ scoring


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """An alternative with the rollouts that it graded, if it is one that gives other rewards."""

    alternative: Alternative
    graded: RolloutStore | None

    def of(self, step: int, before: Sequence[StoredGroup]) -> list[StoredGroup]:
        """A step's groups as the alternative scores them; raises `DataError` where the graded ones are others."""
        if self.graded is None:
            advantage = self.alternative.experiment.advantage.build(Resources())
            return with_advantages(before, before, advantage)
        after = list(self.graded[step])
        if [group.rollouts for group in after] != [group.rollouts for group in before]:
            raise DataError(
                f"{self.graded.folder}: its rollouts of step {step} are not those of the run any more. Delete the "
                "folder, or choose another --output."
            )
        return after


def scored_by(plan: Plan, one: Alternative, steps: Sequence[int], output: Path, console: Console) -> Scoring:
    """Grade what an alternative has to grade; with the run's own rewards there is nothing to do."""
    console.say((one.name, "bold"), f": {line(' '.join(one.asked))}")
    folder = output / "rollouts" / one.name
    experiment = grading(plan, one)
    wording = Wording(option=f"alternative {one.name}", advice="Give it another name: --alternative NAME key=value ...")
    if one.regrades:
        folder.parent.mkdir(parents=True, exist_ok=True)
        graded = judge_rollouts(experiment, str(plan.run.path), folder, steps=steps, console=console, wording=wording)
        return Scoring(alternative=one, graded=graded)
    folder.mkdir(parents=True, exist_ok=True)
    claim(folder, experiment, name_of(str(plan.run.path)), wording=wording)
    console.say(f"the run's own rewards of {counted(len(steps), 'step')}")
    return Scoring(alternative=one, graded=None)


# ------------------------------------------------------------------ measuring


def measured(
    plan: Plan,
    part: Part,
    stored: RolloutStore,
    steps: Sequence[int],
    scorings: Scorings,
    folder: Path,
    console: Console,
) -> list[StepRecord]:
    """The records of these steps, those that are missing made first; each is kept as soon as it is known."""
    sampled_by = {step: stored.asked(step)[0].policy_version for step in steps}
    nearest = nearest_versions(plan.run, sampled_by.values())
    versions = {step: nearest[sampled_by[step]] for step in steps}
    records = {step: read_record(folder, step) for step in steps}

    def left(part: Part) -> dict[int, Left]:
        found = {step: Left.of(records[step], versions[step], part, scorings) for step in steps}
        return {step: one for step, one in found.items() if one.names}

    if left(part):
        objectives = [one.experiment.objective for one in plan.alternatives]
        policies = StoredPolicies(plan.experiment, part, objectives)
        work = left(policies.part)  # what `auto` is, the model alone can say
        console.say(f"gradients: {policies.part}, {policies.parameters} trained parameters")
        with Phases().run("gradients", sum(1 + len(one.names) for one in work.values()), "gradient") as on_progress:
            for step in sorted(work, key=lambda step: (versions[step], step)):
                policies.load(versions[step])
                begun = work[step].begun or StepRecord(
                    step=step,
                    policy_version=sampled_by[step],
                    policy=versions[step].steps,
                    part=str(policies.part),
                )
                for record in records_of(policies, stored[step], begun, work[step].names, scorings, on_progress):
                    write_json(record_file(folder, step), record.to_json())
                    records[step] = record
    return [record for record in records.values() if record is not None]


@dataclass(frozen=True, kw_only=True)
class Left:
    """What is still to be done of a step: the alternatives without figures, beside those of the record `begun`."""

    begun: StepRecord | None
    names: Sequence[str]

    @classmethod
    def of(cls, kept: StepRecord | None, version: Version, part: Part, scorings: Scorings) -> Left:
        """Figures that are kept hold where they are of the same part, and of a policy as near as the nearest now.

        New ones must be of the same policy as those beside them, or all are made anew.
        """
        anew = cls(begun=None, names=list(scorings))
        if kept is None or (part.kind != "auto" and kept.part != str(part)):
            return anew
        digests = {name: record.digest for name, record in kept.alternatives.items()}
        names = [name for name, scoring in scorings.items() if digests.get(name) != scoring.alternative.digest]
        nearer = abs(version.steps - kept.policy_version) < kept.away
        return anew if nearer or (names and kept.policy != version.steps) else cls(begun=kept, names=names)


def records_of(
    policies: StoredPolicies,
    groups: Sequence[StoredGroup],
    record: StepRecord,
    names: Sequence[str],
    scorings: Scorings,
    on_progress: OnProgress,
) -> Iterator[StepRecord]:
    """The step's record with one alternative more each time; the gradient taken comes first and is held."""
    before = as_scored(groups)
    where = f"step {record.step}"
    taken = policies.gradient(before, policies.experiment.objective, where)
    record = replace(record, norm=norm(taken))
    on_progress(1)
    for name in names:
        alternative = scorings[name].alternative
        after = as_scored(scorings[name].of(record.step, groups))
        other = policies.gradient(after, alternative.experiment.objective, f"{where}, alternative {name}")
        own = Record(
            digest=alternative.digest,
            rescored=rescored(
                ([s.rewards for s in before], [s.advantages for s in before]),
                ([s.rewards for s in after], [s.advantages for s in after]),
            ),
            norm=norm(other),
            inner=inner(taken, other),
            asked=alternative.asked,
        )
        record = replace(record, alternatives={**record.alternatives, name: own})
        on_progress(1)
        yield record


# ------------------------------------------------------------------ what is kept and told


def record_file(folder: Path, step: int) -> Path:
    """Where a step's figures lie."""
    return folder / f"step-{step:06d}.json"


_RECORD = re.compile(r"step-(\d+)\.json")
"""The name of such a file."""


def read_record(folder: Path, step: int) -> StepRecord | None:
    """A step's figures, None where there are none yet; raises `PathError` where the file is damaged."""
    file = record_file(folder, step)
    if not file.exists():
        return None
    advice = "Delete it; its step is measured anew."
    try:
        record = StepRecord.from_json(read_json(file, advice))
    except (KeyError, TypeError, AttributeError) as error:
        raise PathError(f"{file} is damaged ({type(error).__name__}: {error}). {advice}") from error
    if record.step != step:
        raise PathError(
            f"{file}: it holds the figures of step {record.step}, so it is not the file that had this name. {advice}"
        )
    return record


def known_records(folder: Path) -> list[StepRecord]:
    """Of all steps that have figures, in order; raises `PathError` where one is damaged."""
    steps = sorted(int(match[1]) for file in folder.glob("step-*.json") if (match := _RECORD.fullmatch(file.name)))
    return [record for step in steps if (record := read_record(folder, step)) is not None]


def report(plan: Plan, records: Sequence[StepRecord], output: Path, console: Console) -> None:
    """Tables of what was asked on the console, and the files of all that is known."""
    asked = {one.name: one.asked for one in plan.alternatives}
    known = [record for record in known_records(output / "steps") if record.part == records[0].part]
    before = {name: own.asked for record in known for name, own in record.alternatives.items()}
    everything = {**before, **asked}
    write_json(output / "counterfactual.json", report_json(known, everything))
    write_text(output / "counterfactual.md", markdown(plan.run.path.name, known, everything))
    for name in asked:
        rows = step_rows(records, name, measures=BRIEF, intervals={"rewards"})
        console.print(table_of(f"{name}, step by step", *rows))
    rows = summary_rows(records, list(asked), measures=BRIEF_MEANS, intervals={"cosine"})
    console.print(table_of("means over steps", *rows))
    drawn = write_plot(known, list(everything), output / "counterfactual.png")
    plot = ", .png" if drawn else "; the plot needs pip install 'exprl[plots]'"
    console.say(f"figures: {line(str(output / 'counterfactual'))}.json, .md{plot}")
    others = [name for name in everything if name not in asked]
    if others or len(known) > len(records):
        console.say(f"they have all that is known: {counted(len(known), 'step')}; {', '.join(everything)}")
