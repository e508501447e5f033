"""`exprl calibrate`: judges measured on labelled rollouts, with the right reference, none, and a wrong one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from exprl.build import Build
from exprl.commands.claims import CONFIG, Wording, check_all, claim
from exprl.commands.grading import Grader, Material, read_material
from exprl.errors import DataError, JudgeError
from exprl.evaluation.localisation import Graded, graded
from exprl.evaluation.perturbations import Kind
from exprl.evaluation.perturbing import (
    ON_EMPTY,
    ON_ROLLOUTS,
    ORIGINAL,
    Perturbed,
    labelled,
    original,
    perturbed,
    scores_of,
)
from exprl.files.disk import write_json, write_text
from exprl.resources import Resources
from exprl.rollouts.store import RolloutStore
from exprl.runs.preflight import check_judging
from exprl.study import compared, explained
from exprl.study.calibrated import Arms, Row, at_random, rows_of, sheet_of
from exprl.study.calibration import CHANCE, PERTURBED, Arm, Plan
from exprl.study.calibration_plots import write_plots
from exprl.study.perturbed import Base, Moved, attacks, in_short, moved, nothing_written, style_and_content
from exprl.study.sheets import Sheet
from exprl.terminal.console import Console, line
from exprl.terminal.progress_bar import ProgressBar
from exprl.terminal.wording import counted

FOLDER = Wording(option="folder", advice="Choose another folder (folder=...).")


def calibrate(plan: Plan, *, console: Console) -> list[Row]:
    """Grade what is not graded yet, and write and print the tables.

    Each judge's rollouts lie below the folder, as `exprl judge` writes them, and are graded once: started again, it
    goes on. `calibration.json` has the figures, `calibration.md` the tables, and PNG files the reliability curves.

    Raises:
        DataError: no rollout has a label; a problem of the rollouts is not in the data.
        JudgeError: a judge could not be used; said when all others are done.
        ExprlError: any of its children.
    """
    material = _material(plan)
    parts = [Part(arm=arm, material=material, folder=plan.folder / arm.folder) for arm in plan.arms]
    stores, faults = grade(parts, plan.folder, console)
    found: dict[tuple[str, str], tuple[list[Graded], int]] = {
        part.arm.name: graded(group for step in store.values() for group in step) for part, store in stores
    }
    arms: dict[tuple[str, str], Sequence[Graded]] = {name: rollouts for name, (rollouts, _) in found.items()}
    failed = {name: count for name, (_, count) in found.items()}
    if plan.calibration.chance and arms:
        arms[CHANCE, "–"] = at_random(list(arms.values()), plan.calibration.seed)
    rows = [row for name, own in arms.items() for row in rows_of(*name, own, failed.get(name, 0), plan.calibration)]
    if rows:
        _report(plan, arms, rows, console)
    _tell_faults(faults)
    return rows


def perturb(plan: Plan, kinds: Collection[Kind], *, console: Console) -> list[Moved]:
    """Change the rollouts by the perturbations of these kinds, have them judged, and say how far the scores move.

    Responses are judged as wholes. What was graded lies below `perturbed/` in the folder, a folder for each judge,
    reference and perturbation, and is graded once; so another one can be added. `attacks.json` and `attacks.md`, and
    for style and content `perturbations.json` and `perturbations.md`, have the figures.

    Raises:
        DataError: no rollout has a label, or for attacks none is wrong.
        JudgeError: as in `calibrate`.
        ExprlError: any of its children.
    """
    material = _material(plan)
    made = perturbed_material(plan, kinds, material)
    arms = [arm.on_whole for arm in plan.arms]
    parts = [
        Part(
            arm=arm,
            material=replace(material, name=f"{material.name}, {one.name}, {one.digest}", rollouts=one.groups),
            folder=plan.folder / PERTURBED / arm.folder / one.name,
            perturbation=one.name,
        )
        for arm in arms
        for one in made
    ]
    stores, faults = grade(parts, plan.folder, console)
    by_part = {(part.arm.name, part.perturbation): store for part, store in stores}
    unchanged, *changed = made
    rows = [
        row
        for arm in arms
        for one in changed
        if (arm.name, one.name) in by_part
        for row in moves(
            plan, unchanged, one, (by_part[arm.name, ORIGINAL], by_part[arm.name, one.name]), **_about(plan, arm, one)
        )
    ]
    for name, kept, sheet in (
        ("perturbations", [row for row in rows if row.kind != "attack"], style_and_content),
        ("attacks", [row for row in rows if row.kind == "attack"], attacks),
    ):
        if kept:
            write_json(plan.folder / f"{name}.json", {"source": plan.source, "rows": [row.to_json() for row in kept]})
            short = list(in_short(kept))
            write_text(
                plan.folder / f"{name}.md", "\n".join([sheet(kept).markdown(), *(f"- {one}" for one in short), ""])
            )
            sheet(kept).show(console)
            for one in short:
                console.say(one)
    console.say(f"figures: {plan.folder}")
    _tell_faults(faults)
    return rows


# ------------------------------------------------------------------ what is graded


@dataclass(frozen=True, kw_only=True)
class Part:
    """Rollouts that one judge grades into one folder; which perturbation made them, if any."""

    arm: Arm
    material: Material
    folder: Path
    perturbation: str = ""

    @property
    def title(self) -> str:
        """For messages."""
        return f"{self.arm.title}, {self.perturbation}" if self.perturbation else self.arm.title

    def check(self) -> None:
        """Raise `DataError` where its folder was begun with something else."""
        if (self.folder / CONFIG).is_file():
            material = self.material
            claim(self.folder, self.arm.experiment, material.name, problems=material.problems.given, wording=FOLDER)

    @property
    def left(self) -> int:
        """How many of its rollouts are not graded yet."""
        return self.material.count(self.material.left(RolloutStore(self.folder)))


def grade(
    parts: Sequence[Part], folder: Path, console: Console
) -> tuple[list[tuple[Part, RolloutStore]], dict[str, JudgeError]]:
    """Grade all of them, which lie below `folder`, under one bar, neighbours of one judge with the same model.

    A part of which too much failed is left out, and so are the judge's next ones if it is the first; others go on.
    A folder that was begun with something else is refused before anything is said or graded.

    Returns:
        The parts that were graded, and why others were left out, by their titles.
    """
    for part in parts:
        part.check()
    total = sum(part.material.count(part.material.rollouts) for part in parts)
    by_arm: dict[tuple[str, str], list[Part]] = {}
    for part in parts:
        by_arm.setdefault(part.arm.name, []).append(part)
    stores: list[tuple[Part, RolloutStore]] = []
    faults: dict[str, JudgeError] = {}
    done = total - sum(part.left for part in parts)
    begun = "goes on" if folder.is_dir() else "a new folder"
    console.say(f"results: {line(str(folder.resolve()))} ({begun})")
    judges = counted(len({judge for judge, _ in by_arm}), "judge")
    references = counted(len({reference for _, reference in by_arm}), "reference")
    console.say(f"{counted(total, 'rollout')} to judge, over {judges} and {references}, {done} of them done before")
    with ProgressBar("judging", total, initial=done) as bar:
        for own in by_arm.values():
            with Grader(Build(own[0].arm.experiment)) as grader:
                for part in own:
                    bar.note(part.title)
                    try:
                        stores.append((part, grader.grade(part.material, part.folder, bar.update, FOLDER)))
                    except JudgeError as error:
                        faults[part.title] = error
                        if part is own[0]:
                            break
    return stores, faults


def _material(plan: Plan) -> Material:
    """The source's rollouts, read once: judges differ, and data and model do not."""
    for arm in plan.arms:
        check_judging(arm.experiment)
    material = read_material(plan.source, Build(plan.arms[0].experiment))
    for arm in plan.arms:
        check_all(plan.source, arm.experiment, material.problems.given)
    every = (group for groups in material.rollouts.values() for group in groups)
    if not any(label.correct is not None for group in every for label in group.labels or ()):
        raise DataError(f'source: {plan.source} has no labels. Give rollouts with "correct" (docs/calibration.md).')
    return material


def perturbed_material(plan: Plan, kinds: Collection[Kind], material: Material) -> list[Perturbed]:
    """The labelled rollouts as they are, and by each perturbation; raises `DataError` where it finds nothing."""
    groups = labelled(
        (group for of_step in material.rollouts.values() for group in of_step), plan.calibration.perturbed_problems
    )
    if set(kinds) == {"attack"} and all(label.correct for group in groups for label in group.labels or ()):
        raise DataError(
            f"source: {plan.source} has no rollout labelled as wrong to the chosen problems that an attack could help."
        )
    tokenizer = plan.arms[0].experiment.model.build(Resources()).load_tokenizer()
    found = [
        perturbed(name, perturbation, groups, seed=plan.calibration.seed, tokenizer=tokenizer)
        for name, perturbation in plan.perturbations_of(kinds).items()
    ]
    return [original(groups), *(one for one in found if one.groups)]


# ------------------------------------------------------------------ what is found


def moves(
    plan: Plan, unchanged: Perturbed, changed: Perturbed, stores: tuple[RolloutStore, RolloutStore], **about: Any
) -> list[Moved]:
    """How far one perturbation moves the scores of rollouts and of nothing."""
    before, after = stores
    rollouts = [
        Base(problem_id=group.problem_id, on="right" if label.correct else "wrong")
        for group in unchanged.groups[ON_ROLLOUTS]
        for label in group.labels or ()
    ]
    empty = {place: replace(rollouts[place], on="nothing") for place in changed.places.get(ON_EMPTY, ())}
    return [
        *moved(
            dict(enumerate(rollouts)),
            scores_of(before, unchanged, ON_ROLLOUTS),
            scores_of(after, changed, ON_ROLLOUTS),
            plan.calibration,
            **about,
        ),
        *moved(empty, nothing_written(list(empty)), scores_of(after, changed, ON_EMPTY), plan.calibration, **about),
    ]


def _about(plan: Plan, arm: Arm, one: Perturbed) -> dict[str, Any]:
    kind = plan.perturbations[one.name].cls.kind
    return {"judge": arm.judge, "reference": arm.reference, "perturbation": one.name, "kind": kind}


def _report(plan: Plan, arms: Arms, rows: Sequence[Row], console: Console) -> None:
    """Write the files, and print the tables."""
    pairs = list(compared.pairs_of(arms, plan.calibration))
    surface = list(explained.explained_of(arms, plan.calibration))
    node: Mapping[str, Any] = {
        "source": plan.source,
        "rows": [row.to_json() for row in rows],
        "pairs": [pair.to_json() for pair in pairs],
        "surface": [one.to_json() for one in surface],
    }
    write_json(plan.folder / "calibration.json", node)
    sheets: list[Sheet] = [sheet_of(rows), compared.sheet_of(pairs), explained.sheet_of(surface)]
    write_text(plan.folder / "calibration.md", "\n".join(f"{sheet.title}\n\n{sheet.markdown()}" for sheet in sheets))
    for sheet in sheets:
        if sheet.lines:
            sheet.show(console)
    drawn = write_plots(arms, rows, plan.folder)
    console.say(f"figures: {plan.folder}" + ("" if drawn else "; plots need pip install 'exprl[plots]'"))


def _tell_faults(faults: Mapping[str, JudgeError]) -> None:
    """Raise `JudgeError` where judges were left out."""
    if faults:
        told = "\n".join(f"{name}: {error}" for name, error in faults.items())
        raise JudgeError(f"What these judges were asked failed, and is in no table.\n{told}")
