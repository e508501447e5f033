"""What each rank of a run did when: phases as they begin and end, a line each, and what is read of them.

A file a rank, `timeline/rank-N.jsonl`. A line says when it was written (`at`, seconds since 1970), the step under way,
and one of `begin`, `end` (a phase, of a `row`: what goes on side by side has rows of its own) and `process` (a process
of the run began: what the one before left open ended with it).
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exprl.errors import DataError
from exprl.files.disk import check_ordinary, reason
from exprl.files.lines import cut_after

log = logging.getLogger(__name__)

TRAINER = "trainer"
"""The row of a rank's own thread."""
SAMPLER = "sampler"
"""The row of what makes the next step's batch beside the update (`rollout.lookahead`)."""
ANSWERING = "answering"
"""A server has requests of this rank's, in a row of its own."""
EVALUATION = "evaluate_"
"""How the names of evaluations begin, which are no part of a step."""
SYNCING, SAVING = "syncing", "saving"
"""The engine takes the new weights; a checkpoint is written: of the step that has just been done."""

_NAME = re.compile(r"rank-(\d+)\.jsonl")

# ------------------------------------------------------------------ writing


class Timeline:
    """Writes what a rank does, a line as it happens, so that a killed run leaves all up to its end.

    A timeline is no reason to end a run: where a line cannot be written that is said once, and no more are.

    Args:
        folder: where the files of all ranks lie.
        rank: whose this is.
        steps_done: how many steps are finished.
    """

    def __init__(self, folder: Path, rank: int, *, steps_done: Callable[[], int]) -> None:
        self.folder = folder
        self.path = folder / f"rank-{rank}.jsonl"
        self._steps_done = steps_done
        self._file: Any = None
        self._writing = threading.Lock()
        self._epoch = time.time() - time.perf_counter()  # a clock that is set meanwhile turns no phase round

    def open(self, after: int, *, ranks: int, first: bool) -> None:
        """Go on after that step: what a killed run wrote past its checkpoint goes, also of ranks gone since.

        Args:
            after: the last step of the checkpoint that the run goes on from; 0 without one.
            ranks: how many there are now.
            first: whether this rank sees to the files of those that are no more.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            gone = [path for number, path in files_of(self.folder) if first and number >= ranks]
            for path in (self.path, *gone):
                cut_after(path, after, kind=json.dumps)
            self._file = self.path.open("ab", buffering=0)
        except Exception as error:  # noqa: BLE001 - see above
            self._give_up(error)
        self._write({"step": after, "process": os.getpid()})

    def row(self, name: str) -> Row:
        """What takes down the phases of one thing that goes on beside others."""
        return Row(self, name)

    def close(self) -> None:
        """No more lines."""
        with self._writing:
            if self._file is not None:
                self._file.close()
            self._file = None

    def take_down(self, row: str, event: str, phase: str) -> None:
        """A phase begins or ends (`event`), of the step under way or, where it follows one, of the last one done."""
        follows = phase.startswith(EVALUATION) or phase in (SYNCING, SAVING)
        step = self._steps_done() + (not follows)
        self._write({"step": step, "row": row, event: phase})

    def _write(self, content: dict[str, Any]) -> None:
        at = round(self._epoch + time.perf_counter(), 6)
        with self._writing:
            if self._file is None:
                return
            try:
                self._file.write(json.dumps({"at": at, **content}).encode() + b"\n")
            except OSError as error:
                self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        why = reason(error) if isinstance(error, OSError) else error
        log.warning("%s cannot be written (%s), so the run goes on without a timeline", self.path, why)
        self._file = None


class Row:
    """A recorder of `Phases` (`exprl.terminal.phases.Recorder`)."""

    def __init__(self, timeline: Timeline, name: str) -> None:
        self.timeline, self.name = timeline, name

    def begin(self, phase: str) -> None:
        """It begins now."""
        self.timeline.take_down(self.name, "begin", phase)

    def end(self, phase: str) -> None:
        """It ends now."""
        self.timeline.take_down(self.name, "end", phase)


# ------------------------------------------------------------------ reading


@dataclass(frozen=True, kw_only=True)
class Span:
    """A phase of a rank.

    Attributes:
        rank: whose.
        process: of how many processes of the run, counted from 0, that the rank had.
        row: beside what else it went on.
        name: of the phase.
        step: the one under way.
        start: seconds since 1970.
        end: the same.
        finished: whether its end was seen; of a process that was killed it is that of its last line.
    """

    rank: int
    process: int
    row: str
    name: str
    step: int
    start: float
    end: float
    finished: bool = True

    @property
    def in_step(self) -> bool:
        """Whether it is a part of a step, not an evaluation between two."""
        return not self.name.startswith(EVALUATION)


def files_of(folder: Path) -> list[tuple[int, Path]]:
    """The files of a folder with their ranks, in order."""
    found = [(match, path) for path in folder.glob("rank-*.jsonl") if (match := _NAME.fullmatch(path.name))]
    return sorted((int(match[1]), path) for match, path in found)


def read_timeline(folder: Path) -> list[Span]:
    """The phases of all ranks, by rank and start.

    Lines that a killed process left half are passed over.

    Raises:
        DataError: a file cannot be read, or holds lines that no run wrote; it is named.
    """
    return [span for rank, path in files_of(folder) for span in spans_of(_lines(path), rank)]


def spans_of(lines: Iterable[dict[str, Any]], rank: int) -> list[Span]:
    """The phases that a rank's lines tell of, by start; phases of a row may lie within one another."""
    found: list[Span] = []
    process, last = -1, 0.0
    opened: list[dict[str, Any]] = []

    def close(line: dict[str, Any], end: float, *, finished: bool) -> None:
        place = {"rank": rank, "process": max(process, 0), "row": line["row"], "name": line["begin"]}
        found.append(Span(**place, step=line["step"], start=line["at"], end=max(end, line["at"]), finished=finished))

    for line in lines:
        if "process" in line:
            for left in opened:
                close(left, last, finished=False)
            opened, process = [], process + 1
        elif "begin" in line:
            opened.append(line)
        else:
            place = (line["row"], line["end"])
            begun = next((number for number in _backwards(opened) if _place(opened[number]) == place), None)
            if begun is not None:
                close(opened.pop(begun), line["at"], finished=True)
        last = line["at"]
    for left in opened:
        close(left, last, finished=False)
    return sorted(found, key=lambda span: (span.start, -span.end))


def _backwards(opened: Sequence[dict[str, Any]]) -> range:
    return range(len(opened) - 1, -1, -1)


def _place(line: dict[str, Any]) -> tuple[str, str]:
    return line["row"], line["begin"]


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        check_ordinary(path)
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({reason(error)}).") from error
    for number, text in enumerate(content.split(b"\n"), start=1):
        try:
            line = json.loads(text) if text else None
        except (ValueError, RecursionError):
            continue  # a killed process left it half
        if line is None:
            continue
        if not _is_line(line):
            raise DataError(
                f"{path}, line {number}, is none of a timeline: {text[:80]!r}. Was the file edited? Delete it, or the "
                "line."
            )
        yield line


def _is_line(line: Any) -> bool:
    if not isinstance(line, dict) or not isinstance(line.get("step"), int):
        return False
    if not isinstance(line.get("at"), (int, float)) or not abs(line["at"]) < 1e12:
        return False
    if "process" in line:
        return True
    return all(isinstance(line.get(key), str) for key in ("row", "begin" if "begin" in line else "end"))
