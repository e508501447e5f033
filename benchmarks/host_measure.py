"""CPU seconds and resident memory of a part, for `host.py`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cost:
    """What a part took: seconds for all rollouts it was given, and the MiB that resident memory grew by at most."""

    seconds: float
    mebibytes: float


def measure(run: Callable[[], object], *, wall: bool = False) -> Cost:
    """CPU seconds of this process, or wall-clock ones, and by how much resident memory grew at most."""
    clock = time.perf_counter if wall else time.process_time
    before = resident("VmRSS")
    _forget_peak()
    start = clock()
    run()
    seconds = clock() - start
    return Cost(seconds, max(resident("VmHWM") - before, 0.0))


def resident(field: str) -> float:
    """MiB of a line of /proc/self/status; NaN where there is none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return float("nan")
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


def _forget_peak() -> None:
    """Let Linux count the peak of resident memory from now on."""
    peak = Path("/proc/self/clear_refs")
    if peak.exists():
        peak.write_text("5")
