"""What ends a rollout: tokens and stop strings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from exprl.text.chat import reply_end

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class Ends:
    """What ends a row: token ids, or a text test on its last `tail` tokens that add to its text (0: no text test)."""

    token_ids: frozenset[int]
    tail: int = 0
    ends_text: Callable[[list[list[int]]], list[bool]] = lambda tails: [False] * len(tails)
    adds_text: Callable[[int], bool] = lambda _: True


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """A token to pad with; masked wherever it stands."""
    pad = tokenizer.pad_token_id
    return pad if isinstance(pad, int) else 0


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokenizer's and the generation config's end-of-sequence tokens, and what the chat template ends a reply with.

    Base models lack the last among the others: a policy that has learnt to end its turn would write the next ones, too.
    """
    configured: Any = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    of_config = configured if isinstance(configured, (list, tuple)) else [configured]
    return frozenset({tokenizer.eos_token_id, reply_end(tokenizer), *of_config} - {None})


def ends_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, stop: tuple[str, ...] = ()) -> Ends:
    """The model's `end_tokens`, and a test for stop strings."""
    ids = end_tokens(model, tokenizer)
    if not stop:
        return Ends(token_ids=ids)

    def ends_text(tails: list[list[int]]) -> list[bool]:
        texts = tokenizer.batch_decode(tails, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return [any(string in text for string in stop) for text in texts]

    longest = max(len(string.encode()) for string in stop)  # a token that adds to the text adds at least a byte
    adds_text = cache(partial(_adds_text, tokenizer))
    return Ends(token_ids=ids, tail=longest + 4, ends_text=ends_text, adds_text=adds_text)


def _adds_text(tokenizer: PreTrainedTokenizerBase, token_id: int) -> bool:
    """Whether a token is part of a decoded text: neither special nor unknown to the tokenizer."""
    if not tokenizer.convert_ids_to_tokens(token_id):
        return False
    shown, whole = (tokenizer.decode([token_id], skip_special_tokens=skip) for skip in (True, False))
    return shown != "" or whole == ""  # a lone space may be nothing by itself
