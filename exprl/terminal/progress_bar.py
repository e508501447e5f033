"""How far long work is: a bar on a terminal, and a line now and then where output goes into a file or a pipe."""

from __future__ import annotations

import logging
import sys
import threading
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm

log = logging.getLogger(__name__)

SOON = 30.0
"""Seconds until the first line, and between two at least: what takes less needs none."""
LATEST = 300.0
"""Seconds after which a line comes even if next to nothing was done."""
STRIDE = 0.1
"""Of all that is to be done, what is worth a line; of the time so far, where nobody knows how much there is."""


class ProgressBar:
    """Progress of `total` things (None: nobody knows how many), for the time of a `with` block or until `close`.

    Args:
        name: what is being done.
        total: how many things there are.
        unit: what one of them is.
        initial: done before.
        leave: a bar stays on the terminal when it ends.
        shown: False: say nothing, as on all ranks but one.
    """

    def __init__(
        self,
        name: str,
        total: int | None = None,
        unit: str = "rollout",
        *,
        initial: int = 0,
        leave: bool = False,
        shown: bool = True,
    ) -> None:
        terminal = sys.stderr.isatty()
        self._bar: tqdm[None] = tqdm(
            total=total, initial=initial, desc=name, unit=f" {unit}", leave=leave, disable=not (shown and terminal)
        )
        self._lines = Lines(name, total, unit, initial) if shown and not terminal else None

    def update(self, count: int) -> None:
        """So many more are done."""
        self._bar.update(count)
        if self._lines is not None:
            self._lines.done += count

    def note(self, text: str) -> None:
        """Show a figure beside it."""
        self._bar.set_postfix_str(text)
        if self._lines is not None:
            self._lines.figure = text

    def clear(self) -> None:
        """Make place for a printed line."""
        self._bar.clear()

    def close(self) -> None:
        """It has come to its end."""
        self._bar.close()
        if self._lines is not None:
            self._lines.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Lines:
    """Lines in a log, from a thread of its own: work that is stuck in one long call is heard of as well."""

    def __init__(self, name: str, total: int | None, unit: str, initial: int = 0) -> None:
        self.name = name
        self.total = total
        self.unit = unit
        self.done = self.said = initial
        self.figure = ""
        self.start = self.last = time.monotonic()
        self._ended = threading.Event()
        threading.Thread(target=self._watch, name="exprl-progress", daemon=True).start()

    def due(self, now: float) -> str | None:
        """The line to be printed at time `now`, if one is due."""
        waited, whole = now - self.last, now - self.start
        if self.total is None:
            moved = waited >= STRIDE * whole
        else:
            moved = self.done - self.said >= STRIDE * self.total or self.last == self.start
        if waited < (SOON if moved else LATEST):
            return None
        left = self._left(waited)
        self.last, self.said = now, self.done
        of = f" of {self.total}" if self.total else ""
        share = f" ({self.done / self.total:.0%})" if self.total else ""
        figure = f", {self.figure}" if self.figure else ""
        return f"{self.name}: {self.done}{of} {self.unit}s{share}{figure}, {_duration(whole)}{left}"

    def _left(self, waited: float) -> str:
        """How long the rest takes at the speed since the last line: some of it may be far slower than the rest."""
        gained = self.done - self.said
        if self.total is None or gained <= 0 or self.done >= self.total:
            return ""
        return f", about {_duration((self.total - self.done) * waited / gained)} left"

    def close(self) -> None:
        """No more lines."""
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(SOON):
            line = self.due(time.monotonic())
            if line is not None:
                log.info(line)


def _duration(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> _duration(3725.4)
    '1 h 2 min 5 s'
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        " ".join(f"{value} {unit}" for value, unit in ((hours, "h"), (minutes, "min"), (rest, "s")) if value) or "0 s"
    )
