"""Tables of figures with intervals, as a person reads them on a terminal or on a page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.measure import Measurement
from rich.table import Table

from exprl.evaluation.intervals import Interval
from exprl.terminal.console import Console

Form = Literal["number", "percent", "signed", "signed percent"]
_SCALES: Mapping[Form, tuple[float, str, str]] = {
    "number": (1, ".2f", ""),
    "percent": (100, ".1f", " %"),
    "signed": (1, "+.2f", ""),
    "signed percent": (100, "+.1f", " %"),
}


UNSAID, ALIKE = "–", "(all)"
"""What stands for a figure that cannot be said, and for an interval where all are the same."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """A figure: its key in JSON files, its heading, and how it is written."""

    key: str
    heading: str
    form: Form = "number"


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of a table: what it is about, and its figures by the columns' keys."""

    about: tuple[str, ...]
    figures: Mapping[str, Interval]


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A table.

    Attributes:
        title: above it.
        about: headings of what lines are about.
        columns: the figures; one that no line has is left out.
        lines: from the top.
        unsaid: what – stands for in it.
    """

    title: str
    about: tuple[str, ...]
    columns: Sequence[Column]
    lines: Sequence[Line]
    unsaid: str = "cannot be said of these rollouts"

    @property
    def shown(self) -> list[Column]:
        """The columns that some line has."""
        return [column for column in self.columns if any(column.key in line.figures for line in self.lines)]

    def notes(self, *, intervals: bool = True) -> list[str]:
        """What the marks in it mean, as far as it has them: they stand below it."""
        marks = {ALIKE: "the same for every problem, which says nothing of how far others would differ"}
        marks = {**(marks if intervals else {}), UNSAID: self.unsaid}
        cells = [self._cell(line, column, " ") for line in self.lines for column in self.shown]
        return [
            f"{mark}: {meaning}" for mark, meaning in marks.items() if any(mark in cell.split(" ") for cell in cells)
        ]

    def table(self, *, intervals: bool = True) -> Table:
        """For a terminal."""
        table = Table(title=self.title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        for heading in self.about:
            table.add_column(heading, overflow="fold", min_width=7)
        for column in self.shown:
            table.add_column(column.heading.replace(" ", "\n"), justify="right", no_wrap=True)
        for line in self.lines:
            table.add_row(*line.about, *(self._cell(line, column, "\n" if intervals else "") for column in self.shown))
        return table

    def show(self, console: Console) -> None:
        """Print it: without intervals on a terminal that is too narrow for them, and as wide as it is into a file."""
        table = self.table()
        width = _width(table, console)
        if not console.is_terminal:
            console.width = max(console.width, width)
        fits = width <= console.width
        console.print(table if fits else self.table(intervals=False))
        for note in self.notes(intervals=fits):
            console.say(note)
        if not fits:
            console.say(f"the intervals need a terminal of {width} columns, or stand in the files")

    def markdown(self) -> str:
        """For a page."""
        headings = [*self.about, *(column.heading for column in self.shown)]
        marks = [*["---"] * len(self.about), *["---:"] * len(self.shown)]
        rows = [[*line.about, *(self._cell(line, column, " ") for column in self.shown)] for line in self.lines]
        table = "".join(f"| {' | '.join(row)} |\n" for row in (headings, marks, *rows))
        return "\n".join([table, *(f"{note}\n" for note in self.notes())])

    @staticmethod
    def _cell(line: Line, column: Column, between: str) -> str:
        text = text_of(line.figures.get(column.key), column.form, between or "\n")
        return text if between else text.partition("\n")[0]


def _width(table: Table, console: Console) -> int:
    unbounded = console.options.update(max_width=10_000)
    return max(Measurement.get(console, unbounded, table).maximum, len(str(table.title)))


def text_of(interval: Interval | None, form: Form, between: str = " ") -> str:
    """A figure with its interval, if it has one.

    >>> text_of(Interval(low=0.5, high=0.75, mean=0.625), "number")
    '0.62 (0.50 to 0.75)'
    >>> text_of(Interval(low=float("nan"), high=float("nan"), mean=0.0), "signed")
    '+0.00 (all)'
    """
    if interval is None or math.isnan(interval.mean):
        return UNSAID
    scale, digits, unit = _SCALES[form]
    mean, low, high = (format(scale * value + 0.0, digits) for value in (interval.mean, interval.low, interval.high))
    width = ALIKE if math.isnan(interval.low) else f"({low} to {high})"
    return f"{mean}{unit}{between}{width}"


def plain(interval: Interval) -> dict[str, float | None]:
    """For a JSON file; what cannot be said is null.

    >>> plain(Interval(low=float("nan"), high=float("nan"), mean=0.5))
    {'low': None, 'high': None, 'mean': 0.5}
    """
    return {name: None if math.isnan(value) else value for name, value in vars(interval).items()}


def to_json(figures: Mapping[str, Interval], **about: Any) -> dict[str, Any]:
    """A line of a JSON file: what it is about, and its figures."""
    return {**about, "measures": {name: plain(interval) for name, interval in figures.items()}}
