"""What ends a rollout: tokens and stop strings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING

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


def ends_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, stop: tuple[str, ...] = ()) -> Ends:
    """The tokenizer's and the generation config's end-of-sequence tokens, and a test for stop strings."""
    generation = getattr(model, "generation_config", None)
    extra = getattr(generation, "eos_token_id", None)
    ids = {tokenizer.eos_token_id, *(extra if isinstance(extra, (list, tuple)) else [extra])} - {None}
    if not stop:
        return Ends(token_ids=frozenset(ids))

    def ends_text(tails: list[list[int]]) -> list[bool]:
        texts = tokenizer.batch_decode(tails, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return [any(string in text for string in stop) for text in texts]

    longest = max(len(string.encode()) for string in stop)  # a token that adds to the text adds at least a byte
    return Ends(
        token_ids=frozenset(ids), tail=longest + 4, ends_text=ends_text, adds_text=cache(partial(_adds_text, tokenizer))
    )


def _adds_text(tokenizer: PreTrainedTokenizerBase, token_id: int) -> bool:
    """Whether a token is part of a decoded text: neither special nor unknown to the tokenizer."""
    if not tokenizer.convert_ids_to_tokens(token_id):
        return False
    shown, whole = (tokenizer.decode([token_id], skip_special_tokens=skip) for skip in (True, False))
    return shown != "" or whole == ""  # a lone space may be nothing by itself
