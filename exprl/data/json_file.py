"""The rows of a `.json` file: an array, an object around one, or one object a line."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from exprl.data.folder import SPLITS
from exprl.data.jsonl import parse, read_lines
from exprl.data.packed import opened
from exprl.data.rows import Columns, Row
from exprl.errors import DataError


def read_json(path: Path, columns: Columns, split: str) -> Iterator[tuple[str, Row]]:
    """Each row with where it stands; raises `DataError` naming the file and the line or row that is wrong.

    Of an object around several arrays the one called as `split` is read.
    """
    with opened(path) as file:
        data = file.read().removeprefix(codecs.BOM_UTF8).strip()
    if _is_lines(data):
        yield from ((f"{path}:{line}", row) for line, row in read_lines(path))
        return
    rows = _array(parse(data, str(path), lines=True), path, columns, split) if data else []
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Mapping):
            raise DataError(f"{path}, row {number}: expected an object {{...}}, but got a {type(row).__name__}.")
        yield f"{path}, row {number}", row


def _is_lines(data: bytes) -> bool:
    """Whether the first of several lines is an object by itself."""
    first, _, rest = data.partition(b"\n")
    try:
        return bool(rest) and isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _array(value: Any, path: Path, columns: Columns, split: str) -> list[Any]:
    if isinstance(value, list):
        return value
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected an array of objects, but got a {type(value).__name__}.")
    if columns.question in value or columns.question.partition(".")[0] in value:
        return [value]
    arrays = {key: inner for key, inner in value.items() if isinstance(inner, list)}
    if split in arrays:
        return arrays[split]
    if len(arrays) == 1 and not set(arrays) & set(SPLITS):
        return next(iter(arrays.values()))
    if arrays:
        raise DataError(
            f"{path}: an object with the arrays {', '.join(map(repr, arrays))}, and none is called {split!r}. Set "
            "split to one of these, or give a file that is the array alone."
        )
    return [value]
