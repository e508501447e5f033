"""A study's plots: as PNG files, and the same in TensorBoard."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exprl.files.disk import write_text
from exprl.study.results import CURVES, Entry, Findings, curve

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch.utils.tensorboard import SummaryWriter

COLUMNS = 3


def powers_of_two(entries: list[Entry]) -> list[int]:
    """1, 2, 4, ... up to the samples that every evaluation has.

    >>> powers_of_two([])
    []
    """
    most = min((result.samples for entry in entries for result in entry.results.values()), default=0)
    return [2**power for power in range(most.bit_length())]


def pass_figure(findings: Findings, number: int) -> Figure:
    """pass@k against k of every arm after a stage, with bands over seeds and problems."""
    from matplotlib.figure import Figure

    entries = findings.shown(number)
    ks = powers_of_two(entries)
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for entry in entries:
        bands = [entry.interval(f"pass@{k}") for k in ks]
        color = color_of(findings, entry)
        axes.plot(ks, [band.mean for band in bands], color=color, marker="o", markersize=3, label=entry.arm)
        low, high = [band.low for band in bands], [band.high for band in bands]
        axes.fill_between(ks, low, high, color=color, alpha=0.15, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ks, [str(k) for k in ks])
    axes.set(xlabel="k", ylabel="pass@k", ylim=(0, 1), title=f"After stage {number}" if number else "Initial policy")
    axes.legend(fontsize="small")
    return figure


def curves_figure(findings: Findings, number: int) -> Figure:
    """Each metric over the steps of a stage: mean over seeds, and the band from the smallest to the largest seed."""
    from matplotlib.figure import Figure

    entries = list(findings.stages[number])
    figure = Figure(figsize=(4 * COLUMNS, 3 * ceil(len(CURVES) / COLUMNS)), layout="constrained")
    for place, (metric, name) in enumerate(CURVES.items(), start=1):
        axes = figure.add_subplot(ceil(len(CURVES) / COLUMNS), COLUMNS, place)
        for entry in entries:
            found, color = curve(entry, metric), color_of(findings, entry)
            if found is not None:
                axes.plot(found.steps, found.mean, color=color, marker=".", markersize=3, label=entry.arm)
                axes.fill_between(found.steps, found.low, found.high, color=color, alpha=0.15, linewidth=0)
        axes.set(xlabel="step", title=name)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
    figure.suptitle(f"Stage {number}: mean over seeds, band from the smallest to the largest")
    return figure


def color_of(findings: Findings, entry: Entry) -> str:
    """An arm has one colour in all figures."""
    return f"C{list(findings.plan.arms).index(entry.arm) % 10}"


def figures(findings: Findings) -> Iterator[tuple[str, Figure]]:
    """Every figure with its name; raises `ImportError` without matplotlib."""
    for number in findings.stages:
        if number or len(findings.stages) == 1:
            yield f"pass_at_k-stage-{number}", pass_figure(findings, number)
        if number:
            yield f"curves-stage-{number}", curves_figure(findings, number)


def write_plots(findings: Findings, folder: Path) -> bool:
    """PNG files under `plots/` and everything under `tensorboard/`, in place of older ones; False: no matplotlib."""
    from torch.utils.tensorboard import SummaryWriter

    shutil.rmtree(folder / "tensorboard", ignore_errors=True)
    for entry in findings.entries:
        with closing(SummaryWriter(str(folder / "tensorboard" / entry.arm))) as writer:
            write_scalars(writer, entry)
    try:
        made = list(figures(findings))
    except ImportError:
        write_text(folder / "plots" / "README.txt", "No plots: pip install 'exprl[plots]' and start the study again.\n")
        return False
    (folder / "plots").mkdir(exist_ok=True)
    with closing(SummaryWriter(str(folder / "tensorboard" / "figures"))) as writer:
        for name, figure in made:
            figure.savefig(folder / "plots" / f"{name}.png", dpi=120)
            writer.add_image(name, pixels(figure), dataformats="HWC")
    return True


def write_scalars(writer: SummaryWriter, entry: Entry) -> None:
    """An arm's curves by step, and its pass@k by k, as means over seeds."""
    stage = f"stage-{entry.place.number}"
    for metric in CURVES:
        found = curve(entry, metric)
        for step, value in zip(found.steps, found.mean, strict=True) if found else ():
            writer.add_scalar(f"{stage}/{metric}", value, step)
    for k in powers_of_two([entry]):
        value = float(entry.values(f"pass@{k}", list(entry.results)).mean())
        writer.add_scalar(f"{stage}/pass@k over k", value, k)


def pixels(figure: Figure) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """[H, W, 3] of a figure, without pyplot, which would pick a window system."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
