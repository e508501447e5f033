"""Folders of tables: what `datasets` would leave out without a word, and which file it could not read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from exprl.data.delimited import read_csv
from exprl.data.files import require
from exprl.data.jsonl import check_lines
from exprl.data.tables import READER_ERRORS
from exprl.errors import DataError

KINDS = {
    ending: kind
    for kind, endings in {"CSV": "csv tsv", "JSON": "json jsonl ndjson", "Parquet": "parquet", "Arrow": "arrow"}.items()
    for ending in (f".{name}" for name in endings.split())
}
ABOUT = ("config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""What says something about the data and is none."""
NAMED = 3


def tables_in(folder: Path) -> list[Path]:
    """The files of tables in a folder and the folders in it, in order; hidden ones are no data."""
    found = sorted(file for file in folder.rglob("*") if file.suffix.lower() in KINDS and file.name not in ABOUT)
    shown = [file for file in found if not any(part.startswith((".", "__")) for part in file.relative_to(folder).parts)]
    return [file for file in shown if file.is_file()]


def check_kinds(folder: Path) -> None:
    """Raise `DataError` for tables of several kinds, unless the folder's card says which: `datasets` reads one kind."""
    kinds: dict[str, list[str]] = {}
    for file in tables_in(folder):
        kinds.setdefault(KINDS[file.suffix.lower()], []).append(str(file.relative_to(folder)))
    if len(kinds) < 2 or _says_which(folder / "README.md"):
        return
    told = "; ".join(
        f"{kind}: {', '.join(names[:NAMED])}{', …' if len(names) > NAMED else ''}" for kind, names in kinds.items()
    )
    raise DataError(
        f"source 'hub': the folder {folder} has tables of several kinds ({told}), of which only one kind would be "
        "read. Set path to one file, or to a folder with one kind."
    )


def explain(files: Sequence[Path]) -> None:
    """Raise the `DataError` of the first file that cannot be read, or that has other columns than the first one."""
    columns = {file: _columns(file) for file in files}
    first = next(iter(columns), None)
    for file, names in columns.items():
        if first is not None and names is not None and columns[first] is not None and names != columns[first]:
            raise DataError(
                f"source 'hub': {file} has the columns {', '.join(names)}, but {first} has "
                f"{', '.join(columns[first] or [])}. Give all files the same columns, or set path to one file."
            )


def _columns(file: Path) -> list[str] | None:
    """The columns of a file that can be read whole, sorted; None where they are not known."""
    kind = KINDS.get(file.suffix.lower())
    try:
        if kind == "Parquet":
            return sorted(require("pyarrow.parquet", "hub").read_schema(file).names)
        if kind == "CSV":
            rows = [sorted(row) for _, row in read_csv(file)]
            return rows[0] if rows else None
        if kind == "JSON":
            _check_json(file)
    except READER_ERRORS as error:
        raise DataError(f"source 'hub': {file} cannot be read as {kind} ({type(error).__name__}).") from error
    return None


def _check_json(file: Path) -> None:
    """One value, or one a line; what is wrong is told of the form that the file begins in."""
    text = file.read_bytes()
    if not text.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
        check_lines(file)
        return
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{file}:{error.lineno}: not valid JSON: {error.msg} at column {error.colno}.") from error


def _says_which(card: Path) -> bool:
    return card.is_file() and "\nconfigs:" in card.read_text(encoding="utf-8", errors="replace")
