"""Verdicts that were given once are not asked for again."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import count
from typing import Any

from exprl.judges.backend import JudgeBackend, Query, Reply
from exprl.progress import Advance


class ReplyCache:
    """Replies by everything that determines them: the backend's identity (model, weights) and the whole query.

    The query holds template, instructions, problem, reference and trace. Only replies with status ok are kept.

    Args:
        capacity: replies kept, the least recently used leave first; 0 keeps none.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._replies: OrderedDict[str, Reply] = OrderedDict()
        self.hits = 0
        self.misses = 0

    def start(self, backend: JudgeBackend, queries: Sequence[Query]) -> None:
        """Let the backend work on what is not known yet."""
        missing = [q for q in dict.fromkeys(queries) if key_of(backend.identity, q) not in self._replies]
        if missing:
            backend.start(missing)

    def run(self, backend: JudgeBackend, queries: Sequence[Query], advance: Advance) -> list[Reply]:
        """The reply to each query, in order; equal queries are asked once."""
        keys = [key_of(backend.identity, query) for query in queries]
        known = {key: self._replies[key] for key in keys if key in self._replies}
        missing = {key: query for key, query in zip(keys, queries, strict=True) if key not in known}
        asked = dict(zip(missing, backend.run(list(missing.values()), advance), strict=True)) if missing else {}
        advance(len(queries) - len(missing))
        self.hits += len(queries) - len(missing)
        self.misses += len(missing)
        found = {**known, **asked}
        for key in dict.fromkeys(keys):
            self._keep(key, found[key])
        return [found[key] for key in keys]

    def _keep(self, key: str, reply: Reply) -> None:
        if reply.status != "ok":
            return
        self._replies[key] = reply
        self._replies.move_to_end(key)
        for _ in range(len(self._replies) - self._capacity):
            self._replies.popitem(last=False)

    def state_dict(self) -> dict[str, Any]:
        """The replies, as plain values, by digests of what was asked, from which no prompt can be read back."""
        return {key: asdict(reply) for key, reply in self._replies.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self._replies = OrderedDict((key, Reply(**reply)) for key, reply in state.items())

    def __len__(self) -> int:
        return len(self._replies)


def key_of(identity: str, query: Query) -> str:
    """A digest of identity and query in which no two fields can run together."""
    digest = hashlib.blake2b(digest_size=16)
    pieces = [f"{piece.ours:d}{piece.text}" for piece in query.prompt.pieces]
    for number, text in zip(
        count(),
        [identity, str(query.max_new_tokens), query.reply_start, query.pattern, *query.labels, "\0", *pieces],
        strict=False,
    ):
        encoded = text.encode("utf-8", "surrogatepass")
        digest.update(f"{number}:{len(encoded)}:".encode())
        digest.update(encoded)
    return digest.hexdigest()
