"""Problems from a JSON Lines file."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from exprl.component import option
from exprl.config.ranges import NonEmpty
from exprl.data.base import ProblemSource
from exprl.data.files import existing_file
from exprl.data.packed import opened
from exprl.data.rows import Row, TableOptions, read_problems, window
from exprl.errors import DataError
from exprl.registry import SOURCES
from exprl.types import Problem


@SOURCES.register("jsonl")
class JsonLinesSource(TableOptions, ProblemSource):
    """A file with one JSON object a line; blank lines are skipped."""

    path: NonEmpty = option(help="the .jsonl file")

    @classmethod
    def preflight(cls, config: Any) -> None:
        """The file must be there."""
        existing_file(config.path, "jsonl")

    def load(self) -> list[Problem]:
        """The file's problems; raises `DataError` naming file and line."""
        path = existing_file(self.path, "jsonl")
        try:
            return read_problems(self._rows(path), self.columns, str(path))
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}).") from error

    def _rows(self, path: Path) -> Iterator[tuple[str, str, Row]]:
        for number, row in read_lines(path, self.offset, self.limit):
            yield f"{path}:{number}", f"{path.stem}-{number}", row


def read_lines(
    path: Path, offset: int = 0, limit: int | None = None, *, source: bool = True
) -> Iterator[tuple[int, Row]]:
    """Each row with its line, blank ones skipped; raises `DataError` for the first line that is no JSON object.

    `source`: whether the file is that of a source of problems, for which there are others; for messages.
    """
    with opened(path) as file:
        lines = ((number, line) for number, line in enumerate(file, start=1) if line.strip())
        for number, line in window(lines, offset, limit):
            yield number, _object(line, path, number, source=source)


GZIP, PARQUET = b"\x1f\x8b", b"PAR1"
MAX_DIGITS = 4000
"""Digits of a whole number that Python turns into one; longer ones stay text, as in a column nobody asks for."""


def _object(line: bytes, path: Path, number: int, *, source: bool) -> Row:
    where = f"{path}:{number}"
    if number == 1 and line.startswith(PARQUET):
        raise DataError(f"{path}: a Parquet file, not an object of JSON on each line. {_of_parquet(path, source)}")
    if line.strip() == b"[":
        raise DataError(f"{where}: one array over many lines, not an object on each. {_of_array(path, source)}")
    row = parse(line, where)
    if isinstance(row, list) and row and isinstance(row[0], dict):
        raise DataError(f"{where}: one array of objects, not an object on each line. {_of_array(path, source)}")
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected an object {{...}} on each line, but got a {type(row).__name__}.")
    return row


def _of_parquet(path: Path, source: bool) -> str:
    if source:
        return "Set name=parquet for it."
    read, write = f"pandas.read_parquet({str(path)!r})", f"to_json({_made(path)!r}, orient='records', lines=True)"
    return f"Write it as JSON lines, in Python: import pandas; {read}.{write}"


def _of_array(path: Path, source: bool) -> str:
    if source:
        return "Set name=hub for it."
    return f"Make lines of it: jq -c '.[]' {shlex.quote(str(path))} > {shlex.quote(_made(path))}"


def _made(path: Path) -> str:
    return str(path.with_name(f"{path.stem}-lines.jsonl"))


def parse(text: bytes, where: str, *, lines: bool = False) -> Any:
    """The value that JSON text is, every key given once; raises `DataError` naming `where` (and `lines`)."""
    if text.startswith(GZIP):
        raise DataError(f"{where}: the file is compressed. Unpack it with gunzip, or let its name end in .gz.")
    try:
        # Windows tools put a byte-order mark in front
        return json.loads(text.decode("utf-8-sig"), parse_int=_whole_number, object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 text ({error.reason} at byte {error.start}).") from error
    except json.JSONDecodeError as error:
        line = f":{error.lineno}" if lines else ""
        raise DataError(f"{where}{line}: not valid JSON: {error.msg} at column {error.colno}.") from error
    except _RepeatedKeyError as error:
        raise DataError(f"{where}: the key {error.key!r} is given twice. Keep one of them.") from error
    except RecursionError as error:
        raise DataError(f"{where}: lists or objects nest too deeply.") from error


class _RepeatedKeyError(Exception):
    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, which leaves open what a key means that is given twice."""
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise _RepeatedKeyError(key)
        made[key] = value
    return made


def _whole_number(digits: str) -> int | str:
    return digits if len(digits) > MAX_DIGITS else int(digits)
