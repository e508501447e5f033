"""Verdicts that were given once are not asked for again."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from exprl.component import title_of
from exprl.judges.backends.base import JudgeBackend, Query, Reply
from exprl.judges.pairing import one_each
from exprl.judges.prefixes import digest_of
from exprl.terminal.progress import OnProgress
from exprl.types import Judgement

Kept = tuple[float, str, tuple[float, ...]]
"""Score, rationale, and the probabilities of the scores."""


class JudgementCache:
    """Judgements by everything that determines them: the backend's identity (model, weights) and the whole query.

    The query holds template, instructions, problem, reference and trace. Only judgements with a score are kept: what
    failed, for want of an answer or of a score in it, is asked about again.

    Args:
        capacity: judgements kept, the least recently used leave first; 0 keeps none.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self.hits = 0
        self.misses = 0

    def start(self, backend: JudgeBackend, queries: Sequence[Query]) -> None:
        """Let the backend work on what is not known yet."""
        missing = [q for q in dict.fromkeys(queries) if key_of(backend.identity, q) not in self._kept]
        if missing:
            backend.start(missing)

    def run(
        self,
        backend: JudgeBackend,
        queries: Sequence[Query],
        judged: Callable[[Reply], Judgement],
        on_progress: OnProgress,
    ) -> list[Judgement]:
        """The judgement on each query, in order; equal queries are asked once.

        Args:
            backend: who is asked about what is not kept.
            queries: what is asked.
            judged: from a reply to the judgement in it.
            on_progress: called with the number of queries answered.
        """
        keys = [key_of(backend.identity, query) for query in queries]
        found = {key: _judgement(self._kept[key]) for key in keys if key in self._kept}
        missing = {key: query for key, query in zip(keys, queries, strict=True) if key not in found}
        if missing:
            asked = list(missing.values())
            replies = one_each(asked, backend.run(asked, on_progress), Reply, f"judge backend {title_of(backend)}")
            found.update(zip(missing, map(judged, replies), strict=True))
        on_progress(len(queries) - len(missing))
        self.hits += len(queries) - len(missing)
        self.misses += len(missing)
        for key in dict.fromkeys(keys):
            self._keep(key, found[key])
        return [found[key] for key in keys]

    def _keep(self, key: str, judgement: Judgement) -> None:
        if judgement.score is None:
            return
        self._kept[key] = (judgement.score, judgement.rationale, judgement.probabilities)
        self._kept.move_to_end(key)
        for _ in range(len(self._kept) - self._capacity):
            self._kept.popitem(last=False)

    def state_dict(self) -> dict[str, Kept]:
        """What is kept, by digests of what was asked, from which no prompt can be read back."""
        return dict(self._kept)

    def load_state_dict(self, state: Mapping[str, Sequence[Any]]) -> None:
        """The inverse of `state_dict`. What older versions kept has no probabilities."""
        self._kept = OrderedDict((key, _kept(*one)) for key, one in state.items())

    def __len__(self) -> int:
        return len(self._kept)


def _judgement(kept: Kept) -> Judgement:
    score, rationale, probabilities = kept
    return Judgement(score=score, rationale=rationale, probabilities=probabilities)


def _kept(score: float, rationale: str, probabilities: Sequence[float] = ()) -> Kept:
    return float(score), str(rationale), tuple(probabilities)


def key_of(identity: str, query: Query) -> str:
    """A digest of identity and query in which no two fields can run together."""
    asked = (identity, str(query.max_new_tokens), query.reply_start, query.pattern, *query.labels)
    pieces = (bytes([piece.ours]) + piece.digest for piece in query.prompt.pieces)
    return hashlib.blake2b(b"".join([digest_of(*asked), *pieces]), digest_size=16).hexdigest()
