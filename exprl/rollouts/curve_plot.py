"""Some curves of scores over tokens, in one figure."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import TYPE_CHECKING

from exprl.rollouts.curves import RolloutCurve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 3
SHOWN = 12


def chosen(labelled: Sequence[bool]) -> list[int]:
    """The places of `SHOWN` curves at most, evenly from all: from those whose first wrong step is known, if any is.

    >>> chosen([False, True, False, True])
    [1, 3]
    """
    places = [place for place, known in enumerate(labelled) if known] or list(range(len(labelled)))
    count = min(SHOWN, len(places))
    return [places[number * len(places) // count] for number in range(count)]


def curves_figure(curves: Sequence[RolloutCurve]) -> Figure:
    """Score against token of each, with the segments' bounds and where the first wrong step begins.

    Raises:
        ImportError: there is no matplotlib.
    """
    from matplotlib.figure import Figure

    rows = max(ceil(len(curves) / COLUMNS), 1)
    figure = Figure(figsize=(4 * COLUMNS, 2.2 * rows), layout="constrained")
    for place, one in enumerate(curves, start=1):
        _draw(figure.add_subplot(rows, COLUMNS, place), one)
    handles = {
        label: line for axes in figure.axes for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if handles:
        figure.legend(
            handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), fontsize="small"
        )
    return figure


def _draw(axes: Axes, one: RolloutCurve) -> None:
    for number, end in enumerate(one.segments[:-1]):
        axes.axvline(end, color="grey", linewidth=0.8, linestyle=":", label=None if number else "end of a segment")
    if one.first_error is not None:
        axes.axvline(one.first_error, color="tab:red", linewidth=1, label="first wrong step")
    known = [(end, score) for end, score in zip(one.curve.ends, one.curve.scores, strict=True) if score is not None]
    axes.plot([end for end, _ in known], [score for _, score in known], marker=".", markersize=4, label="score")
    axes.set(xlim=(0, one.tokens), ylim=(0.9, 5.1), yticks=range(1, 6))
    said = {True: ", right", False: ", wrong", None: ""}[one.label.correct]
    axes.set_title(f"{one.problem_id} ({one.place}){said}", fontsize="small")
