"""Models that are published, or exported, as an adapter of another one: they are loaded with it merged in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from exprl.checks.packages import lacking
from exprl.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


ADAPTER_CONFIG = "adapter_config.json"
"""The file of peft's that makes a folder an adapter."""


def adapted_base(location: str) -> str | None:
    """Where the model is that `location`, a folder or a hub id, adapts; None where it holds no adapter.

    Raises:
        ModelError: its adapter_config.json names none.
    """
    from transformers.utils.peft_utils import find_adapter_config_file

    try:
        file = find_adapter_config_file(location)
    except (OSError, ValueError):  # no such place, which whoever loads from it tells better
        return None
    if file is None:
        return None
    try:
        config = json.loads(Path(file).read_text(encoding="utf-8"))
        base = config.get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"cannot read {file}: {error}") from error
    if not base or not isinstance(base, str) or Path(base).resolve() == Path(location).resolve():
        raise ModelError(f"{file} names no base_model_name_or_path, the model that its adapter belongs to.")
    return base


def check_mergeable(location: str) -> None:
    """Raise `ModelError` where the package that merges adapters, as at `location`, is missing or too old."""
    lack = lacking("peft", "lora")
    if lack is not None:
        raise ModelError(f"{location} is an adapter, but {lack}; or give a model that it is merged into.")


def with_adapter(model: PreTrainedModel, location: str) -> PreTrainedModel:
    """`model` with the adapter at `location` merged into its weights: one policy, with no other behind it.

    Left beside the weights, the adapter would be the only thing to train, or a second one would go beside it, and the
    frozen initial policy would be the model without it.

    Raises:
        ModelError: peft is missing or too old, or cannot merge this adapter.
    """
    check_mergeable(location)
    from peft import PeftModel

    try:
        merged: PreTrainedModel = PeftModel.from_pretrained(model, location).merge_and_unload()
    except (OSError, ValueError, LookupError, RuntimeError, AttributeError, TypeError) as error:
        # a kind of adapter that it does not know, or that has no weights to merge, such as a prompt
        raise ModelError(f"cannot merge the adapter of {location} into its model: {error}") from error
    merged.__dict__.pop("peft_config", None)  # left behind, it would count as an adapter still there
    merged.name_or_path = location
    return merged.requires_grad_(True)  # peft freezes what it adapts
