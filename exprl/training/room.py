"""Room on the disk for a run's checkpoints: what one takes, and whether all that lie there at once fit."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from rich.filesize import decimal
from torch import nn

from exprl.experiment import TrainerConfig
from exprl.runs.directory import RunDirectory

log = logging.getLogger(__name__)

MOMENTS = 2
"""AdamW's, each as large as the weights that train."""


def checkpoint_bytes(model: nn.Module) -> int:
    """About what a checkpoint takes: the weights, shared ones once, and the moments of those that train."""
    sizes = [(weight.numel() * weight.element_size(), weight.requires_grad) for weight in model.parameters()]
    return sum(size * (1 + MOMENTS * trains) for size, trains in sizes)


def most_at_once(options: TrainerConfig) -> int:
    """Checkpoints in the folder at a time: those that are kept, and one more while it is written.

    >>> most_at_once(TrainerConfig(max_steps=100, checkpoint_every=10, keep_checkpoints=2))
    3
    >>> most_at_once(TrainerConfig(max_steps=100, checkpoint_every=0, keep_checkpoints=2))
    1
    """
    steps, every = options.max_steps, options.checkpoint_every
    made = steps // every + bool(steps % every) if every else 1
    return min(made, options.keep_checkpoints + 1)


def warn_without_room(directory: RunDirectory, model: nn.Module, options: TrainerConfig) -> None:
    """Warn where the checkpoints to come will not fit beside those that are there; the folder must exist."""
    size, most = checkpoint_bytes(model), most_at_once(options)
    needed = size * max(most - len(directory.all_checkpoints()), 0)
    free = shutil.disk_usage(directory.path).free
    if needed > free:
        log.warning(
            "run_dir %s has room for %s, but checkpoints need about %s: each %s, and up to %d at once "
            "(trainer.keep_checkpoints and the one being written). A run whose checkpoint does not fit stops there. "
            "Make room, set run_dir elsewhere, or keep fewer.",
            directory.path,
            decimal(free),
            decimal(needed),
            decimal(size),
            most,
        )


def size_of(checkpoint: Path) -> str:
    """What a checkpoint takes, a file or a folder, for people."""
    files = checkpoint.rglob("*") if checkpoint.is_dir() else (checkpoint,)
    return decimal(sum(file.stat().st_size for file in files if file.is_file()))
