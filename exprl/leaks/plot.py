"""The exposures as a picture: a dot a fact, and the mean with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from exprl.leaks.exposure import chance_exposure
from exprl.leaks.report import Facts, Row
from exprl.leaks.values import CONTEXTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

JITTER = 0.15


def write_plot(groups: Sequence[Sequence[Facts]], rows: Sequence[Row], path: Path) -> bool:
    """Write a PNG file; False: there is no matplotlib."""
    try:
        figure = exposure_figure(groups, rows)
    except ImportError:
        return False
    figure.savefig(path, dpi=120)
    return True


def exposure_figure(groups: Sequence[Sequence[Facts]], rows: Sequence[Row]) -> Figure:
    """A panel for each context, a column for each group of runs; `rows` are theirs, context by context."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 + 2.2 * len(groups), 4), layout="constrained")
    panels = figure.subplots(1, len(CONTEXTS), sharey=True)
    generator = np.random.default_rng(0)
    for axes, context in zip(panels, CONTEXTS, strict=True):
        shown = [row for row in rows if row.context == context]
        for place, (runs, row) in enumerate(zip(groups, shown, strict=True)):
            dots = np.array([one.exposure for run in runs for one in run.trained if one.context == context])
            beside = generator.uniform(-JITTER, JITTER, len(dots))
            axes.scatter(place + beside, dots, s=12, alpha=0.5, linewidth=0, color=f"C{place % 10}")
            axes.plot([place + 2 * JITTER] * 2, [row.trained.low, row.trained.high], color="black")
            axes.plot(place + 2 * JITTER, row.trained.mean, "o", color="black", markersize=4)
        for size in {row.values for row in shown}:
            axes.axhline(chance_exposure(size), color="grey", linewidth=0.8)
            axes.axhline(math.log2(size), color="grey", linewidth=0.8, linestyle=":")
        axes.set_xticks(range(len(shown)), [f"{row.method}\n{row.name}" for row in shown], fontsize="x-small")
        axes.set_title(f"behind the {context}", fontsize="small")
    panels[0].set_ylabel("exposure, bits (line: by chance)")
    return figure
