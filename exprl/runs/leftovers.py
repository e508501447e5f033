"""Removing checkpoints, and what a killed process left beside them."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

from exprl.runs.digests import digest_file
from exprl.runs.directory import RunDirectory

log = logging.getLogger(__name__)

WRITING = ".writing"
"""The suffix of a checkpoint that is being written."""


def remove(checkpoint: Path) -> None:
    """Delete a checkpoint, file or folder, and its digests, if they are there."""
    if checkpoint.is_dir() and not checkpoint.is_symlink():
        shutil.rmtree(checkpoint)
    else:
        checkpoint.unlink(missing_ok=True)
    digest_file(checkpoint).unlink(missing_ok=True)


def set_aside(checkpoint: Path) -> None:
    """Give a damaged checkpoint a name that nobody takes for a checkpoint's."""
    aside = checkpoint.with_name(f"{checkpoint.name}.damaged")
    remove(aside)
    checkpoint.rename(aside)
    digest_file(checkpoint).unlink(missing_ok=True)
    log.warning("%s is now %s; delete it if you do not need it", checkpoint.name, aside)


def tidy(run: RunDirectory) -> None:
    """Delete half-written checkpoints and digests without one, as a kill between two steps of the work leaves them.

    Only for the process that has the folder's lock.
    """
    for unfinished in run.checkpoints.glob(f"step-*{WRITING}"):
        remove(unfinished)
    for digests in run.checkpoints.glob("step-*.ckpt.sha256"):
        if not os.path.lexists(digests.with_suffix("")):
            digests.unlink(missing_ok=True)
