"""Wall time and progress of each phase of a run."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from exprl.terminal.progress_bar import ProgressBar


class Phases:
    """Seconds spent in each named phase, with a `ProgressBar` while it runs; `announce` is told each name.

    `shown` says whether this process shows progress.

    >>> phases = Phases()
    >>> with phases.run("sampling", total=2) as on_progress:
    ...     on_progress(2)
    >>> list(phases.take())
    ['sampling']
    """

    def __init__(self, announce: Callable[[str], object] = str, *, shown: Callable[[], bool] = lambda: True) -> None:
        self._announce = announce
        self._shown = shown
        self._step: dict[str, float] = {}
        self.total: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def run(self, name: str, total: int | None = None, unit: str = "rollout") -> Iterator[Callable[[int], object]]:
        """Time a block; the value is called with the number of things done."""
        start = time.perf_counter()
        self._announce(name)
        with ProgressBar(name, total, unit, shown=self._shown()) as bar:
            yield bar.update
        seconds = time.perf_counter() - start
        self._step[name] = self._step.get(name, 0.0) + seconds
        self.total[name] += seconds

    def take(self) -> dict[str, float]:
        """Seconds of each phase since the last call."""
        step, self._step = self._step, {}
        return step
