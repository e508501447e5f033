"""What a study found: figures of every arm after every stage, with intervals and paired differences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from exprl.errors import DataError
from exprl.evaluation.evaluate import EvaluationResult
from exprl.evaluation.intervals import Array, Interval, interval_95, paired_interval_95
from exprl.evaluation.table import label
from exprl.files.lines import read_lines
from exprl.runs.directory import RunDirectory
from exprl.study.plan import Chosen, Place, Plan
from exprl.study.runs import ANEW, Run
from exprl.terminal.wording import counted


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An arm after one of its stages: the finished runs and their outcomes by seed.

    Attributes:
        arm: the arm.
        place: the stage.
        runs: by seed, finished ones alone.
        results: their evaluations by seed.
    """

    arm: str
    place: Place
    runs: Mapping[int, Run]
    results: Mapping[int, EvaluationResult]

    def values(self, measure: str, seeds: Sequence[int]) -> Array:
        """[S, P] of a measure."""
        return np.stack([self.results[seed].per_problem(measure) for seed in seeds])

    def interval(self, measure: str) -> Interval:
        """Mean with its interval over seeds and problems."""
        return interval_95(self.values(measure, list(self.results)))

    def difference(self, baseline: Entry, measure: str) -> Interval | None:
        """Paired difference to a baseline over the seeds that both have; None where they share none."""
        seeds = [seed for seed in self.results if seed in baseline.results]
        if not seeds or baseline.arm == self.arm:
            return None
        return paired_interval_95(baseline.values(measure, seeds), self.values(measure, seeds))

    @property
    def measures(self) -> list[str]:
        """Those every seed has."""
        first, *rest = self.results.values()
        return [name for name in first.measures if all(name in other.measures for other in rest)]


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Everything a study has so far.

    Attributes:
        plan: the study.
        chosen: tuned values by place.
        stages: by number of stages done, the arms that have some result there; 0 is the initial policy.
    """

    plan: Plan
    chosen: Chosen
    stages: Mapping[int, Sequence[Entry]]

    @property
    def entries(self) -> list[Entry]:
        """All of them, stage by stage."""
        return [entry for stage in self.stages.values() for entry in stage]

    def baseline_of(self, number: int) -> Entry | None:
        """The baseline after as many stages, or after its last one if it has fewer; None while that has no result."""
        name = self.plan.study.baseline
        if name is None:
            return None
        wanted = min(number, self.plan.arms[name][-1].number)
        return next((e for e in self.entries if e.arm == name and e.place.number == wanted), None)

    def shown(self, number: int) -> list[Entry]:
        """The rows of a stage's table as the file orders them: the untouched policy, every arm that has this stage, and
        the baseline, which may have had its last stage before.
        """
        baseline = self.baseline_of(number)
        rows = [entry for entry in self.entries if entry.place.number in (0, number) or entry is baseline]
        order = list(self.plan.arms)
        return sorted(rows, key=lambda entry: order.index(entry.arm))

    def to_json(self) -> dict[str, Any]:
        """What `study.json` holds; it depends on the runs' figures alone, not on times or on the machine."""
        arms: dict[str, list[Any]] = {arm: [] for arm in self.plan.arms}
        for entry in self.entries:
            arms[entry.arm].append(self._entry_json(entry))
        return {
            "study": self.plan.file.stem,
            "seeds": self.plan.study.seeds,
            "baseline": self.plan.study.baseline,
            "tuned": dict(self.chosen),
            "tuning": self.tuning(),
            "arms": arms,
            "differences": {str(number): self._differences(number) for number in self.stages},
        }

    def tuning(self) -> dict[str, dict[str, float]]:
        """For each place with a tuned value the mean of the measure that each value came to."""
        return {
            place.label: trial_means(self.plan, place, self.chosen)
            for place in self.plan.places(self.plan.arms)
            if place.label in self.chosen
        }

    def _differences(self, number: int) -> dict[str, Any]:
        """Of each arm in a stage's table to each other one: by measure, arm and the arm it is compared with."""
        found: dict[str, Any] = {}
        for measure in measures_of(self, number):
            for one, other, difference in self.pairs(number, measure):
                found.setdefault(measure, {}).setdefault(one, {})[other] = _json(difference)
        return found

    def pairs(self, number: int, measure: str) -> Iterator[tuple[str, str, Interval]]:
        """Paired differences of the arms in a stage's table, one minus the other, for all that share a seed."""
        for one, other in permutations(self.shown(number), 2):
            difference = one.difference(other, measure)
            if difference is not None:
                yield one.arm, other.arm, difference

    def _entry_json(self, entry: Entry) -> dict[str, Any]:
        figures = {measure: _json(entry.interval(measure)) for measure in entry.measures}
        runs = [
            {
                "seed": seed,
                "folder": run.name,
                "counts": str(run.result.relative_to(self.plan.folder)),
                "figures": entry.results[seed].summary(),
            }
            for seed, run in entry.runs.items()
        ]
        return {"stage": entry.place.stage, "number": entry.place.number, "measures": figures, "runs": runs}


def collect(plan: Plan, chosen: Chosen) -> Findings:
    """Read every finished run; raises `DataError` where arms were evaluated on different problems."""
    stages: dict[int, list[Entry]] = {}
    problems: tuple[str, ...] | None = None
    for arm, places in plan.arms.items():
        for place in places:
            if not _known(plan, place, chosen):
                continue
            runs = {seed: plan.run(place, seed, chosen) for seed in plan.study.seeds}
            finished = {seed: run for seed, run in runs.items() if run.finished}
            results = {seed: read_result(run.result) for seed, run in finished.items()}
            for seed, result in results.items():
                problems = problems or result.problem_ids
                if result.problem_ids != problems:
                    raise DataError(
                        f"{finished[seed].name}: evaluated on other problems than the runs before it, which cannot be "
                        "paired. Keep evaluation.source the same for all stages and seeds."
                    )
            if results:
                entry = Entry(arm=arm, place=place, runs=finished, results=results)
                stages.setdefault(place.number, []).append(entry)
    return Findings(plan=plan, chosen=chosen, stages=dict(sorted(stages.items())))


def _known(plan: Plan, place: Place, chosen: Chosen) -> bool:
    """Whether all that is tuned on the way to a place has been."""
    tuned = {p.label for group in plan.tuned_places(plan.arms) for p in group}
    here: Place | None = place
    while here is not None:
        if here.number and here.label in tuned and here.label not in chosen:
            return False
        here = here.parent
    return True


def read_result(path: Path) -> EvaluationResult:
    """An evaluation's file; raises `PathError` where it is damaged."""
    return EvaluationResult.read(path, ANEW)


def trial_means(plan: Plan, place: Place, chosen: Chosen) -> dict[str, float]:
    """What each value that was tried at a place came to; raises `DataError` where there is no such figure."""
    tune = plan.study.tune
    assert tune is not None
    means = {
        str(value): float(np.mean([read_result(run.result).per_problem(tune.measure).mean() for run in runs]))
        for value, runs in zip(tune.values, plan.trials(place, chosen), strict=True)
    }
    if not np.isfinite(list(means.values())).all():
        raise DataError(
            f"tune.measure: {tune.measure!r} has no value for {place.label}. The problems have no `steps`, which "
            "progress counts; choose pass@k."
        )
    return means


# ------------------------------------------------------------------ over steps


CURVES: Mapping[str, str] = {
    "rollout/entropy": "token entropy of all rollouts",
    "update/kl": "KL to the policy the stage began with\n(over the tokens of the update)",
    "outcome/unlocked_prompts": "unlocked prompts",
    "outcome/accuracy": "accuracy on training prompts",
    "reward/mean": "reward",
}
"""What `metrics.jsonl` says of each step, and what people call it."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A metric over steps: its mean over seeds, and the smallest and largest seed."""

    steps: tuple[int, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def curve(entry: Entry, metric: str) -> Curve | None:
    """Over the steps that some seed has a value for (a step without an update has no KL); None without any."""
    by_step: dict[int, list[float]] = {}
    for run in entry.runs.values():
        for step, value in _metric(run, metric).items():
            by_step.setdefault(step, []).append(value)
    if not by_step:
        return None
    steps = sorted(by_step)
    return Curve(
        steps=tuple(steps),
        mean=tuple(float(np.mean(by_step[step])) for step in steps),
        low=tuple(min(by_step[step]) for step in steps),
        high=tuple(max(by_step[step]) for step in steps),
    )


def _metric(run: Run, metric: str) -> dict[int, float]:
    lines = RunDirectory(run.directory).metrics
    records = read_lines(lines, ANEW) if lines.is_file() else ()
    return {record["step"]: record[metric] for record in records if record.get(metric) is not None}


# ------------------------------------------------------------------ tables


def measures_of(findings: Findings, number: int) -> list[str]:
    """The measures that all arms of a stage's table have."""
    first, *rest = findings.shown(number)
    return [measure for measure in first.measures if all(measure in entry.measures for entry in rest)]


def rows(findings: Findings, number: int, measures: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table after `number` stages; differences to the baseline where any row has one."""
    baseline, entries = findings.baseline_of(number), findings.shown(number)
    if baseline is not None and not any(entry.difference(baseline, measures[0]) for entry in entries if measures):
        baseline = None
    header = ["arm", "stage", "seeds"]
    for measure in measures:
        header += [label(measure), *([f"− {baseline.arm}"] if baseline else [])]
    table = []
    for entry in entries:
        cells = [entry.arm, entry.place.stage or "–", str(len(entry.results))]
        for measure in measures:
            cells.append(_cell(entry.interval(measure)))
            if baseline:
                cells.append(_cell(entry.difference(baseline, measure), sign=True))
        table.append(cells)
    return header, table


def title(findings: Findings, number: int) -> str:
    """What a stage's table is of."""
    result = next(iter(findings.shown(number)[0].results.values()))
    what = f"After stage {number}" if number else "The initial policy"
    problems, samples = counted(len(result.problem_ids), "problem"), counted(result.samples, "sample")
    return f"{what}: {problems}, {samples} each, %, 95 % intervals"


def rich_table(findings: Findings, number: int, measure: str) -> Table:
    """A stage's table for the console, which has no room for more than one measure."""
    header, body = rows(findings, number, [measure])
    table = Table(title=title(findings, number), title_justify="left")
    for place, column in enumerate(header):
        table.add_column(column, justify="left" if place < 2 else "right")
    for cells in body:
        table.add_row(*cells)
    return table


def markdown(findings: Findings, failures: Sequence[str]) -> str:
    """What `study.md` holds."""
    plan = findings.plan
    text = [f"# {plan.file.stem}", ""]
    for number in table_numbers(findings):
        header, body = rows(findings, number, measures_of(findings, number))
        text += [f"## {title(findings, number)}", "", _line(header), _line(["---"] * 2 + ["---:"] * (len(header) - 2))]
        text += [*map(_line, body), ""]
        for measure in measures_of(findings, number):
            text += matrix(findings, number, measure)
    text += [
        "Means over seeds and problems. An interval is the wider reach of two: weights drawn for both, with one more "
        "problem at either end of what can be, and, with more than one seed, Student's t over the seeds' means. A "
        "difference is paired, seed by seed and problem by problem.",
        "",
    ]
    if findings.chosen:
        tune = plan.study.tune
        assert tune is not None
        text += [f"## {tune.key}, chosen by {tune.measure} on seeds {', '.join(map(str, tune.seeds))}", ""]
        text += [_line(["stage", "chosen", *map(str, tune.values)]), _line(["---"] + ["---:"] * (len(tune.values) + 1))]
        for place, means in findings.tuning().items():
            shown = (f"{100 * mean:.1f}" for mean in means.values())
            text.append(_line([place, str(findings.chosen[place]), *shown]))
        text += [""]
    if failures:
        text += ["## Not finished", "", *(f"- {name}" for name in failures), ""]
    return "\n".join(text)


def matrix(findings: Findings, number: int, measure: str) -> list[str]:
    """The lines of a table of all paired differences, row minus column; none for a single arm."""
    found = {(one, other): difference for one, other, difference in findings.pairs(number, measure)}
    arms = [entry.arm for entry in findings.shown(number)]
    if not found:
        return []
    body = [_line([f"**{one}**", *(_cell(found.get((one, other)), sign=True) for other in arms)]) for one in arms]
    name = label(measure)
    return [f"{name}, row − column:", "", _line(["", *arms]), _line(["---"] + ["---:"] * len(arms)), *body, ""]


def table_numbers(findings: Findings) -> list[int]:
    """The stages that get a table: all of them, or the initial policy where nothing else is."""
    return [number for number in findings.stages if number] or list(findings.stages)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(interval: Interval | None, *, sign: bool = False) -> str:
    if interval is None:
        return "–"
    form = "+z.1f" if sign else "z.1f"  # z: no negative zero
    mean, low, high = (format(100 * value, form) for value in (interval.mean, interval.low, interval.high))
    return f"{mean} ({low} to {high})"


def _json(interval: Interval) -> dict[str, Any]:
    return {"mean": interval.mean, "interval_95": [interval.low, interval.high]}
