"""`exprl calibrate`: judges measured on labelled rollouts, with the right reference, none, and a wrong one."""

from __future__ import annotations

from exprl.commands.judge import judge_rollouts
from exprl.errors import DataError
from exprl.evaluation.localisation import Graded, graded
from exprl.files.disk import write_json, write_text
from exprl.runs.preflight import check_judging
from exprl.study.calibrated import Row, at_random, markdown, rows_of, table_of
from exprl.study.calibration import CHANCE, Plan
from exprl.study.calibration_plots import write_plots
from exprl.terminal.console import Console


def calibrate(plan: Plan, *, console: Console) -> list[Row]:
    """Grade what is not graded yet, and write and print the table.

    Each judge's rollouts lie below the folder, as `exprl judge` writes them, and are graded once: started again, it
    goes on. `calibration.json` has the figures, `calibration.md` the table, and PNG files the reliability curves.

    Raises:
        DataError: no rollout has a label; or as `judge_rollouts`.
        ExprlError: any of its children.
    """
    for arm in plan.arms:
        check_judging(arm.experiment)
    found: dict[tuple[str, str], tuple[list[Graded], int]] = {}
    for arm in plan.arms:
        console.say((f"{arm.judge}, {arm.reference} reference", "bold"))
        folder = plan.folder / arm.folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        store = judge_rollouts(arm.experiment, plan.source, folder, console=console)
        found[arm.judge, arm.reference] = graded(group for step in store.values() for group in step)
    if not any(one or failed for one, failed in found.values()):
        raise DataError(f'source: {plan.source} has no labels. Give rollouts with "correct" (docs/calibration.md).')
    if plan.calibration.chance:
        found[CHANCE, "–"] = at_random([one for one, _ in found.values()], plan.calibration.seed), 0
    rows = [
        row for (judge, reference), arm in found.items() for row in rows_of(judge, reference, *arm, plan.calibration)
    ]
    write_json(plan.folder / "calibration.json", {"source": plan.source, "rows": [row.to_json() for row in rows]})
    write_text(plan.folder / "calibration.md", markdown(rows))
    console.print(table_of(rows))
    drawn = write_plots({key: arm[0] for key, arm in found.items()}, rows, plan.folder)
    console.say(f"figures: {plan.folder}" + ("" if drawn else "; plots need pip install 'exprl[plots]'"))
    return rows
