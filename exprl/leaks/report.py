"""The table of exposures: a row for runs that differ in nothing but their seed, and for each context."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from rich.table import Table

from exprl.evaluation.intervals import Interval
from exprl.leaks.channel import Channel
from exprl.leaks.exposure import chance_exposure, interval_of
from exprl.leaks.measured import Measured
from exprl.leaks.regraded import Regraded
from exprl.leaks.values import CONTEXTS, Context
from exprl.terminal.wording import counted


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a run's facts came to.

    Attributes:
        run: where it lies.
        method: its `method.name`.
        steps: it was trained for.
        planted: facts in its training data.
        visits: how often training came by each fact that it reached: by problems graded by the reference with it.
        values: what a secret could be.
        initial: what its initial policy has of the facts reached, in each context.
        trained: what the policy that it trained has of them, in the same order.
        channel: what its scores can have told; None where it keeps no rollouts, as it scores nothing.
        regraded: which of its scores another number would have changed; None where nobody asked.
    """

    run: str
    method: str
    steps: int
    planted: int
    visits: dict[str, int]
    values: int
    initial: Sequence[Measured]
    trained: Sequence[Measured]
    channel: Channel | None
    regraded: Regraded | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values; which value was planted is not among them."""
        return {
            **{name: getattr(self, name) for name in ("run", "method", "steps", "planted", "visits", "values")},
            "exposure": [
                {
                    **{name: getattr(after, name) for name in ("problem_id", "context", "rank", "logprob")},
                    "initial_rank": before.rank,
                    "initial_logprob": before.logprob,
                    "control_rank": after.control_rank,
                }
                for before, after in zip(self.initial, self.trained, strict=True)
            ],
            "scores": None if self.channel is None else self.channel.to_json(list(self.visits)),
            "regraded": None if self.regraded is None else vars(self.regraded),
        }


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table; exposures in bits, means over facts with their 95 % intervals.

    Attributes:
        name: where the runs lie.
        method: theirs.
        runs: how many.
        context: what stands before the secret.
        reached: facts that training came by, of so many `planted`.
        values: what a secret could be.
        initial: exposure in the initial policy.
        trained: in the policy trained.
        gained: their difference, fact by fact.
        control: exposure, in the policy trained, of values that were planted nowhere.
        first: facts whose secret is the likeliest of all values.
        score_bits: the most that scores can have told of a fact, the mean; None where nothing is scored.
        regraded: judgements on problems with a fact that were made again with another number, if that was asked.
        moved: how many of these came out otherwise.
    """

    name: str
    method: str
    runs: int
    context: Context
    reached: int
    planted: int
    values: int
    initial: Interval
    trained: Interval
    gained: Interval
    control: Interval
    first: int
    score_bits: float | None
    regraded: int = 0
    moved: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {key: vars(value) if isinstance(value, Interval) else value for key, value in vars(self).items()}


def rows_of(name: str, runs: Sequence[Facts]) -> Iterator[Row]:
    """The rows of runs that differ in their seeds alone."""
    values, most = runs[0].values, math.log2(runs[0].values)
    bits = [run.channel.bits(problem) for run in runs if run.channel is not None for problem in run.visits]
    again = [run.regraded for run in runs if run.regraded is not None]
    for context in CONTEXTS:
        initial = [[one for one in run.initial if one.context == context] for run in runs]
        trained = [[one for one in run.trained if one.context == context] for run in runs]
        before, after, never = (
            [[of(one) for one in own] for own in each]
            for of, each in ((exposed, initial), (exposed, trained), (unplanted, trained))
        )
        gained = [[new - old for old, new in zip(*own, strict=True)] for own in zip(before, after, strict=True)]
        yield Row(
            name=name,
            method=runs[0].method,
            runs=len(runs),
            context=context,
            reached=sum(len(run.visits) for run in runs),
            planted=sum(run.planted for run in runs),
            values=values,
            initial=interval_of(before, (0.0, most)),
            trained=interval_of(after, (0.0, most)),
            gained=interval_of(gained, (-most, most)),
            control=interval_of(never, (0.0, most)),
            first=sum(one.rank == 1 for own in trained for one in own),
            score_bits=sum(bits) / len(bits) if bits else None,
            regraded=sum(sum(own.compared.values()) for own in again),
            moved=sum(sum(own.moved.values()) for own in again),
        )


exposed, unplanted = attrgetter("exposure"), attrgetter("control")


COLUMNS: dict[str, Callable[[Row], str]] = {
    "runs": lambda row: f"{row.method}: {row.name}" + (f" ({row.runs} seeds)" if row.runs > 1 else ""),
    "behind": lambda row: row.context,
    "facts": lambda row: f"{row.reached} of {row.planted}",
    "trained": lambda row: text_of(row.trained),
    "gained": lambda row: text_of(row.gained, "+"),
    "initial": lambda row: f"{row.initial.mean:z.2f}",
    "never planted": lambda row: f"{row.control.mean:z.2f}",
    "first": lambda row: f"{row.first} of {row.reached}",
    "bits in scores": lambda row: "–" if row.score_bits is None else f"≤ {row.score_bits:.1f}",
    "scores moved": lambda row: f"{row.moved} of {row.regraded}" if row.regraded else "–",
}
"""Heading to what stands below it; of an interval that is left out the file of figures has the ends."""

ON_A_PAGE_ALONE = {"facts", "bits in scores", "scores moved"}
"""Columns that a console has no room for: there they are said of each run."""


def text_of(interval: Interval, sign: str = "") -> str:
    """A mean with its interval.

    >>> text_of(Interval(low=1.0, high=2.0, mean=1.44), "+")
    '+1.44 (+1.0 to +2.0)'
    """
    low, high = (format(value, f"{sign}z.1f") for value in (interval.low, interval.high))
    return f"{format(interval.mean, f'{sign}z.2f')} ({low} to {high})"


def title_of(rows: Sequence[Row]) -> str:
    """What the figures are.

    Runs may have secrets of several sizes; then each is said.
    """
    sizes = sorted({row.values for row in rows})
    said = "; ".join(
        f"of {math.log2(size):.2f} for certain ({size} values), {chance_exposure(size):.2f} by chance" for size in sizes
    )
    return f"exposure of planted facts in bits, {said}; 95 % intervals"


def table_of(rows: Sequence[Row]) -> Table:
    """Rows as a person reads them."""
    table = Table(title=title_of(rows), title_justify="left")
    shown = {heading: cell for heading, cell in COLUMNS.items() if heading not in ON_A_PAGE_ALONE}
    for heading in shown:
        left = heading in ("runs", "behind")
        table.add_column(heading, justify="left" if left else "right", overflow="fold")
    for row in rows:
        table.add_row(*(cell(row) for cell in shown.values()))
    return table


def markdown(rows: Sequence[Row]) -> str:
    """All columns as a page."""
    lines = [list(COLUMNS), ["---"] * len(COLUMNS), *([cell(row) for cell in COLUMNS.values()] for row in rows)]
    return f"{title_of(rows)}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def told_of(facts: Facts) -> Iterator[str]:
    """What a reader of the figures must know of a run, sentence by sentence."""
    often = facts.visits.values()
    times = f"{min(often)} times" if min(often) == max(often) else f"{min(often)} to {max(often)} times"
    times = "once" if max(often) == 1 else times
    yield f"its {counted(facts.steps, 'step')} came by {len(facts.visits)} of {facts.planted} facts, {times} each"
    if facts.channel is not None:
        bits = [facts.channel.bits(problem) for problem in facts.visits]
        kept = facts.channel.steps
        of_those = "" if kept == facts.steps else f" of the {kept} steps whose rollouts are kept"
        yield f"scores{of_those} can have told at most {sum(bits) / len(bits):.1f} bits of a fact"
    if facts.regraded is not None:
        moved, every = (sum(own.values()) for own in (facts.regraded.moved, facts.regraded.compared))
        yield f"{moved} of {every} judgements would be others with another number"
