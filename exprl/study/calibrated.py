"""What a calibration found: figures of each judge on labelled rollouts, with intervals over problems."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from exprl.evaluation import calibration as figures
from exprl.evaluation.bootstrap import Figure, interval_of
from exprl.evaluation.intervals import Interval
from exprl.evaluation.localisation import (
    Graded,
    is_flat,
    late_gain,
    localisation_error,
    prefixes_of,
    tells_places,
)
from exprl.rewards.normalization import normalize
from exprl.study.calibration import Calibration
from exprl.study.sheets import Column, Line, Sheet, to_json

COLUMNS = (
    Column(key="misplacement", heading="misplaced", form="percent"),
    Column(key="auroc", heading="AUROC"),
    Column(key="calibration_error", heading="ECE"),
    Column(key="prefix_auroc", heading="AUROC, error in prefix"),
    Column(key="localisation_error", heading="off by", form="percent"),
    Column(key="late_gain", heading="late gain", form="percent"),
    Column(key="flat", heading="flat", form="percent"),
)
EVERYTHING = "all"
AT_RANDOM = 2_000
"""Rollouts scored at random: the standard error of their AUROC is about 0.013."""

Arms = Mapping[tuple[str, str], Sequence[Graded]]
"""Judge and reference to the rollouts that it graded."""


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
        return to_json(self.measures, **{name: value for name, value in vars(self).items() if name != "measures"})


def at_random(arms: Sequence[Sequence[Graded]], seed: int) -> list[Graded]:
    """The rollouts that any arm has, each score one of 1..5.

    Each is drawn as often as makes `AT_RANDOM` of them: what one draw says of few rollouts is luck.
    """
    generator = np.random.default_rng(seed)
    every = {one.place: one for arm in arms for one in arm}
    return [
        replace(every[place], scores=tuple(map(float, generator.integers(1, 6, size=len(every[place].scores)))))
        for place in sorted(every)
        for _ in range(math.ceil(AT_RANDOM / len(every)))
    ]


def places_in(rollouts: Sequence[Graded]) -> int:
    """How many rollouts they are: one that was scored at random is there more than once."""
    return len({one.place for one in rollouts})


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
            rollouts=places_in(own),
            right=places_in([one for one in own if one.correct]),
            failed=failed if domain == EVERYTHING else 0,
            measures=measured(own, seed=options.seed, resamples=options.resamples),
        )


def measured(rollouts: Sequence[Graded], *, seed: int, resamples: int) -> dict[str, Interval]:
    """Every measure with its interval; those of process judges where rollouts have several segments."""

    def of(figure: Figure, problems: Sequence[str], *columns: Any) -> Interval:
        return interval_of(figure, columns, problems, seed=seed, resamples=resamples)

    problems = [one.problem_id for one in rollouts]
    scores = np.array([one.scores[-1] for one in rollouts], dtype=float)
    confidence = np.array([normalize(score, "smooth") for score in scores], dtype=float)
    correct = np.array([bool(one.correct) for one in rollouts], dtype=bool)
    found = {
        "misplacement": of(figures.MISPLACEMENT, problems, scores, correct),
        "auroc": of(figures.AUROC, problems, scores, correct),
        "calibration_error": of(figures.CALIBRATION_ERROR, problems, confidence, correct),
    }
    wrong = [(one, one.first_wrong) for one in rollouts if one.first_wrong is not None]
    if wrong:
        prefixes = prefixes_of(rollouts)
        placed = wrong if tells_places(rollouts) else []
        off = [localisation_error(one.scores, first) for one, first in placed]
        late = [(one.problem_id, share) for one, at in wrong if (share := late_gain(one.scores, at)) is not None]
        found["prefix_auroc"] = of(figures.AUROC, prefixes.problems, -prefixes.scores, prefixes.wrong)
        found["localisation_error"] = of(figures.SHARE, [one.problem_id for one, _ in placed], off)
        found["late_gain"] = of(figures.SHARE, [name for name, _ in late], [share for _, share in late])
        found["flat"] = of(
            figures.SHARE, [one.problem_id for one, _ in wrong], [is_flat(one.scores) for one, _ in wrong]
        )
    return found


# ------------------------------------------------------------------ the table


def sheet_of(rows: Sequence[Row]) -> Sheet:
    """Rows as a table; domains where there are several."""
    domains = any(row.domain != EVERYTHING for row in rows)
    return Sheet(
        title="judges on labelled rollouts, 95 % intervals over problems",
        about=("judge", "reference", *(["domain"] if domains else []), "right of"),
        columns=COLUMNS,
        unsaid="all are right, or all wrong; off by: the score is the same everywhere; late gain: it stays at 1",
        lines=[
            Line(
                about=(row.judge, row.reference, *([row.domain] if domains else []), _counts(row)), figures=row.measures
            )
            for row in rows
        ],
    )


def _counts(row: Row) -> str:
    return f"{row.right} of {row.rollouts}" + (f", {row.failed} failed" if row.failed else "")
