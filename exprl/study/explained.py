"""How much of each judge's scores the surface of a response explains, with correctness held fixed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from exprl.evaluation import surface as figures
from exprl.evaluation.bootstrap import FEWEST, Figure, interval_of
from exprl.evaluation.intervals import Interval
from exprl.evaluation.localisation import Graded, prefixes_of
from exprl.study.calibrated import Arms
from exprl.study.calibration import CHANCE, Calibration
from exprl.study.sheets import Column, Line, Sheet, to_json

POSITION, EXPLAINED = "position", "explained"
COLUMNS = (
    *(Column(key=name, heading=name, form="signed") for name in figures.FEATURES),
    Column(key=POSITION, heading="place", form="signed"),
    Column(key=EXPLAINED, heading="R²", form="signed"),
)


@dataclass(frozen=True, kw_only=True)
class Explained:
    """A judge with what it sees: partial rank correlations of its score with each feature, and R².

    `position` is of prefixes: their share of the rollout, with whether they contain the first error held fixed.
    """

    judge: str
    reference: str
    rollouts: int
    measures: dict[str, Interval]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return to_json(self.measures, judge=self.judge, reference=self.reference, rollouts=self.rollouts)


def explained_of(arms: Arms, options: Calibration) -> Iterator[Explained]:
    """One of each judge and reference; what is scored at random goes with nothing."""
    for (judge, reference), rollouts in arms.items():
        if rollouts and judge != CHANCE:
            measures = explained(rollouts, seed=options.seed, resamples=options.resamples)
            yield Explained(judge=judge, reference=reference, rollouts=len(rollouts), measures=measures)


def explained(rollouts: Sequence[Graded], *, seed: int, resamples: int) -> dict[str, Interval]:
    """The figures of one judge."""

    def of(figure: Figure, problems: Sequence[str], *columns: Any) -> Interval:
        return interval_of(figure, columns, problems, seed=seed, resamples=resamples)

    problems = [one.problem_id for one in rollouts]
    scores = np.array([one.scores[-1] for one in rollouts], dtype=float)
    correct = np.array([bool(one.correct) for one in rollouts], dtype=float)
    features = figures.features_of([one.text for one in rollouts])
    found = {
        name: of(figures.PARTIAL_RANK_CORRELATION, problems, values, scores, correct)
        for name, values in zip(figures.FEATURES, features.T, strict=True)
    }
    prefixes = prefixes_of(rollouts)
    if len(set(prefixes.positions)) > 1:
        own = (prefixes.positions, prefixes.scores, prefixes.wrong)
        found[POSITION] = of(figures.PARTIAL_RANK_CORRELATION, prefixes.problems, *own)
    left = figures.residuals(features, scores, correct, problems, seed)
    return {**found, EXPLAINED: of(figures.EXPLAINED_VARIANCE, problems, *left)}


def sheet_of(rows: Sequence[Explained]) -> Sheet:
    """Rows as a table."""
    return Sheet(
        title="rank correlation of the score with the response's surface, correctness held fixed",
        about=("judge", "reference"),
        columns=COLUMNS,
        unsaid=f"fewer than {FEWEST} problems, or the score or the feature is the same everywhere",
        lines=[Line(about=(row.judge, row.reference), figures=row.measures) for row in rows],
    )
