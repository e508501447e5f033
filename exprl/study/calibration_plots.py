"""A calibration's plots, as PNG files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from exprl.evaluation.calibration import reliability
from exprl.evaluation.localisation import Graded
from exprl.rewards.normalization import normalize
from exprl.study.calibration import PLOTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from exprl.study.calibrated import Arms, Row


def write_plots(arms: Arms, rows: Sequence[Row], folder: Path) -> bool:
    """Reliability curves of each judge, and all AUROCs beside each other; False: there is no matplotlib."""
    try:
        import matplotlib as _  # noqa: F401
    except ImportError:
        return False
    (folder / PLOTS).mkdir(parents=True, exist_ok=True)
    for judge in dict.fromkeys(judge for judge, _ in arms):
        figure = reliability_figure({reference: own for (name, reference), own in arms.items() if name == judge}, judge)
        figure.savefig(folder / PLOTS / f"reliability-{re.sub(r'[^A-Za-z0-9_.-]', '_', judge)}.png", dpi=120)
    auroc_figure(rows).savefig(folder / PLOTS / "auroc.png", dpi=120)
    return True


def reliability_figure(by_reference: Mapping[str, Sequence[Graded]], judge: str) -> Figure:
    """Share of right rollouts against the score, a curve for each reference, a dot as large as its bin."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    for reference, rollouts in by_reference.items():
        confidence = np.array([normalize(one.scores[-1], "smooth") for one in rollouts], dtype=float)
        said, right, counts = reliability(confidence, np.array([bool(one.correct) for one in rollouts], dtype=bool))
        there = counts > 0
        [line] = axes.plot(said[there], right[there], label=reference)
        axes.scatter(said[there], right[there], s=200 * counts[there] / counts.sum(), color=line.get_color())
    axes.set(xlabel="score, from 0 to 1", ylabel="share of right rollouts", xlim=(0, 1), ylim=(0, 1), title=judge)
    axes.legend(fontsize="small", title="reference")
    return figure


def auroc_figure(rows: Sequence[Row]) -> Figure:
    """The AUROC of every row with its interval."""
    from matplotlib.figure import Figure

    shown = [row for row in rows if not np.isnan(row.measures["auroc"].mean)]
    figure = Figure(figsize=(6, 1 + 0.35 * len(shown)), layout="constrained")
    axes = figure.add_subplot()
    for place, row in enumerate(reversed(shown)):
        interval = row.measures["auroc"]
        axes.plot([interval.low, interval.high], [place, place], color="tab:blue")
        axes.plot(interval.mean, place, "o", color="tab:blue", markersize=4)
    labels = [f"{row.judge}, {row.reference}, {row.domain}" for row in reversed(shown)]
    axes.set_yticks(range(len(shown)), labels, fontsize="small")
    axes.axvline(0.5, color="grey", linewidth=0.8)
    axes.set(xlabel="AUROC of right against wrong rollouts", xlim=(0, 1))
    return figure
