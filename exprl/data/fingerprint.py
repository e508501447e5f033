"""By what problems are known to be the same: digests of their content, from which nothing can be read back."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from exprl.types import Problem


def fingerprint(problems: Sequence[Problem]) -> dict[str, str]:
    """A short hash of each problem by its id, in order: question, domain and scaffold."""
    return {problem.id: digest_of(problem) for problem in problems}


def digest_of(problem: Problem) -> str:
    """16 hexadecimal digits of question, domain and scaffold."""
    return hashlib.sha256(_content(problem).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def digest_of_all(problems: Sequence[Problem]) -> str:
    """16 hexadecimal digits of all problems in their order."""
    content = repr([(problem.id, digest_of(problem)) for problem in problems])
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _content(problem: Problem) -> str:
    hidden = {name: value.digest() for name, value in problem.scaffold.fields().items() if value is not None}
    return repr((problem.question.text, problem.domain, hidden))


def first_difference(saved: Mapping[str, str], current: Mapping[str, str]) -> str | None:
    """Where two fingerprints first differ, in words; None when they are the same.

    >>> first_difference({"a": "1", "b": "2"}, {"a": "1", "c": "2"})
    "2 problems then, 2 now; problem 2 was 'b' and is 'c'"
    """
    before, now = list(saved.items()), list(current.items())
    if before == now:
        return None
    counts = f"{len(before)} problems then, {len(now)} now"
    for number, ((old_id, old_hash), (new_id, new_hash)) in enumerate(zip(before, now, strict=False), start=1):
        if old_id != new_id:
            return f"{counts}; problem {number} was {old_id!r} and is {new_id!r}"
        if old_hash != new_hash:
            return f"{counts}; question, reference or answer of {old_id!r} (problem {number}) has changed"
    longer, which = (before, "is gone") if len(before) > len(now) else (now, "is new")
    number = min(len(before), len(now))
    return f"{counts}; problem {number + 1}, {longer[number][0]!r}, {which}"
