"""A causal language model with its tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from exprl.errors import ModelError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class LanguageModel:
    """A Hugging Face causal LM and the tokenizer that belongs to it.

    Attributes:
        model: its weights may train.
        tokenizer: of the model.
        name: in messages.
        adapter: whether the model's adapter, if there is one, takes part; without it this is the model's frozen base.
        dtype_by_name: whether the user chose the precision of its weights, rather than taking them as they are stored.
        compute_dtype: what it is run in under mixed precision; None: the dtype of the weights.
        teacher_template: the user message, of {reference} and {task}, in which it was trained to read a solution; None:
            it is told in words what the solution is for.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    adapter: bool = True
    dtype_by_name: bool = False
    compute_dtype: torch.dtype | None = None
    teacher_template: str | None = None

    def __post_init__(self) -> None:
        # here, as a provider's options are read before there is a model
        from exprl.models.linear import speed_up
        from exprl.models.memory import keep_freed_memory

        keep_freed_memory()
        speed_up(self.model)

    @contextmanager
    def inference(self) -> Iterator[None]:
        """No gradients, eval mode, whole weights, no adapter where it takes no part; afterwards all is as it was.

        Never around a `yield`: whoever consumes the generator would find gradients off.
        """
        import torch  # here, as a provider's options are read before there is a model

        from exprl.models.lora import without_adapter
        from exprl.models.modes import evaluating
        from exprl.models.sharding import gathered

        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(evaluating(self.model))
            stack.enter_context(gathered(self.model))
            if not self.adapter:
                stack.enter_context(without_adapter(self.model))
            yield

    @property
    def adapted(self) -> bool:
        """Whether it computes with an adapter, so that there is a frozen base beside it."""
        from exprl.models.lora import has_adapter

        return self.adapter and has_adapter(self.model)

    @property
    def context_length(self) -> int | None:
        """Longest sequence in tokens, where the model's config says so."""
        text: Any = self.model.config.get_text_config(decoder=True)  # of a model that reads pictures, too
        length = getattr(text, "max_position_embeddings", None)
        return int(length) if length is not None else None


def check_vocabulary(language_model: LanguageModel) -> None:
    """Raise `ModelError` where the tokenizer has tokens that the model cannot read or write."""
    embeddings: Any = language_model.model.get_input_embeddings()
    known, tokens = len(embeddings.weight), len(language_model.tokenizer)
    if tokens > known:
        raise ModelError(
            f"{language_model.name}: its tokenizer has {tokens} tokens, but the model embeds {known}, so some would be "
            "an index out of range. Give the tokenizer that the model was trained with, or a model whose embeddings "
            "were resized to it (resize_token_embeddings) and saved."
        )
