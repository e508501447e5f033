"""The contract of what provides a language model."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from exprl.component import Component
from exprl.models.base import LanguageModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ModelProvider(Component):
    """Makes the initial policy of a run, or a judge's own model."""

    registered_family: ClassVar[str] = "model"

    @abstractmethod
    def load(self) -> LanguageModel:
        """The model in its initial state, each call a fresh copy; raises `ModelError`."""

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer alone, for who talks to the model elsewhere."""
        return self.load().tokenizer
