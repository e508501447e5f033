"""One row of a table to a `Problem`: the column mapping that `jsonl`, `parquet` and `hub` share."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from itertools import islice
from string import ascii_uppercase
from typing import Any, TypeVar

from exprl.component import checked, option
from exprl.config.options import Options
from exprl.config.ranges import NonEmpty, NonNegativeInt, PositiveInt
from exprl.data.conventions import columns_of, inside, listing, proposal
from exprl.data.exposure import Exposure, Sign, exposed
from exprl.data.messages import is_chat_text, only_request, path_of, roles_of, shown_roles
from exprl.errors import ColumnError, DataError
from exprl.invariants import fault_of
from exprl.types import Hidden, Problem, Question, Scaffold

T = TypeVar("T")
Row = Mapping[str, Any]

ROLES = ("question", "reference", "answer", "id", "domain", "steps", "variants", "rubric", "tests", "choices")
HIDDEN_ROLES = ("reference", "answer", "steps", "variants", "rubric", "tests")
"""No message shows what is in these columns: errors go to terminals and logs."""

MISSING = object()
""""No such column", as None is a cell's value."""


@checked
@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which column holds what. A dot reaches into nested columns and lists: `extra.gold`, `chat.0.content`.

    A question that is a chat of one user message is that message's text.
    """

    question: NonEmpty = option(default="question", help="the problem's text")
    reference: NonEmpty | None = option(default="reference", help="the worked solution; null: the rows have none")
    answer: NonEmpty | None = option(default="answer", help="the final answer; null: the rows have none")
    id: NonEmpty | None = option(default=None, help="a unique name; null: file name and row number")
    domain: NonEmpty | None = option(default=None, help="routes to a reward or verifier; null: every row is math")
    steps: NonEmpty | None = option(
        default=None, help="list of the reference's intermediate results; null: the rows have none"
    )
    variants: NonEmpty | None = option(
        default=None, help="list of other worked solutions of the same problem; null: the rows have none"
    )
    rubric: NonEmpty | None = option(
        default=None, help="milestones with points, as JSON text or nested; null: the rows have none"
    )
    tests: NonEmpty | None = option(
        default=None, help="tests of a program, as JSON text or nested; null: the rows have none"
    )
    choices: NonEmpty | None = option(
        default=None,
        help="list of the options of a multiple-choice question, which are put under it as `A. ...`; null: none, or "
        "they stand in the question",
    )
    partial: bool = option(
        default=False, help="a row may lack whatever a column is named for but the question and id, or have null there"
    )

    def by_role(self) -> dict[str, str]:
        """The columns that are named, each by what it holds."""
        return {role: column for role in ROLES if (column := getattr(self, role)) is not None}


MINED_COLUMNS = Columns(
    **{role: role for role in ("id", "domain", "steps", "variants", "rubric", "tests")}, partial=True
)
"""Those of a data set that `exprl mine` wrote."""


class TableOptions(Options):
    """What every source of rows has."""

    columns: Columns = option(default=Columns(), help="which column holds what")
    offset: NonNegativeInt = option(default=0, help="rows to skip at the start")
    limit: PositiveInt | None = option(default=None, help="rows to read after that; null: all")


def window(items: Iterable[T], offset: int, limit: int | None) -> Iterator[T]:
    """The `limit` items after the first `offset`."""
    return islice(items, offset, None if limit is None else offset + limit)


def read_problems(rows: Iterable[tuple[str, str, Row]], columns: Columns, source: str) -> list[Problem]:
    """Problems from `(where, default id, row)` triples in order; `where` names file and row in errors.

    Warns of rows whose question holds the reference or states the answer (`exposure.py`).

    Raises:
        DataError: no rows, a bad row, an id that two rows have, or most rows show the policy what is to be hidden.
    """
    problems: list[Problem] = []
    shown: dict[Sign, list[str]] = {sign: [] for sign in Sign}
    first_seen: dict[str, str] = {}
    for where, default_id, row in rows:
        problem = to_problem(row, columns, where, default_id)
        if problem.id in first_seen:
            raise DataError(
                f"{where}: id {problem.id!r} is already that of {first_seen[problem.id]}. Ids must be unique: "
                "choose another columns.id, or null to number the rows."
            )
        first_seen[problem.id] = where
        if (sign := _exposed(row, columns, where)) is not None:
            shown[sign].append(where)
        problems.append(problem)
    if not problems:
        raise DataError(f"{source}: no problems. Is the file empty, or offset past its end?")
    Exposure(len(problems), shown).report(source)
    return problems


def _exposed(row: Row, columns: Columns, where: str) -> Sign | None:
    """What the question gives away of the reference, or of a variant of it."""
    reference, answer = (_optional_text(row, columns, role, where) for role in ("reference", "answer"))
    solutions = (reference, *(_texts(row, columns, "variants", where) or ()))
    question = _text(row, columns.question, "question", where)  # an option may well say what is right
    signs = (exposed(question, solution, answer) for solution in solutions)
    return next((sign for sign in signs if sign is not None), None)


def to_problem(row: Row, columns: Columns, where: str, default_id: str) -> Problem:
    """One row as a `Problem`; raises `DataError` naming `where` and the column."""
    _check_columns(row, columns, where)
    read: dict[str, Callable[[Row, Columns, str, str], Any]] = {
        **dict.fromkeys(("reference", "answer"), _optional_text),
        **dict.fromkeys(("steps", "variants"), _texts),
        **dict.fromkeys(("rubric", "tests"), _json),
    }
    hidden = {role: reader(row, columns, role, where) for role, reader in read.items()}
    choices = _choices(row, columns, where)
    if choices:
        hidden["answer"] = _letter(row, columns, choices) or hidden["answer"]
    problem_id = _optional_text(row, columns, "id", where) or default_id
    scaffold = Scaffold(**{role: Hidden(value) for role, value in hidden.items() if value is not None})
    text = "\n".join([_text(row, columns.question, "question", where), *choices])
    question = Question(problem_id=problem_id, text=text)
    domain = _optional_text(row, columns, "domain", where)
    return Problem(question=question, scaffold=scaffold, **({"domain": domain} if domain is not None else {}))


def _choices(row: Row, columns: Columns, where: str) -> list[str]:
    """The options of a question, each as a line with its letter; none where there are none."""
    texts = _texts(row, columns, "choices", where) or ()
    if len(texts) > len(ascii_uppercase):
        raise DataError(f"{where}: column {columns.choices!r} has {len(texts)} options, more than there are letters.")
    return [f"{letter}. {' '.join(text.split())}" for letter, text in zip(ascii_uppercase, texts, strict=False)]


def _letter(row: Row, columns: Columns, choices: Sized) -> str | None:
    """The letter of an answer that is an option's place, a whole number from 0; None for any other answer."""
    place = _find(row, columns.answer) if columns.answer is not None else None
    if isinstance(place, int) and not isinstance(place, bool) and 0 <= place < len(choices):
        return ascii_uppercase[place]
    return None


def _optional_text(row: Row, columns: Columns, role: str, where: str) -> str | None:
    column = _column(row, columns, role)
    return None if column is None else _text(row, column, role, where)


def _column(row: Row, columns: Columns, role: str) -> str | None:
    """The column that the row must have something in for this role, if any."""
    column: str | None = getattr(columns, role)
    if column is None or role in ("question", "id") or not columns.partial:
        return column
    value = _find(row, column)
    return None if value is None or value is MISSING else column


def _check_columns(row: Row, columns: Columns, where: str) -> None:
    """Raise `ColumnError` for all roles at once whose column the row does not have."""
    mapped = {role: _column(row, columns, role) for role in ROLES}
    missing = {role: c for role, c in mapped.items() if c is not None and _find(row, c) is MISSING}
    if not missing:
        return
    taken = [column for role, column in mapped.items() if role not in missing]
    proposed = {role: proposal(role, column, row, taken) for role, column in missing.items()}
    lost = ", and a judge then has no reference to compare with" if proposed.get("reference", "") is None else ""
    null = f" (null: the rows have none{lost}; with `columns.partial: true` some may lack it)"
    none_at_all = null if set(missing) != {"question"} and not columns.partial else ""
    told = " and ".join(f"no column {column!r} for the {role}" for role, column in missing.items())
    raise ColumnError(
        f"{where}: {told}. The columns are {columns_of(row)}.",
        [f"columns.{role}={name or ('null' if role != 'question' else 'COLUMN')}" for role, name in proposed.items()],
        f"{none_at_all}, or repair the row.",
    )


def _text(row: Row, column: str, role: str, where: str) -> str:
    cell = _find(row, column)
    value = only_request(cell) if role == "question" else cell
    if role in ("answer", "id") and is_number(value):
        value = str(value)
    if not isinstance(value, str):
        raise _wrong_type(value, column, role, where)
    _check_encodable(value, column, where)
    if not value.strip():
        raise ColumnError(f"{where}: column {column!r} is empty.", *_way_out(role))
    if role in ("question", "reference") and is_chat_text(value):
        raise DataError(
            f"{where}: column {column!r} is a chat written out as text, whose other messages may say what is to be "
            "hidden. Give it as a list (JSON Lines or Parquet; in Python json.loads), or the text of one message."
        )
    return value


def _wrong_type(value: Any, column: str, role: str, where: str) -> ColumnError:
    if (roles := roles_of(value)) is not None:
        return ColumnError(
            f"{where}: column {column!r} is a chat of {len(roles)} messages ({shown_roles(roles)}), but the {role} is "
            "one text.",
            [f"columns.{role}={path_of(value, column, role) or f'{column}.0.content'}"],
            " for the text of one message (they count from 0); what a system message says belongs into prompt.system.",
        )
    if isinstance(value, date):
        return ColumnError(
            f"{where}: column {column!r} must be text, but holds a {type(value).__name__}, which can be written in "
            "many ways. Save the column as text, in the way that is right.",
            [f"columns.{role}=COLUMN"],
            " for another column.",
        )
    must = f"{where}: column {column!r} must be text, but holds {_show(value, role)}"
    if isinstance(value, Mapping) and (within := inside({column: value})):
        best = proposal(role, column, {column: value}, [column]) or f"{column}.NAME"
        return ColumnError(
            f"{must}: {listing(within)}.", [f"columns.{role}={best}"], ", or another of these, or another column."
        )
    if isinstance(value, (list, tuple)) and value and (isinstance(value[0], str) or is_number(value[0])):
        item = "its item" if len(value) == 1 else "its first item (they count from 0)"
        return ColumnError(f"{must}.", [f"columns.{role}={column}.0"], f" for {item}, or another column.")
    return ColumnError(f"{must}.", *_way_out(role))


def is_number(value: Any) -> bool:
    """Whether a cell is a number that can stand for an id or an answer, as text."""
    # True is an int to Python, and NaN is how tables write a missing value
    return isinstance(value, (int, float, Decimal)) and not isinstance(value, bool) and math.isfinite(value)


def _texts(row: Row, columns: Columns, role: str, where: str) -> tuple[str, ...] | None:
    column = _column(row, columns, role)
    if column is None:
        return None
    value = _find(row, column)
    if not isinstance(value, (list, tuple)) or not value or not all(isinstance(s, str) and s.strip() for s in value):
        raise ColumnError(
            f"{where}: column {column!r} must be a list of texts, but holds {_show(value, role)}.", *_way_out(role)
        )
    for text in value:
        _check_encodable(text, column, where)
    return tuple(value)


def _json(row: Row, columns: Columns, role: str, where: str) -> str | None:
    """A structure as JSON text of one form, whether the cell holds it nested or as text; nothing of it is shown."""
    column = _column(row, columns, role)
    if column is None:
        return None
    cell = _find(row, column)
    try:
        value = json.loads(cell, object_pairs_hook=_each_once) if isinstance(cell, str) else cell
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError):
        value, text = None, ""
    if not isinstance(value, (list, tuple, Mapping)) or not value:
        raise ColumnError(
            f"{where}: column {column!r} must be a list or an object, nested or as JSON text (each key once, no NaN), "
            f"but holds {_show(cell, role)}.",
            *_way_out(role),
        )
    _check_encodable(text, column, where)
    return text


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a key is given twice")
    return made


def _find(row: Row, column: str) -> Any:
    if column in row:
        return row[column]
    value: Any = row
    for key in column.split("."):
        if isinstance(value, (list, tuple)) and key.isdecimal() and int(key) < len(value):
            value = value[int(key)]
        elif isinstance(value, Mapping) and key in value:
            value = value[key]
        else:
            return MISSING
    return value


def _way_out(role: str) -> tuple[list[str], str]:
    """The settings and the rest of an error about a cell."""
    if role == "question":
        return ["columns.question=COLUMN"], " for another column, or repair the row."
    partly = "" if role == "id" else " (columns.partial=true there, if some have)"
    return [f"columns.{role}=null"], f" if no row has one{partly}, or another column, or repair the row."


def _check_encodable(text: str, column: str, where: str) -> None:
    """Half of a surrogate pair, as JSON can hold, is no text: no tokenizer and no file takes it."""
    if fault := fault_of(text):
        raise DataError(f"{where}: column {column!r} has {fault}. Repair the row.")


def _show(value: Any, role: str) -> str:
    """A cell of the wrong type for a message: the value where it is small and no part of it can be a reference."""
    kind = type(value).__name__
    if value is None or (role not in HIDDEN_ROLES and isinstance(value, (bool, int, float))):
        return f"{value!r} ({kind})"
    return f"a {kind}" + (f" of {len(value)}" if isinstance(value, Sized) else "")
