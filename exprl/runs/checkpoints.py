"""Reading the policy out of a run's checkpoint, and finding the run a checkpoint belongs to.

A checkpoint is a file, or, written by several devices that each hold a part of the model, a folder of the same name in
the format of `torch.distributed.checkpoint`. Both are read here in one plain process.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from exprl.errors import CheckpointError, ModelError, first_line
from exprl.runs.contents import fault
from exprl.runs.digests import digest_file
from exprl.runs.directory import RunDirectory
from exprl.runs.places import find_checkpoint, place_of, require_there

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

_STATE, _PREFIX = "state_dict", "policy."


def whole_checkpoint(path: Path) -> tuple[RunDirectory, Path]:
    """As `find_checkpoint`, but one that is as it was written: of a run folder the newest such.

    Raises:
        ModelError: as there, or the checkpoint that `path` names is damaged.
        CheckpointError: all of the run's are.
    """
    run, checkpoint = find_checkpoint(path)
    if place_of(path).kind == "run":
        newest, damaged = newest_whole(run.all_checkpoints())
        warn_of(damaged)
        checkpoint = newest or checkpoint
        warn_unless_digested(checkpoint)
    else:
        require_whole(checkpoint)
    return run, checkpoint


def require_whole(checkpoint: Path) -> None:
    """Raise `ModelError` unless a checkpoint is there and as it was written."""
    require_there(checkpoint)
    checkpoint = checkpoint.resolve()  # its digests lie beside the file, not beside a link to it
    problem = fault(checkpoint)
    if problem is not None:
        raise ModelError(f"{checkpoint} is damaged ({problem}). Give an earlier checkpoint of the run.")
    warn_unless_digested(checkpoint)


def newest_whole(
    checkpoints: Sequence[Path], damage_of: Callable[[Path], str | None] = fault
) -> tuple[Path | None, dict[Path, str]]:
    """The last of these checkpoints that is as it was written, and what is wrong with those after it.

    Args:
        checkpoints: the oldest first.
        damage_of: says what is wrong with one; several ranks look at it together.

    Raises:
        CheckpointError: there are some, and all are damaged.
    """
    damaged: dict[Path, str] = {}
    for checkpoint in reversed(checkpoints):
        problem = damage_of(checkpoint)
        if problem is None:
            return checkpoint, damaged
        damaged[checkpoint] = problem
    if damaged:
        listing = "; ".join(f"{checkpoint}: {problem}" for checkpoint, problem in damaged.items())
        raise CheckpointError(
            f"no checkpoint of the run is whole ({listing}). Restore one, or start a new run with run_dir=..."
        )
    return None, damaged


def warn_of(damaged: Mapping[Path, str]) -> None:
    """Say which checkpoints were passed over."""
    for checkpoint, problem in damaged.items():
        log.warning("%s is damaged (%s): it is passed over for the one before", checkpoint, problem)


def load_policy(model: PreTrainedModel, checkpoint: Path, *, checked: bool = False) -> None:
    """Put the policy's weights of a run's checkpoint into `model`, in the precision they trained in.

    Args:
        model: the run's own, as it was before training.
        checkpoint: where the weights are.
        checked: whether `whole_checkpoint` has found it whole, so that it need not be read twice.

    Raises:
        ModelError: the checkpoint is damaged, cannot be read, or is that of another model.
    """
    if not checked:
        require_whole(checkpoint)
    weights = policy_weights(checkpoint)
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name in weights:  # mixed precision trains float32 weights of a model that is stored in less
            tensor.data = tensor.data.to(weights[name].dtype)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ModelError(f"{checkpoint} does not fit the model of this config: {error}") from error


def policy_weights(checkpoint: Path) -> dict[str, Tensor]:
    """The policy's weights in a checkpoint on the CPU, under the names of the policy's own `state_dict`.

    Raises:
        ModelError: the checkpoint is missing, cut off, or holds no policy. (Other damage: see `require_whole`.)
    """
    require_there(checkpoint)
    state = _read_folder(checkpoint) if checkpoint.is_dir() else _read_file(checkpoint)
    weights = {name.removeprefix(_PREFIX): value for name, value in state.items() if name.startswith(_PREFIX)}
    if not weights:
        raise ModelError(f"{checkpoint} holds no policy: it is no checkpoint of a run.")
    return weights


def _read_file(checkpoint: Path) -> Mapping[str, Tensor]:
    # Tensors and plain values, nothing else is unpickled.
    try:
        content = torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise _unreadable(checkpoint, error) from error
    state = content.get(_STATE, {}) if isinstance(content, dict) else {}
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _read_folder(checkpoint: Path) -> Mapping[str, Tensor]:
    """The policy's tensors alone, put together from the parts of every device; needs no process group."""
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    from exprl.runs.parts import INDEX, PlainReader, cause_of, load_parts

    if not (checkpoint / INDEX).is_file():
        raise ModelError(
            f"{checkpoint} is no whole checkpoint: {INDEX} is missing, which is written last. Give an earlier one."
        )
    try:
        index = PlainReader(checkpoint).read_metadata()
        tensors: dict[str, Any] = {
            key: torch.empty(entry.size, dtype=entry.properties.dtype)
            for key, entry in index.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata) and _name(key).startswith(_PREFIX)
        }
        load_parts(tensors, checkpoint, alone=True)
    except (Exception, CheckpointException) as error:
        raise _unreadable(checkpoint, cause_of(error)) from error
    return {_name(key): tensor for key, tensor in tensors.items()}


def warn_unless_digested(checkpoint: Path) -> None:
    """Say so where a checkpoint has no digests: an earlier version wrote it, or they were left behind in a move."""
    if not digest_file(checkpoint).exists():
        log.warning("%s has no digests (%s): damage may go unseen", checkpoint, digest_file(checkpoint).name)


def _name(key: str) -> str:
    """The module's name of a tensor; the state of an optimizer keeps its own beginning."""
    return key.removeprefix(f"{_STATE}.")


def _unreadable(checkpoint: Path, error: BaseException) -> ModelError:
    return ModelError(
        f"{checkpoint} cannot be read as tensors and plain values ({first_line(error)}). Give an earlier checkpoint "
        "of the run."
    )
