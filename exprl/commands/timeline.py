"""`exprl timeline`: what a run did when, as a trace to look at and a table of where its time went."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from exprl.errors import ConfigError
from exprl.files.disk import write_text
from exprl.runs.directory import RunDirectory
from exprl.runs.places import place_of
from exprl.runs.timeline import Span, files_of, read_timeline
from exprl.runs.trace import Usage, chrome_trace, usage
from exprl.terminal.console import Console
from exprl.terminal.wording import counted


def timeline_of(path: Path) -> RunDirectory:
    """The run at `path`, which has a timeline.

    Raises:
        ConfigError: there is no run, or it has none.
    """
    if not path.exists():
        raise ConfigError(f"RUN: {path} is not there. Give the folder of a run.")
    place = place_of(path)
    if place.run is None:
        raise ConfigError(f"RUN: {path} is {place.in_words}, and no run. Give the folder of a run.")
    run = RunDirectory(place.run)
    if not files_of(run.timeline):
        raise ConfigError(
            f"RUN: {run.path} has no timeline: {run.timeline} holds none. A run writes it as it goes; one of an older "
            "version of exprl has none, nor does one that trained with a Trainer of its own."
        )
    return run


def chosen_steps(given: str | None) -> tuple[int, int | None]:
    """The first and the last of `A:B`, `A:`, `:B` or `A`; None: to the end.

    >>> chosen_steps("3:7"), chosen_steps("3:"), chosen_steps(":7"), chosen_steps("5"), chosen_steps(None)
    ((3, 7), (3, None), (0, 7), (5, 5), (0, None))

    Raises:
        ConfigError: it is none of these.
    """
    if given is None:
        return 0, None
    match = re.fullmatch(r"(\d{0,9})(:?)(\d{0,9})", given, re.ASCII)
    if match is None or given in ("", ":") or (not match[2] and match[3]):
        raise ConfigError(f"--steps: A:B, A:, :B or one step, but got {given!r}. For example --steps 10:20.")
    first = int(match[1] or 0)
    last = first if not match[2] else int(match[3]) if match[3] else None
    if last is not None and last < first:
        raise ConfigError(f"--steps: {given} ends before it begins. Give the smaller number first.")
    return first, last


def show(run: RunDirectory, output: Path, steps: tuple[int, int | None], console: Console) -> None:
    """Write the trace and print the table.

    Raises:
        ConfigError: there is nothing of these steps.
        DataError: a file of the timeline is damaged.
        PathError: the trace cannot be written.
    """
    every = read_timeline(run.timeline)
    spans = [span for span in every if span.step >= steps[0] and (steps[1] is None or span.step <= steps[1])]
    if not spans:
        there = f"It has steps up to {max(span.step for span in every)}." if every else "It has not begun a phase yet."
        raise ConfigError(f"--steps: the timeline of {run.path} has nothing of these steps. {there}")
    write_text(output, json.dumps(chrome_trace(spans)))
    for line in told_of(spans):
        console.say(line)
    console.print(table_of(usage(spans)))
    console.say(f"trace {output}: open it in ui.perfetto.dev or chrome://tracing")


def told_of(spans: Sequence[Span]) -> list[str]:
    """What there is, and what was left unfinished."""
    steps = sorted({span.step for span in spans if span.in_step})
    ranks, processes = {span.rank for span in spans}, {span.process for span in spans}
    said = [f"{_steps(steps)}, {counted(len(ranks), 'rank')}"]
    if len(processes) > 1:
        said[0] += f", {len(processes)} processes of the run: it was stopped and went on"
    left = [span for span in spans if not span.finished]
    if left:
        last = max(left, key=lambda span: span.start)
        said.append(
            f"{counted(len(left), 'phase')} without an end, the last {last.name} of step {last.step} on rank "
            f"{last.rank}: the run was killed in it, or is in it now"
        )
    return said


def _steps(steps: Sequence[int]) -> str:
    if not steps:
        return "evaluations alone"
    return f"steps {steps[0]} to {steps[-1]}" if len(steps) > 1 else f"step {steps[0]}"


def table_of(found: Usage) -> Table:
    """Each phase's share of the time, and how long trainer and sampler had nothing to do."""
    table = Table(title="where the time went, mean over ranks", title_justify="left")
    for name in ("", "share", "seconds", "a step"):
        table.add_column(name, justify="right" if name else "left")
    rows = [*found.phases.items(), ("between phases", found.between)]
    idle = [("trainer without rollouts", found.idle_trainer), ("sampler and judge idle", found.idle_sampler)]
    servers = [(f"{server} has requests", seconds) for server, seconds in found.servers.items()]
    for number, part in enumerate(filter(None, (rows, idle, servers, [("whole", found.whole)]))):
        if number:
            table.add_section()
        for name, seconds in part:
            share = seconds / found.whole if found.whole else 0.0
            table.add_row(name, f"{share:.1%}", f"{seconds:.2f}", f"{seconds / max(found.steps, 1):.2f}")
    if found.evaluation:
        table.add_section()
        table.add_row("evaluations", "", f"{found.evaluation:.2f}", "")
    return table
