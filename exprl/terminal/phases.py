"""Wall time and a progress bar for each phase of a run."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm


class Phases:
    """Seconds spent in each named phase, with a bar while it runs (on a terminal only); `announce` is told each name.

    >>> phases = Phases()
    >>> with phases.run("sampling", total=2) as on_progress:
    ...     on_progress(2)
    >>> list(phases.take())
    ['sampling']
    """

    def __init__(self, announce: Callable[[str], object] = str, *, bars: bool = True) -> None:
        self._announce = announce
        self._bars = bars
        self._step: dict[str, float] = {}
        self.total: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def run(self, name: str, total: int | None = None, unit: str = "rollout") -> Iterator[Callable[[int], object]]:
        """Time a block; the value is called with the number of things done."""
        start = time.perf_counter()
        self._announce(name)
        with tqdm(total=total, desc=name, unit=f" {unit}", leave=False, disable=None if self._bars else True) as bar:
            yield bar.update
        seconds = time.perf_counter() - start
        self._step[name] = self._step.get(name, 0.0) + seconds
        self.total[name] += seconds

    def take(self) -> dict[str, float]:
        """Seconds of each phase since the last call."""
        step, self._step = self._step, {}
        return step
