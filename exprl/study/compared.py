"""Judges compared pairwise, on the rollouts that both have graded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from exprl.evaluation import agreement as figures
from exprl.evaluation.bootstrap import FEWEST, Figure, interval_of
from exprl.evaluation.intervals import Interval
from exprl.evaluation.localisation import Graded
from exprl.study.calibrated import Arms
from exprl.study.calibration import CHANCE, Calibration
from exprl.study.sheets import Column, Line, Sheet, to_json

COLUMNS = (
    Column(key="agreement", heading="agree", form="percent"),
    Column(key="kappa", heading="kappa", form="signed"),
    Column(key="spearman", heading="rho", form="signed"),
    Column(key="kendall", heading="tau", form="signed"),
    Column(key="auroc_difference", heading="AUROC, less", form="signed"),
    Column(key="misplacement_difference", heading="misplaced, less", form="signed percent"),
)

ArmName = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two judges, each with what it sees of the references; on how many rollouts they are compared; the measures.

    Differences are those of the first less the second, in each resample with the same weights.
    """

    first: ArmName
    second: ArmName
    rollouts: int
    measures: dict[str, Interval]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        named = {"first": self.first, "second": self.second}
        about = {name: {"judge": judge, "reference": reference} for name, (judge, reference) in named.items()}
        return to_json(self.measures, **about, rollouts=self.rollouts)


def pairs_of(arms: Arms, options: Calibration) -> Iterator[Pair]:
    """Every two that are the same judge or see the same of the references; chance is compared with nobody."""
    for first, second in combinations([name for name in arms if name[0] != CHANCE], 2):
        if first[0] == second[0] or first[1] == second[1]:
            yield pair_of(first, second, arms[first], arms[second], options)


def pair_of(
    first: ArmName, second: ArmName, one: Sequence[Graded], other: Sequence[Graded], options: Calibration
) -> Pair:
    """Two judges on the rollouts of which both have a score: a judgement that failed takes out its own alone."""
    by_place = {graded.place: graded for graded in other}
    both = [(graded, by_place[graded.place]) for graded in one if graded.place in by_place]
    problems = [graded.problem_id for graded, _ in both]
    scores = [np.array([pair[side].scores[-1] for pair in both], dtype=float) for side in (0, 1)]
    correct = np.array([bool(graded.correct) for graded, _ in both], dtype=float)

    def of(figure: Figure, *columns: Any) -> Interval:
        return interval_of(figure, columns, problems, seed=options.seed, resamples=options.resamples)

    return Pair(
        first=first,
        second=second,
        rollouts=len(both),
        measures={
            "agreement": of(figures.AGREEMENT, *scores),
            "kappa": of(figures.KAPPA, *scores),
            "spearman": of(figures.SPEARMAN, *scores),
            "kendall": of(figures.KENDALL, *scores),
            "auroc_difference": of(figures.AUROC_DIFFERENCE, *scores, correct),
            "misplacement_difference": of(figures.MISPLACEMENT_DIFFERENCE, *scores, correct),
        },
    )


def sheet_of(pairs: Sequence[Pair]) -> Sheet:
    """Pairs as a table."""
    return Sheet(
        title="judges compared on what both graded: kappa, Spearman's rho, Kendall's tau; first less second",
        about=("first", "second", "rollouts"),
        columns=COLUMNS,
        unsaid=f"fewer than {FEWEST} problems, or a judge has one score for all (kappa: both accept all, or none)",
        lines=[
            Line(about=(", ".join(pair.first), ", ".join(pair.second), str(pair.rollouts)), figures=pair.measures)
            for pair in pairs
        ],
    )
