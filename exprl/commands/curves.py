"""What `exprl judge --curve` adds: the judge's score every few tokens, written as lines of JSON and drawn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from exprl.config.fields import choices_in, fields_of
from exprl.errors import ConfigError
from exprl.experiment import Experiment
from exprl.files.disk import check_can_write, local_path, write_lines
from exprl.rollouts.curve_plot import chosen, curves_figure
from exprl.rollouts.curves import curves_of
from exprl.rollouts.store import RolloutStore
from exprl.slicers.base import ScoredSlicer
from exprl.terminal.console import Console, line
from exprl.terminal.wording import counted

EVERY = 64
"""Tokens between two points of a curve where the config says nothing; the segments' ends are points too."""
OPTION = "curve_every"


def curve_file(given: str, output: Path) -> Path:
    """Where curves go: `given`, or in the folder where it is empty.

    Raises:
        ConfigError: it is no name of a file of JSON lines.
        PathError: nothing can be written there.
    """
    if not given:
        return output / "curves.jsonl"
    path = local_path(given, "--curve")
    if path.suffix != ".jsonl":
        raise ConfigError(
            f"--curve: FILE must end in .jsonl, but got {given}. Without FILE, put --curve behind everything else."
        )
    check_can_write(path, "--curve")
    return path


def curve_overrides(experiment: Experiment) -> list[str]:
    """What lets every process reward keep curves: those that have none yet get a point every `EVERY` tokens.

    Raises:
        ConfigError: no reward asks about prefixes.
    """
    process = [
        (path, choice.config)
        for path, choice in choices_in(experiment.reward, "reward")
        if OPTION in fields_of(type(choice.config))
    ]
    if not process:
        raise ConfigError(
            f"--curve: the reward {experiment.reward.name!r} asks about no prefixes, so there is no curve. Set "
            "reward.name=process."
        )
    return [
        f"{path}.{OPTION}={EVERY}"
        for path, config in process
        if config.curve_every is None and not issubclass(config.slicer.cls, ScoredSlicer)
    ]


def write_curves(store: RolloutStore, file: Path, console: Console) -> None:
    """All curves as lines of JSON, and some of them as a PNG beside, where matplotlib is installed."""
    labelled: list[bool] = []

    def lines() -> Iterator[str]:
        for one in curves_of(store):
            labelled.append(one.first_error is not None)
            yield one.line()

    write_lines(file, lines())
    console.say(f"{counted(len(labelled), 'curve')}: {line(str(file))}")
    if not labelled:
        return
    places = set(chosen(labelled))
    picture = file.with_suffix(".png")
    try:
        figure = curves_figure([one for place, one in enumerate(curves_of(store)) if place in places])
    except ImportError:
        console.say("no plot of them: pip install 'exprl[plots]' and start the command again")
        return
    figure.savefig(picture, dpi=120)
    console.say(f"{len(places)} of them as a plot: {line(str(picture))}")
