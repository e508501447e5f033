"""What other ways of scoring would have changed, over steps, as one PNG file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from exprl.study.counterfactual import SHARES, StepRecord, having

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS = {
    "cosine": "cosine of the gradients",
    "rewards": "rank correlation of rewards",
    "flipped_tokens": "tokens with the other sign, %",
}


def write_plot(steps: Sequence[StepRecord], names: Sequence[str], path: Path) -> bool:
    """Write the plot; False: there is no matplotlib."""
    try:
        import matplotlib as _  # noqa: F401
    except ImportError:
        return False
    figure_of(steps, names).savefig(path, dpi=120)
    return True


def figure_of(steps: Sequence[StepRecord], names: Sequence[str]) -> Figure:
    """A panel for each of `PANELS`, a line for each alternative, bands for intervals over problems."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * len(PANELS), 4), layout="constrained")
    for axes, (measure, label) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        scale = 100 if measure in SHARES else 1
        for name in names:
            known = having(steps, name)
            own = [step.figures(name)[measure] for step in known]
            numbers = [step.step for step in known]
            [line] = axes.plot(numbers, [scale * one.mean for one in own], marker=".", label=name)
            low, high = ([scale * getattr(one, end) for one in own] for end in ("low", "high"))
            axes.fill_between(numbers, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
        axes.axhline(0, color="grey", linewidth=0.8)
        axes.set(xlabel="step", title=label, ylim=(-1.05, 1.05) if scale == 1 else (0, None))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=min(len(names), 6))
    return figure
