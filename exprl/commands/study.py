"""`exprl study`: tune, run, compare."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from exprl.errors import DataError
from exprl.files.disk import write_json, write_text
from exprl.study.plan import Chosen, Place, Plan
from exprl.study.plots import write_plots
from exprl.study.results import collect, markdown, measures_of, rich_table, table_numbers, trial_means
from exprl.study.runner import Devices, Failure, Runner, locked
from exprl.study.runs import MiningRun, Run, with_parents
from exprl.terminal.console import Console


def study(plan: Plan, *, devices: Devices, only: Sequence[str], console: Console) -> list[Failure]:
    """Run what is not finished of the arms in `only` (none named: all) and write what the study has found so far.

    Returns:
        The runs that did not finish.

    Raises:
        ExprlError: the folder holds a run with other options, another process runs the study, or nothing can be
            compared.
    """
    arms = list(only) or list(plan.arms)
    with locked(plan.folder, console.say) as lock:
        check_runs(plan)
        plan.note()
        runner = Runner(devices, console, lock)
        failures = runner.execute(plan.mining_runs(arms), "mining")
        if failures:
            return failures
        check_kept(plan.mining_runs(arms))
        failures = tune(plan, arms, runner)
        chosen = choose(plan)
        show_chosen(plan, chosen, console)
        check_runs(plan)
        places, dropped = split_runnable(plan, arms, chosen)
        runs = [plan.run(place, seed, chosen) for seed in plan.study.seeds for place in places]
        failures += [*dropped, *runner.execute(runs, "study")]
        report(plan, chosen, failures, console)
    return failures


def check_runs(plan: Plan) -> None:
    """Raise `RunDirectoryError` if the folder has a run, of any arm, whose options are no longer those of the study.

    The runs after a tuned stage are known, and checked, once all that decides on its value has finished.
    """
    chosen = choose(plan)
    tuning = [run for place in tunable(plan, chosen) for by in plan.trials(place, chosen) for run in by]
    places, _ = split_runnable(plan, list(plan.arms), chosen)
    runs = [plan.run(place, seed, chosen) for place in places for seed in plan.study.seeds]
    for run in with_parents([*plan.mining_runs(plan.arms), *tuning, *runs]):
        run.check()


def check_kept(runs: Sequence[MiningRun]) -> None:
    """Raise `DataError` where mining kept too few problems to train on, or none to evaluate on."""
    for run in runs:
        summary = run.summary()
        if summary["kept"] < run.needs:
            low, high = summary["rates"]
            raise DataError(
                f"mine: {summary['kept']} of {summary['problems']} problems have a solve rate from {low} to {high} in "
                f"{summary['samples_per_problem']} samples (histogram: {run.result}), but a step needs {run.needs}. "
                "Widen the rates, or give it other or more problems."
            )


def tune(plan: Plan, arms: Sequence[str], runner: Runner) -> list[Failure]:
    """Run what decides on the tuned values of these arms, stage by stage; returns what did not finish."""
    selected, failures = plan.places(arms), list[Failure]()
    for group in plan.tuned_places(arms):
        chosen = choose(plan)
        places = [place for place in tunable(plan, chosen) if place in group and place in selected]
        failures += runner.execute([run for p in places for by in plan.trials(p, chosen) for run in by], "tuning")
    return failures


def tunable(plan: Plan, chosen: Chosen) -> list[Place]:
    """The tuned places whose earlier stages have their value."""
    groups = plan.tuned_places(plan.arms)
    return [place for group in groups for place in group if place.parent is None or place.parent.label in chosen]


def choose(plan: Plan) -> dict[str, Any]:
    """For each tuned place the best value by the mean over its seeds; a place with an unfinished run gets none."""
    chosen: dict[str, Any] = {}
    for group in plan.tuned_places(plan.arms):
        for place in [place for place in tunable(plan, chosen) if place in group]:
            if all(run.finished for runs in plan.trials(place, chosen) for run in runs):
                assert plan.study.tune is not None
                means = list(trial_means(plan, place, chosen).values())
                chosen[place.label] = plan.study.tune.values[int(np.argmax(means))]
    return chosen


def show_chosen(plan: Plan, chosen: Chosen, console: Console) -> None:
    """A line for each tuned place: the value, and what every value came to."""
    options = plan.study.tune
    for place in plan.places(plan.arms):
        if place.label in chosen:
            assert options is not None
            shown = ", ".join(f"{v}: {100 * m:.1f} %" for v, m in trial_means(plan, place, chosen).items())
            line = f"{place.label}: {options.key}={chosen[place.label]} ({options.measure} {shown})"
            console.say(line)


def split_runnable(plan: Plan, arms: Sequence[str], chosen: Chosen) -> tuple[list[Place], list[Failure]]:
    """The places of these arms that have all their tuned values, and those that cannot be run for want of one."""
    tuned = {place.label for group in plan.tuned_places(arms) for place in group}
    places: list[Place] = []
    dropped: list[Failure] = []
    for place in plan.places(arms):
        if (place.label in chosen or place.label not in tuned) and (place.parent is None or place.parent in places):
            places.append(place)
        else:
            reason = "not started: a run that tunes it, or a stage before it, failed"
            dropped.append(Failure(name=place.label, reason=reason))
    return places, dropped


def report(plan: Plan, chosen: dict[str, Any], failures: Sequence[Failure], console: Console) -> None:
    """`study.json`, `study.md`, plots, and the tables on the console."""
    findings = collect(plan, chosen)
    write_json(plan.folder / "study.json", findings.to_json())
    write_text(plan.folder / "study.md", markdown(findings, [failure.name for failure in failures]))
    if not findings.entries:
        console.say("no run has finished")
        return
    drawn = write_plots(findings, plan.folder)
    for number in table_numbers(findings):
        for measure in measures_of(findings, number):
            console.print(rich_table(findings, number, measure))
    plots = "plots/" if drawn else "no plots (pip install 'exprl[plots]')"
    console.say(f"{plan.folder}: study.md, study.json, {plots}, tensorboard/")


def show_plan(plan: Plan, arms: Sequence[str], console: Console) -> None:
    """What would be run, without running anything; of a tuned study each value stands for the chosen one.

    Raises:
        ExprlError: as `study` does before it runs anything.
    """
    check_runs(plan)
    options = plan.study.tune
    chosen: dict[str, Any] = {}
    for group in plan.tuned_places(arms):
        for place in group:
            assert options is not None
            if place.parent is None or place.parent.label in chosen:
                chosen[place.label] = options.values[0]
    for mining in plan.mining_runs(arms):
        console.say(f"{state(mining):>8}  {mining.name}")
    for group in plan.tuned_places(arms):
        for run in with_parents([run for place in group for by in plan.trials(place, chosen) for run in by]):
            console.say(f"{state(run):>8}  {run.name}")
    runs = with_parents([plan.run(p, s, chosen) for s in plan.study.seeds for p in plan.places(arms)])
    for run in runs:
        console.say(f"{state(run):>8}  {run.name}")
    for arm in arms:
        console.say(f"arm {arm}: {' → '.join(place.label for place in plan.arms[arm])}")


def state(run: Run) -> str:
    """How far a run is."""
    return "finished" if run.finished else "begun" if Path(run.directory).is_dir() else "to do"
