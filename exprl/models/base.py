"""A causal language model with its tokenizer, and the contract of what provides one."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from exprl.component import Component

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class LanguageModel:
    """A Hugging Face causal LM and the tokenizer that belongs to it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str

    @property
    def context_length(self) -> int | None:
        """Longest sequence in tokens, where the model's config says so."""
        length = getattr(self.model.config, "max_position_embeddings", None)
        return int(length) if length is not None else None


class ModelProvider(Component):
    """Makes the initial policy of a run."""

    @abstractmethod
    def load(self) -> LanguageModel:
        """The model in its initial state, each call a fresh copy; raises `ModelError`."""

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer alone, for who talks to the model elsewhere."""
        return self.load().tokenizer

    @classmethod
    def from_config(cls, config: Any, resources: Any) -> ModelProvider:
        """Providers need nothing from a run: they come first."""
        del resources
        return cls(config)
