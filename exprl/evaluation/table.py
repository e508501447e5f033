"""Before and after as a table, with the paired interval of the difference."""

from __future__ import annotations

from rich.table import Table

from exprl.evaluation.evaluate import EvaluationResult
from exprl.evaluation.intervals import Interval, interval_95, paired_interval_95
from exprl.terminal.wording import counted


def differences(before: EvaluationResult, after: EvaluationResult) -> dict[str, Interval]:
    """The paired 95 % interval over problems of `after - before`, for each measure."""
    return {name: paired_interval_95(before.per_problem(name), after.per_problem(name)) for name in before.measures}


def comparison_table(before: EvaluationResult, after: EvaluationResult) -> Table:
    """Each measure before, after, and its paired difference."""
    title = f"{counted(len(before.problem_ids), 'held-out problem')}, {counted(before.samples, 'sample')} each"
    table = Table(title=title, title_justify="left")
    for column in ("", "before", "after", "difference (paired 95 %)"):
        table.add_column(column, justify="right" if column else "left")
    for name, difference in differences(before, after).items():
        table.add_row(
            label(name),
            _percent(before.per_problem(name).mean()),
            _percent(after.per_problem(name).mean()),
            f"{100 * difference.mean:+z.1f} ({100 * difference.low:+z.1f} to {100 * difference.high:+z.1f})",
        )
    return table


def result_table(result: EvaluationResult, title: str) -> Table:
    """Each measure with its 95 % interval over problems."""
    title = f"{title}: {counted(len(result.problem_ids), 'problem')}, {counted(result.samples, 'sample')} each"
    table = Table(title=title, title_justify="left")
    for column in ("", "value", "95 % interval"):
        table.add_column(column, justify="right" if column else "left")
    for name in result.measures:
        interval = interval_95(result.per_problem(name))
        value = _percent(result.per_problem(name).mean())
        table.add_row(label(name), value, f"{100 * interval.low:z.1f} to {100 * interval.high:z.1f}")
    return table


LABELS = {"progress": "reference steps reached"}


def label(measure: str) -> str:
    """A measure as tables name it.

    >>> label("pass@1"), label("progress/math")
    ('pass@1', 'reference steps reached, math')
    """
    name, _, domain = measure.partition("/")
    return f"{LABELS.get(name, name)}{f', {domain}' if domain else ''}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"
