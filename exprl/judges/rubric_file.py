"""A file of rubrics that people read and edit: JSON Lines, one rubric a line, each beside what it was made of."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exprl.errors import DataError, RubricError
from exprl.files.lines import read_lines
from exprl.judges.rubrics import Rubric, checked, digest_of, of_node, origins, own_rubrics, read_rubrics, to_node
from exprl.types import Problem

ADVICE = (
    "Mend the line. Without it `exprl rubric` writes one for each reference, with its digest, whose milestones (or "
    "'failed') can then be replaced by yours: keep a copy."
)

Key = tuple[str, str]
"""A problem's id, and the digest of what one of its rubrics is made of."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line: a rubric, or why there is none.

    Attributes:
        id: the problem's.
        reference_digest: of the text the rubric was made of, so that one made of another text is known as such.
        rubric: None where none could be made.
        failed: why, then.
    """

    id: str
    reference_digest: str
    rubric: Rubric | None = None
    failed: str = ""

    @property
    def key(self) -> Key:
        """What it is looked up by."""
        return (self.id, self.reference_digest)

    def line(self) -> str:
        """As it is written: letters of all scripts as they are, so that people can read them."""
        made = {"milestones": to_node(self.rubric)} if self.rubric is not None else {"failed": self.failed}
        return json.dumps({"id": self.id, **made, "reference_digest": self.reference_digest}, ensure_ascii=False) + "\n"


def read_entries(path: Path) -> list[Entry]:
    """The lines of a file.

    Raises:
        PathError: it cannot be read, or a line is no JSON object.
        DataError: a line is none of a rubric, or doubles another; names the line.
    """
    entries: list[Entry] = []
    first: dict[Key, int] = {}
    for number, line in enumerate(read_lines(path, ADVICE), start=1):
        try:
            entry = _entry(line)
        except RubricError as error:
            raise DataError(f"{path}, line {number}: {error}. {ADVICE}") from None
        if first.setdefault(entry.key, number) != number:
            raise DataError(
                f"{path}, line {number}: id {entry.id!r} with this reference_digest is already line "
                f"{first[entry.key]}. Keep one of them."
            )
        entries.append(entry)
    return entries


def _entry(line: dict[str, Any]) -> Entry:
    for key in ("id", "reference_digest"):
        if not isinstance(line.get(key), str) or not line[key]:
            raise RubricError(f"{key!r} must be text, but {'is missing' if key not in line else 'is something else'}")
    named = {"id": line["id"], "reference_digest": line["reference_digest"]}
    rest = {key: value for key, value in line.items() if key not in named}
    if "milestones" in rest:  # whoever fills in a rubric that failed may leave the reason
        rest.pop("failed", None)
        return Entry(**named, rubric=of_node(rest))
    failed = rest.pop("failed", None)
    if rest or not isinstance(failed, str):
        raise RubricError(f"it has no 'milestones', but {', '.join(map(repr, rest)) or 'nothing'} beside the id")
    return Entry(**named, failed=failed)


class RubricFile:
    """The rubrics of a file, by problem.

    Args:
        entries: what `read_entries` gave.
        name: the file's, for messages.
    """

    def __init__(self, entries: Iterable[Entry], name: str) -> None:
        self.name = name
        self._entries = list(entries)
        self._by_key = {entry.key: entry for entry in self._entries}
        self._by_digest = {entry.reference_digest: entry for entry in reversed(self._entries)}
        self._ids = {entry.id for entry in self._entries}

    def rubrics(self, problem: Problem) -> tuple[Rubric, ...]:
        """The rubrics of a problem, checked: one for each of its references for which one could be made.

        They are those of its scaffold: a problem that is shown with another one's has that one's rubrics.

        Raises:
            RubricError: there is none, with the reason.
        """
        digests = [digest_of(origin) for origin in origins(problem.scaffold)]
        found = [self._find(problem.id, digest) for digest in dict.fromkeys(digests)]
        rubrics = tuple(e.rubric for e in found if e is not None and e.rubric is not None)
        if rubrics:
            return tuple(checked(rubric, problem) for rubric in rubrics)
        failed = next((e.failed for e in found if e is not None), None)
        if failed is not None:
            raise RubricError(f"none could be made ({failed})")
        if problem.id in self._ids:
            raise RubricError(f"its rubric in {self.name} was made of another reference")
        raise RubricError(f"{self.name} has none")

    def digests(self) -> str:
        """One line a rubric with its id: by these a change is noticed, and what is in it cannot be read."""
        return "".join(f"problem {e.id!r}: {digest_of(e.line())}\n" for e in self._entries)

    def _find(self, problem_id: str, digest: str) -> Entry | None:
        return self._by_key.get((problem_id, digest)) or self._by_digest.get(digest)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A rubric that a problem is to have.

    Attributes:
        problem: whose.
        origin: the text it is made of.
        variant: 0 for the problem's first, 1, 2, ... for those beside it.
    """

    problem: Problem
    origin: str
    variant: int = 0

    @property
    def key(self) -> Key:
        """That of its line."""
        return (self.problem.id, digest_of(self.origin))

    @property
    def stands_in_column(self) -> bool:
        """Whether the row has it, so that nobody need write it."""
        return self.problem.scaffold.rubric is not None

    def own(self) -> Entry:
        """Its line, of the row alone: of its column, or else of the steps of the reference."""
        if self.stands_in_column:
            return self.entry(lambda: read_rubrics(self.origin)[0])
        return self.entry(lambda: own_rubrics(self.problem)[0])

    def entry(self, make: Callable[[], Rubric]) -> Entry:
        """Its line, with the rubric that `make` gives, or with why it gave none."""
        problem_id, digest = self.key
        try:
            return Entry(id=problem_id, reference_digest=digest, rubric=checked(make(), self.problem))
        except RubricError as error:
            return Entry(id=problem_id, reference_digest=digest, failed=str(error))


def wanted(problems: Sequence[Problem]) -> list[Wanted]:
    """The rubrics that problems are to have, in their order: one for each text that one can be made of.

    Raises:
        DataError: the column of a problem holds no rubric; names the problem.
    """
    found: dict[Key, Wanted] = {}
    for problem in problems:
        try:
            texts = origins(problem.scaffold)
        except RubricError as error:
            raise DataError(f"problem {problem.id!r}: column rubric: {error}. Mend the row.") from None
        for number, text in enumerate(texts):
            one = Wanted(problem=problem, origin=text, variant=number)
            found.setdefault(one.key, one)
    return list(found.values())
