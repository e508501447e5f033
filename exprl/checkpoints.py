"""Reading the policy out of a run's checkpoint, and finding the run a checkpoint belongs to.

A checkpoint is a file, or, written by several devices that each hold a part of the model, a folder of the same name in
the format of `torch.distributed.checkpoint`. Both are read here in one plain process.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from exprl.errors import ModelError
from exprl.run_directory import RunDirectory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHECKPOINT_SUFFIX = ".ckpt"
_STATE, _PREFIX = "state_dict", "policy."
_INDEX = ".metadata"  # of a checkpoint that is a folder


def is_run(folder: Path) -> bool:
    """Whether `folder` is the folder of a run."""
    run = RunDirectory(folder)
    return run.config.is_file() and run.checkpoints.is_dir()


def find_checkpoint(path: Path) -> tuple[RunDirectory, Path]:
    """The run and the checkpoint that `path` means: a checkpoint of a run, or a run folder, whose latest is taken.

    Raises:
        ModelError: there is nothing, no checkpoint yet, or no run around the checkpoint.
    """
    if not path.exists():
        raise ModelError(f"no run or checkpoint {path}. Give a run folder, or a .ckpt of its checkpoints/ folder.")
    if is_run(path):
        run = RunDirectory(path)
        latest = run.latest_checkpoint()
        if latest is None:
            raise ModelError(
                f"the run {path} has no checkpoint yet. Wait for its first one; trainer.checkpoint_every says when."
            )
        return run, latest
    run = RunDirectory(path.resolve().parent.parent)
    if not run.config.is_file():
        raise ModelError(
            f"{path} is no run folder, nor a checkpoint in one: {run.config} is missing. Give a run folder, or a .ckpt "
            "where the run left it."
        )
    return run, path


def load_policy(model: PreTrainedModel, checkpoint: Path) -> None:
    """Put the policy's weights of a run's checkpoint into `model`, in the precision they trained in.

    Raises:
        ModelError: the checkpoint cannot be read, or is that of another model.
    """
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
        ModelError: the checkpoint is missing, cut off, or holds no policy.
    """
    if not checkpoint.exists():
        raise ModelError(f"no checkpoint {checkpoint}. Give a .ckpt of a run's checkpoints/ folder.")
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
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    if not (checkpoint / _INDEX).is_file():
        raise ModelError(
            f"{checkpoint} is no whole checkpoint: {_INDEX} is missing, which is written last. Give an earlier one."
        )
    reader = FileSystemReader(checkpoint)
    try:
        index = reader.read_metadata()
        tensors: dict[str, Any] = {
            key: torch.empty(entry.size, dtype=entry.properties.dtype)
            for key, entry in index.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata) and _name(key).startswith(_PREFIX)
        }
        load(tensors, storage_reader=reader, no_dist=True)
    except (Exception, CheckpointException) as error:
        raise _unreadable(checkpoint, error) from error
    return {_name(key): tensor for key, tensor in tensors.items()}


def _name(key: str) -> str:
    """The module's name of a tensor; the state of an optimizer keeps its own beginning."""
    return key.removeprefix(f"{_STATE}.")


def _unreadable(checkpoint: Path, error: BaseException) -> ModelError:
    first = str(error).strip().partition("\n")[0]
    return ModelError(
        f"{checkpoint} cannot be read, it may be cut off ({first}). Give an earlier checkpoint of the run."
    )
