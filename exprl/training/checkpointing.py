"""What is written with a checkpoint, looked at before one is used, and changed in one; ranks share the work."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from torch.distributed.checkpoint.api import CheckpointException

from exprl.errors import CheckpointError, first_line
from exprl.runs.contents import fault
from exprl.runs.digests import digests, write_digests
from exprl.runs.parts import cause_of
from exprl.training.world import World

_UNREADABLE = (OSError, RuntimeError, ValueError, LookupError, EOFError, AssertionError, pickle.UnpicklingError)


class PlainCheckpointIO(TorchCheckpointIO):
    """Reads tensors and plain values; what cannot be read is a `CheckpointError`.

    Lightning's own writes by way of memory and the folder for temporary files, which may have no room for it.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write straight to `path`; the caller renames what is whole. Raises `OSError` where it cannot be written."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with Path(path).open("wb") as file:
            written = _Written(file)
            try:
                torch.save(checkpoint, written)  # type: ignore[arg-type]  # it needs these two methods alone
            except RuntimeError as error:
                raise written.error or error from error

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
        """The content of a checkpoint that is a file."""
        with readable(path):
            return super().load_checkpoint(path, map_location=map_location, weights_only=True)


class _Written:
    """A file that keeps why it could not be written: torch says only that it is not as long as it should be."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, content: bytes) -> int:
        """As the file's own."""
        try:
            return self.file.write(content)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        """As the file's own."""
        self.file.flush()


@contextmanager
def readable(checkpoint: Any) -> Iterator[None]:
    """Around reading a checkpoint; raises `CheckpointError` naming it."""
    try:
        yield
    except (*_UNREADABLE, CheckpointException) as error:
        raise CheckpointError(
            f"{checkpoint} cannot be read as a checkpoint of this run ({first_line(cause_of(error))}). Move it away "
            "to go on from the one before."
        ) from error


def write_digests_together(world: World, written: Path, target: Path) -> None:
    """Digests of the checkpoint `written`, which is to be called `target`, each file by one rank.

    Raises:
        CheckpointError: a rank cannot read its part, or rank 0 cannot write them.
    """
    what = f"the digests of {target.name}"
    parts = world.gather(digests(written, slice(world.rank, None, world.size)), what)
    if world.first:
        write_digests(target, {name: digest for part in parts for name, digest in part.items()})


def damage_together(world: World, checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None: each file is looked at by one rank, and all give the same answer."""
    found = world.gather(fault(checkpoint, slice(world.rank, None, world.size)), f"the check of {checkpoint.name}")
    return next((problem for problem in found if problem is not None), None)


def reopen(fit_loop: dict[str, Any]) -> None:
    """Take back that the one epoch of a run has ended, in Lightning's saved state: the run is to be longer now."""
    fit_loop["epoch_loop.batch_progress"]["is_last_batch"] = False
    for progress in fit_loop["epoch_progress"].values():
        progress.update(processed=0, completed=0)
