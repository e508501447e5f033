"""`exprl judge`: stored rollouts graded with a reward, judge and slicer of one's choice, into the same format."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from exprl.build import Build
from exprl.commands.claims import OUTPUT, Wording, check_apart
from exprl.commands.grading import Grader, name_of, read_material
from exprl.experiment import Experiment
from exprl.rollouts.store import RolloutStore
from exprl.rollouts.stored import StoredGroup
from exprl.runs.preflight import check_judging
from exprl.terminal.console import Console, line
from exprl.terminal.phases import Phases
from exprl.terminal.wording import counted
from exprl.types import AnyReward


def judge_rollouts(
    experiment: Experiment,
    source: str,
    output: Path,
    *,
    steps: Collection[int] | None = None,
    console: Console,
    wording: Wording = OUTPUT,
) -> RolloutStore:
    """Grade the rollouts of `source` with `experiment`'s reward, step by step, and write them to `output`.

    Advantages are made anew where the rollouts had some. Started again, it goes on after what is done.

    Args:
        experiment: its reward and advantage; its data, which must hold the problems that were attempted.
        source: a run or another folder of rollouts, a file of responses in JSON lines, or `champ`.
        output: the folder, made or gone on with.
        steps: which of the source's are graded, in this call; None: all.
        console: where it is told what came out.
        wording: how messages name the option that gave `output`.

    Raises:
        DataError: a problem of the rollouts is not in the data, or is not what it was; it is named. With a judge
            that reads all problems (`Judge.reads_all_problems`) so is one that was not attempted.
        ExprlError: any of its children, before anything is graded.
    """
    check_judging(experiment)
    check_apart(output, name_of(source), wording)
    build = Build(experiment)
    material = read_material(source, build, steps)
    done = RolloutStore(output)
    left = material.left(done)
    console.say(
        f"{counted(material.count(material.asked), 'rollout')} in {counted(len(material.asked), 'step')}, "
        f"{counted(len(material.asked) - len(left), 'step')} done before"
    )
    with Grader(build) as grader, Phases().run("judging", material.count(left)) as on_progress:
        grader.grade(material, output, on_progress, wording)
    earlier = material.count(material.asked) - material.count(left)
    tell(material.rollouts, material.asked, done, console, earlier=earlier)
    return done


# ------------------------------------------------------------------ what is told


def tell(
    before: Mapping[int, tuple[StoredGroup, ...]],
    steps: Iterable[int],
    after: RolloutStore,
    console: Console,
    *,
    earlier: int = 0,
) -> None:
    """How many judgements failed, and how many rollouts have the rewards that they had before, if any.

    `earlier` of them were graded by another start of the command.
    """
    counts = {"rollouts": 0, "judgements": 0, "failed": 0, "had": 0, "same": 0}
    for step in steps:
        for old, new in zip(before[step], after[step], strict=True):
            rewards: Sequence[Any] = new.rewards or ()
            judgements = [judgement for reward in rewards for judgement in reward.asked]
            counts["rollouts"] += len(rewards)
            counts["judgements"] += len(judgements)
            counts["failed"] += sum(judgement.status != "ok" for judgement in judgements)
            counts["had"] += len(old.rewards or ())
            counts["same"] += sum(map(same_values, old.rewards or (), rewards))
    of_them = f", {'all' if earlier == counts['rollouts'] else earlier} of them before" if earlier else ""
    console.say(
        f"{counted(counts['rollouts'], 'rollout')} graded{of_them}, {counts['failed']} of "
        f"{counted(counts['judgements'], 'judgement')} failed: "
        f"{line(str(after.folder))}"
    )
    if counts["had"]:
        have = "has the rewards that it" if counts["had"] == 1 else "have the rewards that they"
        console.say(f"{counts['same']} of {counted(counts['had'], 'rollout')} {have} had before")


def same_values(one: AnyReward, other: AnyReward) -> bool:
    """Whether two rewards of a rollout are the same, whatever the judges said."""
    return all(getattr(one, name, None) == getattr(other, name, None) for name in ("value", "values", "segments"))
