"""A run's timeline as a Chrome trace, and how much of its time went where: pure functions of spans."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from exprl.runs.timeline import ANSWERING, Span

SAMPLER_PHASES = ("sampling", "judging")
"""Of engine and judge: without one of them they have nothing to do."""
WAITING_PHASES = (*SAMPLER_PHASES, "waiting")
"""In the trainer's own row: there is nothing to update with yet."""

Interval = tuple[float, float]


def chrome_trace(spans: Sequence[Span]) -> dict[str, Any]:
    """In the Trace Event Format, which chrome://tracing and ui.perfetto.dev open: a process a rank, a thread a row.

    Times are microseconds since the first span. A span whose end was never seen says so in its arguments.
    """
    origin = min((span.start for span in spans), default=0.0)
    rows = {(span.rank, span.row): 0 for span in spans}
    for rank, own in groupby(sorted(rows), key=lambda place: place[0]):
        for number, place in enumerate(sorted(own, key=lambda place: (place[1] != "trainer", place[1]))):
            rows[rank, place[1]] = number
    names = [_name("process_name", rank, 0, f"rank {rank}") for rank in sorted({rank for rank, _ in rows})]
    names += [_name("thread_name", rank, number, row) for (rank, row), number in sorted(rows.items())]
    events = [
        {
            "ph": "X",
            "cat": "step" if span.in_step else "evaluation",
            "name": span.name,
            "pid": span.rank,
            "tid": rows[span.rank, span.row],
            "ts": round((span.start - origin) * 1e6),
            "dur": round((span.end - origin) * 1e6) - round((span.start - origin) * 1e6),
            "args": {"step": span.step, "process": span.process, **({} if span.finished else {"unfinished": True})},
        }
        for span in spans
    ]
    return {"traceEvents": [*names, *events], "displayTimeUnit": "ms", "otherData": {"start": origin}}


def _name(kind: str, rank: int, row: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": rank, "tid": row, "args": {"name": name}}


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What the time of a run's steps went into; seconds are means over ranks.

    Attributes:
        steps: how many there were.
        whole: from the beginning of each process's first step to the end of its last, without evaluations.
        phases: in each phase, whichever row it was in; phases of several rows overlap, so they may add up to more.
        between: outside of every phase.
        idle_trainer: in which the trainer waited for rollouts and verdicts.
        idle_sampler: in which nothing was sampled or judged.
        evaluation: of evaluations, which are not in `whole`.
        servers: of each, by its row, in which it had requests of any rank's.
    """

    steps: int
    whole: float
    phases: Mapping[str, float]
    between: float
    idle_trainer: float
    idle_sampler: float
    evaluation: float
    servers: Mapping[str, float]


def usage(spans: Sequence[Span], *, trainer: str = "trainer") -> Usage:
    """Where the time of these spans went; `trainer` is the row of a rank's own thread.

    >>> place = {"rank": 0, "process": 0, "row": "trainer", "step": 1}
    >>> sampling = Span(**place, name="sampling", start=0.0, end=6.0)
    >>> found = usage([sampling, Span(**place, name="updating", start=6.0, end=9.0)])
    >>> found.whole, found.phases["sampling"], found.idle_trainer, found.idle_sampler
    (9.0, 6.0, 6.0, 3.0)
    """
    ranks = [_of_rank(own, trainer) for own in _by(spans, lambda span: span.rank)]
    names = list(dict.fromkeys(name for rank in ranks for name in rank.phases))
    phases = {name: _mean(rank.phases.get(name, 0.0) for rank in ranks) for name in names}
    return Usage(
        steps=len({span.step for span in spans if span.in_step and span.step > 0}),
        whole=_mean(rank.whole for rank in ranks),
        phases=dict(sorted(phases.items(), key=lambda item: -item[1])),
        between=_mean(rank.between for rank in ranks),
        idle_trainer=_mean(rank.idle_trainer for rank in ranks),
        idle_sampler=_mean(rank.idle_sampler for rank in ranks),
        evaluation=_mean(rank.evaluation for rank in ranks),
        servers=_servers(spans),
    )


def _servers(spans: Sequence[Span]) -> dict[str, float]:
    """Ranks may ask the same servers, so what they asked together counts once."""
    working = union(interval for own in _by(spans, lambda span: span.rank) for interval in _working(own))
    answering = _by([span for span in spans if span.name == ANSWERING], lambda span: span.row)
    return {own[0].row: length(within(union(map(_interval, own)), working)) for own in answering}


def _working(spans: Sequence[Span]) -> list[Interval]:
    """When a rank was in steps: without evaluations, and what lies between two processes."""
    windows = [
        (min(span.start for span in own), max(span.end for span in own))
        for own in _by([span for span in spans if span.in_step], lambda span: span.process)
    ]
    return without(union(windows), union(_interval(span) for span in spans if not span.in_step))


def _of_rank(spans: Sequence[Span], trainer: str) -> Usage:
    in_steps = [span for span in spans if span.in_step and span.name != ANSWERING]
    working = _working(spans)
    whole = length(working)
    phases = {
        own[0].name: length(within(union(map(_interval, own)), working))
        for own in _by(in_steps, lambda span: span.name)
    }

    def covered(names: Iterable[str], row: str | None = None) -> float:
        chosen = [span for span in in_steps if span.name in names and row in (None, span.row)]
        return length(within(union(map(_interval, chosen)), working))

    return Usage(
        steps=0,
        whole=whole,
        phases=phases,
        between=whole - covered(phases),
        idle_trainer=covered(WAITING_PHASES, trainer),
        idle_sampler=whole - covered(SAMPLER_PHASES),
        evaluation=length(union(_interval(span) for span in spans if not span.in_step)),
        servers={},
    )


def _by(spans: Sequence[Span], key: Any) -> list[list[Span]]:
    found: defaultdict[Any, list[Span]] = defaultdict(list)
    for span in spans:
        found[key(span)].append(span)
    return [found[each] for each in sorted(found)]


def _mean(values: Iterable[float]) -> float:
    every = list(values)
    return sum(every) / len(every) if every else 0.0


# ------------------------------------------------------------------ sets of intervals


def _interval(span: Span) -> Interval:
    return span.start, span.end


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """The same moments in intervals that neither overlap nor touch, in order.

    >>> union([(3, 5), (0, 1), (1, 2), (4, 6)])
    [(0, 2), (3, 6)]
    """
    found: list[Interval] = []
    for start, end in sorted(intervals):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


def within(intervals: Sequence[Interval], others: Sequence[Interval]) -> list[Interval]:
    """The moments that two unions have in common.

    >>> within([(0, 4), (6, 9)], [(3, 7)])
    [(3, 4), (6, 7)]
    """
    found, mine, theirs = list[Interval](), 0, 0
    while mine < len(intervals) and theirs < len(others):
        start = max(intervals[mine][0], others[theirs][0])
        end = min(intervals[mine][1], others[theirs][1])
        if start < end:
            found.append((start, end))
        if intervals[mine][1] < others[theirs][1]:
            mine += 1
        else:
            theirs += 1
    return found


def without(intervals: Sequence[Interval], others: Sequence[Interval]) -> list[Interval]:
    """The moments of a union that another has not.

    >>> without([(0, 9)], [(3, 4), (8, 12)])
    [(0, 3), (4, 8)]
    """
    edges = [float("-inf"), *(moment for other in others for moment in other), float("inf")]
    return within(intervals, list(zip(edges[::2], edges[1::2], strict=True)))


def length(intervals: Iterable[Interval]) -> float:
    """Seconds in all.

    >>> length([(0, 2), (3, 6)])
    5
    """
    return sum(end - start for start, end in intervals)
