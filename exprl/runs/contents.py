"""What a checkpoint holds against what its name says, so that a copy under another name is not taken for that step."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any

import torch

from exprl.errors import first_line
from exprl.runs.digests import ALL, damage, digest_file
from exprl.runs.directory import CHECKPOINT, RunDirectory
from exprl.runs.parts import REST

log = logging.getLogger(__name__)


def fault(checkpoint: Path, part: slice = ALL) -> str | None:
    """What is wrong with a checkpoint, or with some of its files, in words: damage, or the step of another name.

    One without digests is also read as it would be to go on from it, for what no checksum covers: the places and names
    of the tensors in the file. One with digests that cannot be read was written so; reading it says why.
    """
    problem = damage(checkpoint, part)
    if problem is not None or 0 not in range(1)[part]:
        return problem
    try:
        step = _step_in(checkpoint, whole=not digest_file(checkpoint).exists())
    except Exception as error:  # noqa: BLE001 - a damaged file may stop torch in any way
        if digest_file(checkpoint).exists() or isinstance(error, pickle.UnpicklingError):
            return None
        return f"it cannot be read: {first_line(error)}"
    name = CHECKPOINT.fullmatch(checkpoint.name)
    if step is None or name is None or step == int(name[1]):
        return None
    return f"it is the checkpoint of step {step} under another name"


def problems_in(checkpoint: Path) -> dict[str, str] | None:
    """The fingerprint of the problems that a run's policy was trained on; None where the checkpoint has none."""
    problems = _state_in(checkpoint, "ExpRLDataModule", whole=False).get("problems")
    return problems if isinstance(problems, dict) else None


def problems_of(run: RunDirectory) -> dict[str, str] | None:
    """The same of a run, from the newest checkpoint that can be read; None where none can."""
    for checkpoint in reversed(run.all_checkpoints()):
        try:
            return problems_in(checkpoint)
        except Exception as error:  # noqa: BLE001 - a damaged file may stop torch in any way
            log.warning("%s cannot be read (%s: %s): an earlier one says it", checkpoint, type(error).__name__, error)
    return None


def _step_in(checkpoint: Path, *, whole: bool) -> int | None:
    """The steps done when it was written, None where it does not say; reads the tensors as well if `whole`."""
    step = _state_in(checkpoint, "exprl", whole=whole).get("steps_done")
    return step if isinstance(step, int) else None


def _state_in(checkpoint: Path, key: str, *, whole: bool) -> dict[str, Any]:
    """A part of what a checkpoint holds beside tensors; empty where it has none of that name."""
    file = checkpoint / REST if checkpoint.is_dir() else checkpoint
    if checkpoint.is_dir() and not file.is_file():
        return {}
    content: Any = torch.load(file, map_location="cpu", mmap=not whole, weights_only=True)
    state = content.get(key) if isinstance(content, dict) else None
    return state if isinstance(state, dict) else {}
