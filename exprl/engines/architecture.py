"""What a vLLM engine or server is started from when a model's weights are given to it later."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING

from exprl.errors import ConfigError

if TYPE_CHECKING:
    from exprl.models.base import LanguageModel


def write_architecture(language_model: LanguageModel, folder: str | Path) -> None:
    """Write configuration and tokenizer into `folder`, but no weights."""
    config = copy.deepcopy(language_model.model.config)
    # a model made from a config alone names none; FSDP puts its own name before a sharded model's class
    config.architectures = [type(language_model.model).__name__.removeprefix("FSDP")]
    config.save_pretrained(folder)
    language_model.tokenizer.save_pretrained(folder)


def dtype_for(language_model: LanguageModel, wanted: str) -> str:
    """The precision to compute in: what is `wanted`, or for `auto` what the model is run in elsewhere."""
    if wanted != "auto":
        return wanted
    return str(language_model.compute_dtype or language_model.model.dtype).removeprefix("torch.")


def longest_for(language_model: LanguageModel, wanted: int | None) -> int:
    """The longest prompt plus response, in tokens: what is `wanted`, or for None the model's context.

    Raises:
        ConfigError: the model's config names no context length.
    """
    longest = language_model.context_length if wanted is None else wanted
    if longest is None:
        raise ConfigError("rollout.max_model_len: required, since the model's config names no context length.")
    return longest
