"""What a judge's model in this process computes: batches of prompts, logits after them, and greedy replies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from exprl.engines.base import Sampling
from exprl.engines.decoding import Arrivals, Decoded, Decoding
from exprl.engines.ends import ends_of, pad_id
from exprl.engines.prefill import Prefilled, prefill
from exprl.judges.backends.tree import build_tree, pack
from exprl.judges.backends.tree_forward import tree_logits, tree_prefill, understands_trees
from exprl.models.incremental import reading_of

if TYPE_CHECKING:
    from exprl.models.base import LanguageModel


class LocalModel:
    """A language model that reads many prompts at a time, common beginnings once; used inside its `inference()`.

    Args:
        language_model: its weights are read at every call.
        share_prefixes: compute what prompts have in common once, where the model understands trees.
    """

    def __init__(self, language_model: LanguageModel, *, share_prefixes: bool) -> None:
        self._language_model = language_model
        self._share_prefixes = share_prefixes

    def batches(self, sequences: Sequence[Sequence[int]], max_tokens: int, max_rows: int) -> list[list[int]]:
        """Indices of `sequences`, each once, in batches of at most `max_tokens` tokens to compute, or of one row."""
        if self._share:
            return pack(sequences, max_tokens, max_rows)
        pads = reading_of(self._language_model.model).pads
        return batches_by_length(sequences, max_tokens, max_rows, mixed=pads)

    def label_probabilities(self, rows: list[list[int]], label_ids: Sequence[int]) -> list[list[float]]:
        """For each row the probability of each label as its next token."""
        probabilities: list[list[float]] = self._last_logits(rows).float().softmax(-1)[:, list(label_ids)].tolist()
        return probabilities

    def label_logprobs(self, rows: list[list[int]], label_ids: Sequence[int]) -> list[list[float]]:
        """The same as log-probs, which also tell apart what is next to impossible."""
        logprobs: list[list[float]] = self._last_logits(rows).float().log_softmax(-1)[:, list(label_ids)].tolist()
        return logprobs

    def greedy(self, rows: list[list[int]], max_new_tokens: int) -> Iterator[Decoded]:
        """The greedy reply to each row, `slot` its index, in the order in which they end."""
        model, tokenizer = self._language_model.model, self._language_model.tokenizer
        sampling = Sampling(n=1, top_k=1, max_new_tokens=max_new_tokens)
        unused = torch.zeros(len(rows), max_new_tokens, dtype=torch.float64)
        first = Arrivals(prefilled=self._prefilled(rows), uniforms=unused)
        return Decoding(model, first, sampling, ends_of(model, tokenizer)).run()

    @property
    def _share(self) -> bool:
        """Asked while the model's weights are whole."""
        return self._share_prefixes and understands_trees(self._language_model.model)

    def _prefilled(self, rows: list[list[int]]) -> Prefilled:
        model = self._language_model.model
        if self._share and len(rows) > 1:
            return tree_prefill(model, build_tree(rows))
        return prefill(model, rows, pad_id(self._language_model.tokenizer))

    def _last_logits(self, rows: list[list[int]]) -> Tensor:
        if self._share and len(rows) > 1:
            return tree_logits(self._language_model.model, build_tree(rows))
        return self._prefilled(rows).logits


def batches_by_length(
    sequences: Sequence[Sequence[int]], max_tokens: int, max_rows: int, *, mixed: bool = True
) -> list[list[int]]:
    """Batches of like length for padding, or of one length unless `mixed`; at most `max_tokens` tokens or one row."""
    batches: list[list[int]] = []
    for index in sorted(range(len(sequences)), key=lambda index: len(sequences[index])):
        rows = len(batches[-1]) + 1 if batches else 0
        other = bool(batches) and not mixed and len(sequences[batches[-1][0]]) != len(sequences[index])
        if not batches or other or rows > max_rows or rows * len(sequences[index]) > max_tokens:
            batches.append([])
        batches[-1].append(index)
    return batches
