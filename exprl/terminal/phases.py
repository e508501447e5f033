"""Wall time and progress of each phase of a run."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from exprl.terminal.progress_bar import ProgressBar


class Recorder(Protocol):
    """Takes down when phases begin and end."""

    def begin(self, phase: str) -> None:
        """It begins now."""

    def end(self, phase: str) -> None:
        """It ends now."""


class Phases:
    """Seconds spent in each named phase, with a `ProgressBar` while it runs.

    Args:
        announce: is told the name of each phase when it begins.
        shown: whether this process shows progress.
        heard: is told how many things were done, as they are; what it raises ends the phase.
        total: seconds of all steps, which several may add to.

    >>> phases = Phases()
    >>> with phases.run("sampling", total=2) as on_progress:
    ...     on_progress(2)
    >>> list(phases.take())
    ['sampling']
    """

    def __init__(
        self,
        announce: Callable[[str], object] = str,
        *,
        shown: Callable[[], bool] = lambda: True,
        heard: Callable[[int], object] = int,
        total: defaultdict[str, float] | None = None,
    ) -> None:
        self._announce = announce
        self._shown = shown
        self._heard = heard
        self.recorder: Recorder | None = None
        """Hears of each phase as it begins and ends."""
        self._step: dict[str, float] = {}
        self.total: defaultdict[str, float] = defaultdict(float) if total is None else total

    @contextmanager
    def run(self, name: str, total: int | None = None, unit: str = "rollout") -> Iterator[Callable[[int], object]]:
        """Time a block; the value is called with the number of things done."""
        start = time.perf_counter()
        self._announce(name)
        with self.mark(name), ProgressBar(name, total, unit, shown=self._shown()) as bar:

            def done(count: int) -> None:
                bar.update(count)
                self._heard(count)

            yield done
        seconds = time.perf_counter() - start
        self._step[name] = self._step.get(name, 0.0) + seconds
        self.total[name] += seconds

    @contextmanager
    def mark(self, name: str) -> Iterator[None]:
        """Around what the recorder alone hears of: it has no bar and is no metric."""
        recorder = self.recorder
        if recorder is None:
            yield
            return
        recorder.begin(name)
        try:
            yield
        finally:
            recorder.end(name)

    def take(self) -> dict[str, float]:
        """Seconds of each phase since the last call."""
        step, self._step = self._step, {}
        return step
