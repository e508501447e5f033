"""The prefixes of one text that a judge is asked about, as views on it.

A rollout of K segments is judged at K prefixes. Whatever is done to a text for a judge (defusing, a digest, token ids)
is done once to all of it, part by part, and each prefix reads its share: the prefixes of what was made are the same
text up to where the shorter one ends, and K of them cost what the whole costs.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, ClassVar, Concatenate, ParamSpec, TypeVar

from exprl.types import JudgeRequest, Problem, View

P = ParamSpec("P")
T = TypeVar("T")
Span = tuple[int, int]
"""Characters [start, stop)."""


class Parts:
    """A text in parts, of which the first k are its prefix k. Each is itself alone: equal texts are others.

    Args:
        parts: what the text is made of, in order.
    """

    def __init__(self, parts: Sequence[str]) -> None:
        self.parts = tuple(parts)
        self._known: dict[Any, Any] = {}

    def __len__(self) -> int:
        return len(self.parts)

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self.parts)

    @property
    def ends(self) -> list[int]:
        """The character at which each part ends."""
        return list(accumulate(map(len, self.parts)))

    def prefix(self, count: int) -> Prefix:
        """The first `count` parts."""
        return Prefix(self, count)

    def prefixes(self) -> list[Prefix]:
        """All of them, the shortest first."""
        return [self.prefix(count) for count in range(1, len(self) + 1)]

    def once(self, make: Callable[Concatenate[Parts, P], T], *arguments: P.args, **options: P.kwargs) -> T:
        """`make(self, ...)`, a pure function of hashable arguments, computed once for as long as this text lives."""
        key = (make, arguments, *options.items())
        if key not in self._known:
            self._known[key] = make(self, *arguments, **options)
        made: T = self._known[key]
        return made


@dataclass(frozen=True, eq=False)
class Prefix:
    """The first `count` parts of a text from outside; equal to another of the same parts."""

    whole: Parts
    count: int
    ours: ClassVar[bool] = False
    """As a piece of a prompt it may be hostile."""

    @property
    def text(self) -> str:
        """Made when it is read: K of them are K times as long as the whole."""
        return "".join(self.whole.parts[: self.count])

    @property
    def digest(self) -> bytes:
        """16 bytes that tell it from every other text, and from the same one in other parts."""
        return self.whole.once(_digests)[self.count]

    @property
    def is_blank(self) -> bool:
        """Whether there is nothing but white space."""
        return self.count <= self.whole.once(_blank_parts)

    def made(self, make: Callable[Concatenate[Parts, P], Parts], *arguments: P.args, **options: P.kwargs) -> Prefix:
        """The same prefix of what `make` makes of the whole text."""
        return replace(self, whole=self.whole.once(make, *arguments, **options))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Prefix) and other.digest == self.digest

    def __hash__(self) -> int:
        return hash(self.digest)


def digest_of(*texts: str) -> bytes:
    """16 bytes that tell these texts, in this order, from all others."""
    return Parts(texts).prefix(len(texts)).digest


def replaced(parts: Parts, spans: Sequence[Span], by: str) -> Parts:
    """The text with each of these spans, which come in order and do not overlap, exchanged for `by`.

    A part that ends inside a span ends before it: nothing of it is in the prefix yet.

    >>> replaced(Parts(["a<", "b &l", "t; c"]), [(1, 2), (4, 8)], "[").parts
    ('a[', 'b ', '[ c')
    """
    if not spans:
        return parts
    text = parts.text
    starts, stops = [start for start, _ in spans], [stop for _, stop in spans]
    kept = [text[stop:start] for stop, start in zip([0, *stops], [*starts, len(text)], strict=True)]
    shifts = [0, *accumulate(len(by) - (stop - start) for start, stop in spans)]
    ends = []
    for end in parts.ends:
        inside = bisect_left(starts, end) - 1  # the last span that has begun
        before = starts[inside] if inside >= 0 and stops[inside] > end else end
        ends.append(before + shifts[bisect_right(stops, before)])
    made = by.join(kept)
    return Parts([made[start:end] for start, end in zip([0, *ends], ends, strict=False)])


def _digests(parts: Parts) -> list[bytes]:
    """Of the prefixes of 0, 1, ... parts; the length before each keeps parts from running together."""
    digest = hashlib.blake2b(digest_size=16)
    digests = [digest.digest()]
    for part in parts.parts:
        encoded = part.encode("utf-8", "surrogatepass")
        digest.update(f"{len(encoded)}:".encode())
        digest.update(encoded)
        digests.append(digest.digest())
    return digests


def _blank_parts(parts: Parts) -> int:
    """How many parts are nothing but white space, from the first on."""
    return next((number for number, part in enumerate(parts.parts) if part.strip()), len(parts))


# ------------------------------------------------------------------ requests


class PrefixRequest(JudgeRequest):
    """A request about one of several prefixes of a text; `trace` is joined when somebody reads it.

    Args:
        problem: what is attempted.
        trace: the prefix, or a text of its own, as `dataclasses.replace` gives it.
        view: what the trace is.
    """

    prefix: Prefix

    def __init__(self, *, problem: Problem, trace: Prefix | str, view: View = "prefix") -> None:
        prefix = trace if isinstance(trace, Prefix) else Parts([trace]).prefix(1)
        for name, value in (("problem", problem), ("prefix", prefix), ("view", view)):
            object.__setattr__(self, name, value)

    @property
    def trace(self) -> str:
        """The prefix's text."""
        return self.prefix.text


def prefix_of(request: JudgeRequest) -> Prefix:
    """The trace of a request; one that stands alone is a text of one part."""
    return request.prefix if isinstance(request, PrefixRequest) else Parts([request.trace]).prefix(1)


def says_nothing(request: JudgeRequest) -> bool:
    """Whether its trace is nothing but white space."""
    return request.prefix.is_blank if isinstance(request, PrefixRequest) else not request.trace.strip()


def about(request: JudgeRequest, problem: Problem) -> JudgeRequest:
    """The same request about another problem."""
    if isinstance(request, PrefixRequest):
        return PrefixRequest(problem=problem, trace=request.prefix, view=request.view)
    return replace(request, problem=problem)
