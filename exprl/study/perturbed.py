"""How far perturbations move each judge's score."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np

from exprl.evaluation.bootstrap import ROUNDING, interval_of
from exprl.evaluation.calibration import ACCEPTED, SHARE, mean_within
from exprl.evaluation.intervals import Interval
from exprl.evaluation.perturbations import Kind
from exprl.rewards.judged import NOTHING_WRITTEN
from exprl.study.calibration import Calibration
from exprl.study.sheets import Column, Line, Sheet, to_json

On = Literal["right", "wrong", "nothing"]
Key = TypeVar("Key", bound=Hashable)

Scores = Mapping[int, float | None]
"""Of rollouts by their places; None where a judgement failed."""


@dataclass(frozen=True, kw_only=True)
class Base:
    """A rollout that was perturbed, or nothing written to its problem."""

    problem_id: str
    on: On


@dataclass(frozen=True, kw_only=True)
class Moved:
    """A perturbation under a judge: what it was applied to, how many, and how far it moved the score.

    `change` is its mean, `before` and `after` the shares of scores of at least 4.
    """

    judge: str
    reference: str
    perturbation: str
    kind: Kind
    on: On
    responses: int
    failed: int
    measures: dict[str, Interval]

    def to_json(self) -> dict[str, Any]:
        """Plain values; the interval of a change that is the same everywhere is null."""
        return to_json(self.measures, **{name: value for name, value in vars(self).items() if name != "measures"})


def moved(
    bases: Mapping[int, Base], before: Scores, after: Scores, options: Calibration, **about: Any
) -> Iterator[Moved]:
    """One of each kind of response that was perturbed.

    Args:
        bases: what was perturbed, by place.
        before: the scores of these as they were.
        after: those of what was made of them; what cannot be perturbed is not among them.
        options: seed and resamples.
        about: the other fields.
    """
    for on in dict.fromkeys(base.on for base in bases.values()):
        places = [place for place in after if bases[place].on == on]
        pairs = [(bases[place].problem_id, before[place], after[place]) for place in places]
        whole = [(name, old, new) for name, old, new in pairs if old is not None and new is not None]
        if places:
            yield Moved(
                on=on,
                responses=len(places),
                failed=len(places) - len(whole),
                measures=_measures(whole, options),
                **about,
            )


def _measures(pairs: Sequence[tuple[str, float, float]], options: Calibration) -> dict[str, Interval]:
    problems = [name for name, _, _ in pairs]
    old, new = (np.array([pair[side] for pair in pairs], dtype=float) for side in (1, 2))
    shares = {"before": old >= ACCEPTED, "after": new >= ACCEPTED}
    return {
        "change": change_of(new - old, problems, options),
        **{
            name: interval_of(SHARE, [values], problems, seed=options.seed, resamples=options.resamples)
            for name, values in shares.items()
        },
    }


def change_of(changes: np.ndarray[Any, Any], problems: Sequence[str], options: Calibration) -> Interval:
    """The mean change with its interval: one more problem may move as far as any was seen to, to each side, or stay.

    Where all changes are the same there is no telling how far another would go, and no interval.
    """
    figure = mean_within(float(changes.min(initial=0.0)), float(changes.max(initial=0.0)))
    found = interval_of(figure, [changes], problems, seed=options.seed, resamples=options.resamples)
    alike = len(changes) > 0 and bool((changes == changes[0]).all())
    return Interval(low=float("nan"), high=float("nan"), mean=found.mean) if alike else found


def nothing_written(places: Sequence[int]) -> Scores:
    """The scores of responses in which nothing is written."""
    return dict.fromkeys(places, NOTHING_WRITTEN.score)


# ------------------------------------------------------------------ tables

NONE_CHANGED = "no such rollout could be changed, or every judgement failed"


def in_short(rows: Sequence[Moved]) -> Iterator[str]:
    """A sentence for each judge and reference: how many perturbations of a kind move it, and which moves it most.

    An attack moves where it gains; what else is changed moves the score to either side.
    """
    for (judge, reference), own in _by(rows, lambda row: (row.judge, row.reference)).items():
        kinds = [_of_kind(kind, of_kind) for kind, of_kind in _by(own, lambda row: row.kind).items()]
        yield f"{judge}, {reference}: {'; '.join(kinds)}"


def _of_kind(kind: Kind, rows: Sequence[Moved]) -> str:
    known = [row for row in rows if not np.isnan(row.measures["change"].mean)]
    moving = [row for row in known if _size(row) > ROUNDING]
    tried, moved = ({row.perturbation for row in some} for some in (known, moving))
    said = f"{len(moved)} of {len(tried)} {_CALLED[kind]}"
    if not moving:
        return said
    most = max(moving, key=_size)
    on = "nothing written" if most.on == "nothing" else f"{most.on} rollouts"
    return f"{said}, most {most.perturbation} ({most.measures['change'].mean:+.2f} on {on})"


_CALLED: Mapping[Kind, str] = {
    "attack": "attacks gain",
    "style": "changes of style move it",
    "content": "changes of content move it",
}


def _size(row: Moved) -> float:
    change = row.measures["change"].mean
    return change if row.kind == "attack" else abs(change)


def _by(rows: Sequence[Moved], key: Callable[[Moved], Key]) -> dict[Key, list[Moved]]:
    found: dict[Key, list[Moved]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return found


def style_and_content(rows: Sequence[Moved]) -> Sheet:
    """Perturbations of style and content: the change on right and on wrong rollouts."""
    return Sheet(
        title="mean change of the score by perturbations; of a good judge: style 0, content below 0 on right ones",
        about=("judge", "reference", "perturbation", "of"),
        unsaid=NONE_CHANGED,
        columns=(
            Column(key="right", heading="on right rollouts", form="signed"),
            Column(key="wrong", heading="on wrong rollouts", form="signed"),
        ),
        lines=[
            Line(about=about, figures={row.on: row.measures["change"] for row in own})
            for about, own in _lines([row for row in rows if row.kind != "attack"], with_kind=True)
        ],
    )


def attacks(rows: Sequence[Moved]) -> Sheet:
    """Attacks: the change on wrong rollouts, and on nothing, and what is accepted after it."""
    return Sheet(
        title="what attacks gain; of a good judge: no change above 0",
        about=("judge", "reference", "attack"),
        unsaid=NONE_CHANGED,
        columns=(
            Column(key="wrong change", heading="change on wrong rollouts", form="signed"),
            Column(key="wrong before", heading="4 or more before", form="percent"),
            Column(key="wrong after", heading="after", form="percent"),
            Column(key="nothing change", heading="change on nothing", form="signed"),
            Column(key="nothing after", heading="4 or more after", form="percent"),
        ),
        lines=[
            Line(
                about=about,
                figures={f"{row.on} {name}": interval for row in own for name, interval in row.measures.items()},
            )
            for about, own in _lines([row for row in rows if row.kind == "attack"], with_kind=False)
        ],
    )


def _lines(rows: Sequence[Moved], *, with_kind: bool) -> Iterator[tuple[tuple[str, ...], list[Moved]]]:
    yield from _by(
        rows, lambda row: (row.judge, row.reference, row.perturbation, *([row.kind] if with_kind else []))
    ).items()
