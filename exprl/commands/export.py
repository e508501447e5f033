"""`exprl export`: the policy of a checkpoint as an ordinary Hugging Face folder, or its adapter as one of peft's."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from transformers import GenerationConfig

from exprl.engines.ends import end_tokens
from exprl.errors import ModelError, one_line
from exprl.experiment import load_run
from exprl.files.disk import check_new_folder, local_path
from exprl.models.cache import draft_of
from exprl.models.lora import adapter_config, adapter_tensors, has_adapter, merged_weights
from exprl.runs.checkpoints import load_policy, whole_checkpoint
from exprl.runs.places import find_checkpoint
from exprl.terminal.console import Console

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from exprl.models.base import LanguageModel
    from exprl.runs.directory import RunDirectory

log = logging.getLogger(__name__)

_building: list[Path] = []
"""The runs whose models are being built, each for the one before it."""

Precision = Literal["float32", "bfloat16", "float16"]


def export(
    source: Path, folder: Path, *, adapter: bool = False, dtype: Precision | None = None, console: Console
) -> None:
    """Write the policy of `source`, a run or a checkpoint, to the new `folder`, whole or not at all.

    Args:
        source: a run folder, whose latest checkpoint is taken, or a checkpoint where its run left it.
        folder: must be missing or empty.
        adapter: write the adapter alone, instead of the weights with it merged in.
        dtype: precision of what is written; None: as trained.
        console: is told what was written, and how to load it.

    Raises:
        ExprlError: there is no such checkpoint or it cannot be read, `folder` is in use or cannot be written, or an
            adapter is asked for and there is none.
    """
    folder = local_path(folder, "DIR")
    check_new_folder(folder, "DIR")
    run, checkpoint = whole_checkpoint(local_path(source, "RUN | CHECKPOINT"))
    policy = trained_policy(run, checkpoint)
    if adapter and not has_adapter(policy.model):
        raise ModelError(f"{checkpoint} was trained without an adapter (lora.rank=0). Leave out --adapter.")
    with draft_of(folder, advice="give another folder", shared=False) as draft:
        if adapter:
            write_adapter(policy.model, draft, dtype)
        else:
            write_model(policy, draft, dtype)
        names = ", ".join(sorted(path.name for path in draft.iterdir()))
    console.say(f"{checkpoint} -> {folder}: {names}")
    usage = (
        f"peft.PeftModel.from_pretrained(base, {str(folder)!r}), base being {_base(policy.model)}"
        if adapter
        else f"AutoModelForCausalLM.from_pretrained({str(folder)!r}), or exprl train CONFIG model.path={folder}"
    )
    console.say(f"load it: {usage}")


def exported(source: Path) -> Path:
    """A checkpoint, or the latest one of a run, as a Hugging Face folder inside the run, made unless it is there.

    Raises:
        ExprlError: the run has no checkpoint yet, it cannot be read, or the run's folder cannot be written.
    """
    run, checkpoint = find_checkpoint(source)
    folder = _within(run, checkpoint)
    if not folder.is_dir():
        run, checkpoint = whole_checkpoint(source)
        folder = _within(run, checkpoint)
    if not folder.is_dir():
        policy = trained_policy(run, checkpoint)
        with draft_of(folder, advice=f"exprl export {source} to a folder of your own and give that") as draft:
            write_model(policy, draft)
    return folder


def trained_policy(run: RunDirectory, checkpoint: Path) -> LanguageModel:
    """The policy of a run as it was at a checkpoint that `whole_checkpoint` found.

    Raises:
        ExprlError: it cannot be read or built, or the run's config asks for plugins that nobody else has named.
    """
    from exprl.build import Build  # builds models, which may be exports themselves

    with _one_at_a_time(run.path):
        policy = Build(load_run(run.config)).policy
    load_policy(policy.model, checkpoint, checked=True)
    return policy


def _within(run: RunDirectory, checkpoint: Path) -> Path:
    return run.path / "export" / checkpoint.stem


@contextmanager
def _one_at_a_time(run: Path) -> Iterator[None]:
    """A run's model may come from another run, but not from itself."""
    place = run.resolve()
    if place in _building:
        raise ModelError(f"the run {run} starts from itself: model.path of {' and '.join(map(str, _building))}.")
    _building.append(place)
    try:
        yield
    finally:
        _building.remove(place)


def write_model(policy: LanguageModel, folder: Path, dtype: Precision | None = None) -> None:
    """Weights with the adapter merged in, configuration and tokenizer into `folder`; the policy is left as it is."""
    model = policy.model
    config = copy.deepcopy(model.config)
    with torch.device("meta"):
        plain = type(model)(config)
    plain.load_state_dict({name: _cast(weight, dtype) for name, weight in merged_weights(model)}, assign=True)
    plain.tie_weights()
    plain.generation_config = _generation_config(policy)
    plain.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
    _open_to_all(folder)


def _generation_config(policy: LanguageModel) -> GenerationConfig:
    """The policy's, with which whoever samples stops where the run's rollouts did."""
    config = copy.deepcopy(policy.model.generation_config) or GenerationConfig()
    first, *others = sorted(end_tokens(policy.model, policy.tokenizer))
    config.eos_token_id = [first, *others] if others else first
    try:
        config.validate(strict=True)
    except ValueError as error:  # transformers reads what it refuses to write
        log.warning(
            "%s: the sampling options of its generation config contradict each other and are left out (%s)",
            policy.name,
            one_line(error)[:300],
        )
        names = ("bos_token_id", "eos_token_id", "pad_token_id")
        return GenerationConfig(**{name: getattr(config, name) for name in names})
    return config


def write_adapter(model: PreTrainedModel, folder: Path, dtype: Precision | None = None) -> None:
    """The adapter alone, as peft reads it, into `folder`."""
    from safetensors.torch import save_file

    tensors = {name: _cast(tensor, dtype).contiguous() for name, tensor in adapter_tensors(model).items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {**adapter_config(model), "base_model_name_or_path": _base(model)}
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    _open_to_all(folder)


def _open_to_all(folder: Path) -> None:
    """Drafts and safetensors files begin as their owner's alone, but a server may run as somebody else."""
    folder.chmod(0o755)
    for file in folder.iterdir():
        file.chmod(0o644)


def _cast(tensor: Tensor, dtype: Precision | None) -> Tensor:
    return tensor if dtype is None or not tensor.is_floating_point() else tensor.to(getattr(torch, dtype))


def _base(model: PreTrainedModel) -> str:
    """Where the base model came from: a hub id, or a folder by its whole path."""
    place = str(model.name_or_path)
    return str(Path(place).resolve()) if Path(place).is_dir() else place
