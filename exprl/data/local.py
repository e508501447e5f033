"""Tables on this machine, read here whatever they are: every cell as it stands, every error with its file and row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from exprl.data.arrow import read_arrow
from exprl.data.delimited import read_csv
from exprl.data.files import KINDS, ending_of
from exprl.data.json_file import read_json
from exprl.data.jsonl import read_lines
from exprl.data.parquet import read_parquet
from exprl.data.rows import Columns, Row
from exprl.errors import DataError


def read_tables(files: Iterable[Path], columns: Columns, split: str) -> Iterator[tuple[str, Row]]:
    """The rows of all files in order, each with where it stands; raises `DataError` for one with other columns."""
    first: tuple[Path, list[str]] | None = None
    for file in files:
        rows = read_table(file, columns, split)
        head = next(rows, None)
        if head is None:
            continue
        if KINDS[ending_of(file)] != "JSON":  # of whose objects each has its own
            first = first or (file, sorted(head[1]))
            _check_same(file, sorted(head[1]), *first)
        yield head
        yield from rows


def read_table(file: Path, columns: Columns, split: str) -> Iterator[tuple[str, Row]]:
    """One file's rows by the ending of its name; raises `DataError` naming the file, and the line or row."""
    try:
        yield from _rows(file, columns, split)
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}).") from error


def _rows(file: Path, columns: Columns, split: str) -> Iterator[tuple[str, Row]]:
    match ending_of(file):
        case ".parquet":
            yield from read_parquet(file, columns)
        case ".arrow":
            yield from read_arrow(file, columns)
        case ".json":
            yield from read_json(file, columns, split)
        case ".jsonl" | ".ndjson":
            yield from ((f"{file}:{line}", row) for line, row in read_lines(file))
        case _:
            yield from ((f"{file}:{line}", row) for line, row in read_csv(file))


def _check_same(file: Path, names: list[str], first: Path, wanted: list[str]) -> None:
    if names != wanted:
        raise DataError(
            f"source 'hub': {file} has the columns {', '.join(names)}, but {first} has {', '.join(wanted)}. Give all "
            "files the same columns, or set path to one file."
        )
