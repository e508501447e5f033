"""A calibration's table: figures of each judge on labelled rollouts, with intervals over problems."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from rich.table import Table

from exprl.evaluation import calibration as figures
from exprl.evaluation.intervals import Interval
from exprl.evaluation.localisation import Graded, late_gain, localisation_error, prefixes_of
from exprl.rewards.normalization import normalize
from exprl.study.calibration import Calibration

MEASURES = {
    "misplacement": "misplaced",
    "auroc": "AUROC",
    "calibration_error": "ECE",
    "prefix_auroc": "AUROC, error in prefix",
    "localisation_error": "off by",
    "late_gain": "late gain",
}
"""Key to heading."""
SHARES = {"misplacement", "localisation_error", "late_gain"}
"""Printed in percent."""
EVERYTHING = "all"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table: a judge, what it sees, the domain; how many rollouts count and failed; the measures."""

    judge: str
    reference: str
    domain: str
    rollouts: int
    right: int
    failed: int
    measures: Mapping[str, Interval]

    def to_json(self) -> dict[str, Any]:
        """Plain values; what cannot be said is null."""
        measures = {name: {key: _or_none(value) for key, value in vars(m).items()} for name, m in self.measures.items()}
        return {**vars(self), "measures": measures}


def at_random(arms: Sequence[Sequence[Graded]], seed: int) -> list[Graded]:
    """The rollouts of the arm that has most, each score one of 1..5."""
    generator = np.random.default_rng(seed)
    longest = max(arms, key=len)
    return [
        replace(one, scores=tuple(generator.integers(1, 6, size=len(one.scores)).astype(float).tolist()))
        for one in longest
    ]


# ------------------------------------------------------------------ figures


def rows_of(judge: str, reference: str, rollouts: Sequence[Graded], failed: int, options: Calibration) -> Iterator[Row]:
    """One row of all, and one of each domain where there are several."""
    domains = sorted({one.domain for one in rollouts})
    for domain in [EVERYTHING, *(domains if len(domains) > 1 else [])]:
        own = [one for one in rollouts if domain in (EVERYTHING, one.domain)]
        yield Row(
            judge=judge,
            reference=reference,
            domain=domain,
            rollouts=len(own),
            right=sum(bool(one.correct) for one in own),
            failed=failed if domain == EVERYTHING else 0,
            measures=measured(own, seed=options.seed, resamples=options.resamples),
        )


def measured(rollouts: Sequence[Graded], *, seed: int, resamples: int) -> dict[str, Interval]:
    """Every measure with its interval; those of process judges where rollouts have several segments."""

    def of(figure: Callable[..., Any], problems: Sequence[str], *arrays: Any) -> Interval:
        return figures.bootstrapped(partial(figure, *arrays), problems, seed=seed, resamples=resamples)

    problems = [one.problem_id for one in rollouts]
    scores = np.array([one.scores[-1] for one in rollouts], dtype=float)
    confidence = np.array([normalize(score, "smooth") for score in scores], dtype=float)
    correct = np.array([bool(one.correct) for one in rollouts], dtype=bool)
    found = {
        "misplacement": of(figures.misplacement, problems, scores, correct),
        "auroc": of(figures.auroc, problems, scores, correct),
        "calibration_error": of(figures.calibration_error, problems, confidence, correct),
    }
    wrong = [one for one in rollouts if one.first_wrong is not None]
    if wrong:
        prefixes = prefixes_of(rollouts)
        off = np.array([localisation_error(one) for one in wrong])
        late = [(one.problem_id, share) for one in wrong if (share := late_gain(one)) is not None]
        found["prefix_auroc"] = of(figures.auroc, prefixes.problems, -prefixes.scores, prefixes.wrong)
        found["localisation_error"] = of(figures.mean, [one.problem_id for one in wrong], off)
        found["late_gain"] = of(figures.mean, [name for name, _ in late], np.array([share for _, share in late]))
    return found


# ------------------------------------------------------------------ the table


def table_of(rows: Sequence[Row]) -> Table:
    """Rows as a person reads them."""
    table = Table(title="judges on labelled rollouts, 95 % intervals over problems", title_justify="left")
    for heading in ("judge", "reference", "domain", "right of"):
        table.add_column(heading)
    shown = _shown(rows)
    for name in shown:
        table.add_column(MEASURES[name], justify="right")
    for row in rows:
        table.add_row(*_cells(row), *(text_of(name, row.measures.get(name)) for name in shown))
    return table


def markdown(rows: Sequence[Row]) -> str:
    """The same as a page."""
    shown = _shown(rows)
    headings = ["judge", "reference", "domain", "right of", *(MEASURES[name] for name in shown)]
    lines = [headings, ["---"] * len(headings)]
    lines += [[*_cells(row), *(text_of(name, row.measures.get(name)) for name in shown)] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def text_of(name: str, interval: Interval | None) -> str:
    """A measure with its interval.

    >>> text_of("auroc", Interval(low=0.5, high=0.75, mean=0.625))
    '0.62 (0.50 to 0.75)'
    """
    if interval is None or math.isnan(interval.mean):
        return "–"
    scale, form = (100, ".1f") if name in SHARES else (1, ".2f")
    mean, low, high = (format(scale * value, form) for value in (interval.mean, interval.low, interval.high))
    return f"{mean}{' %' if name in SHARES else ''} ({low} to {high})"


def _shown(rows: Sequence[Row]) -> list[str]:
    return [name for name in MEASURES if any(name in row.measures for row in rows)]


def _cells(row: Row) -> list[str]:
    failed = f", {row.failed} failed" if row.failed else ""
    return [row.judge, row.reference, row.domain, f"{row.right} of {row.rollouts}{failed}"]


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
