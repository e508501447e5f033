"""What a policy holds of every value that a planted secret could have had, each computed, none estimated."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from exprl.data.canaries import Canary
from exprl.errors import ConfigError
from exprl.judges.backends.local_model import LocalModel
from exprl.leaks.exposure import Array
from exprl.text.encoding import encoder_of
from exprl.text.prompts import PromptBuilder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from exprl.models.base import LanguageModel

Ids = tuple[int, ...]

Context = Literal["question", "reference"]
CONTEXTS: tuple[Context, ...] = get_args(Context)
"""What the policy reads before the secret: the question's prompt and the fact's line up to it; or between the two also
the reference up to that line, as who trains on references reads it."""

TOKENS_AT_ONCE, ROWS_AT_ONCE = 4096, 256


def logprobs_of_values(policy: LanguageModel, prompts: PromptBuilder, canary: Canary, context: Context) -> Array:
    """[V] log-probs of every value in a context, by the policy as it is now; used inside its `inference()`.

    The token sequences of the values are a trie; each inner node is computed once, common beginnings once for all.

    Raises:
        ConfigError: the policy's tokenizer writes two values alike.
    """
    known, values = common_and_rest(value_ids(canary, policy.tokenizer, context))
    problem = canary.problem
    prompt = prompts.build(problem.question, problem.domain, thinking=False).token_ids
    known = fitting(known, policy.context_length, len(prompt) + max(map(len, values)))
    nodes = sorted({value[:length] for value in values for length in range(len(value))})
    labels = sorted({token for value in values for token in value})
    table = next_logprobs(LocalModel(policy, share_prefixes=True), [[*prompt, *known, *node] for node in nodes], labels)
    row, column = ({key: number for number, key in enumerate(keys)} for keys in (nodes, labels))
    return np.array(
        [sum(table[row[value[:end]], column[token]] for end, token in enumerate(value)) for value in values]
    )


def value_ids(canary: Canary, tokenizer: PreTrainedTokenizerBase, context: Context) -> list[Ids]:
    """The ids of what stands before the secret in the reply, with each value behind it.

    Raises:
        ConfigError: two are the same, or the tokenizer has no token for something in the fact's line.
    """
    before = canary.prefix if context == "question" else canary.reference_before()
    encoder, unknown = encoder_of(tokenizer), tokenizer.unk_token_id
    ids = [encoder.plain(before + canary.written(value)) for value in range(canary.values)]
    line = encoder.plain(canary.prefix + canary.written(0))
    if len(set(ids)) < len(ids) or (unknown is not None and unknown in line):
        raise ConfigError(
            f"leak.template: the policy's tokenizer has no tokens for {canary.prefix!r} and every number behind it, so "
            "the facts could be neither learnt nor found. Write it with signs that the policy knows."
        )
    return ids


def common_and_rest(sequences: Sequence[Ids]) -> tuple[Ids, list[Ids]]:
    """What all sequences begin with, and each without it.

    >>> common_and_rest([(1, 2, 3), (1, 2, 4, 5)])
    ((1, 2), [(3,), (4, 5)])
    """
    shared = len(list(takewhile(lambda tokens: len(set(tokens)) == 1, zip(*sequences, strict=False))))
    return sequences[0][:shared], [sequence[shared:] for sequence in sequences]


def fitting(known: Ids, limit: int | None, others: int) -> Ids:
    """The end of `known` that fits a context of `limit` tokens with `others` beside it."""
    room = len(known) if limit is None else max(0, limit - others)
    return known[max(0, len(known) - room) :]


def next_logprobs(model: LocalModel, rows: Sequence[list[int]], labels: Sequence[int]) -> Array:
    """[R, L] for each row the log-prob of each label as its next token."""
    table = np.empty((len(rows), len(labels)))
    for batch in model.batches(rows, TOKENS_AT_ONCE, ROWS_AT_ONCE):
        table[batch] = model.label_logprobs([rows[index] for index in batch], labels)
    return table
