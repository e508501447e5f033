"""A judge's queries as completions of a server: what is asked, and what becomes of the answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from exprl.engines.completions import Completion
from exprl.judges.backends.base import Query, Reply
from exprl.judges.backends.tokens import JudgeTokenizer

_TOP_LOGPROBS = 20
"""What servers give at most; a label that is not among them counts as probability 0, see `min_mass`."""

_ID = "token_id:"


def request_for(query: Query, ids: Sequence[int]) -> dict[str, Any]:
    """The fields that ask for the reply to `query`, whose prompt has these ids."""
    if query.labels:
        # The ids of tokens, not their texts: two tokens can have the same text.
        named_by_id = {"return_tokens_as_token_ids": True}
        return {"prompt": ids, "temperature": 0.0, "max_tokens": 1, "logprobs": _TOP_LOGPROBS, **named_by_id}
    constraint = {"structured_outputs": {"regex": query.pattern}} if query.pattern else {}
    return {"prompt": ids, "temperature": 0.0, "max_tokens": query.max_new_tokens, **constraint}


def reply_in(
    completion: Completion, query: Query, label_ids: Sequence[int], tokens: JudgeTokenizer, where: object
) -> Reply:
    """The reply that an answer holds; one without the log-probs asked for is a reply with status error."""
    if not query.labels:
        text = completion.text if query.pattern else tokens.reply_opening + completion.text
        return Reply(text=text, finished=completion.finish_reason == "stop")
    top = completion.top_logprobs[0] if completion.top_logprobs else {}
    if not any(name.startswith(_ID) for name in top):
        return Reply(
            status="error",
            text=f"{where} gives no log-probs by token id (logprobs, return_tokens_as_token_ids): set "
            "scoring: rationale, or ask vLLM's own server",
        )
    return Reply(probabilities=tuple(math.exp(top.get(f"{_ID}{i}", -math.inf)) for i in label_ids))
