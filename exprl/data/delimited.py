"""Problems from a CSV file."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from exprl.component import option
from exprl.config.ranges import Form, NonEmpty
from exprl.data.base import ProblemSource
from exprl.data.files import existing_file
from exprl.data.packed import opened
from exprl.data.rows import Row, TableOptions, read_problems, window
from exprl.data.tables import check_names
from exprl.errors import DataError
from exprl.registry import SOURCES
from exprl.types import Problem

DELIMITERS = ",;\t|"
BLANK = f" \r\n{DELIMITERS}"
"""What a line that says nothing is made of, such as spreadsheets put above their header."""
LONGEST_CELL = 2**31 - 1
"""The module's own limit is 131,072 characters, which a worked solution can have."""


@SOURCES.register("csv")
class CsvSource(TableOptions, ProblemSource):
    """A CSV or TSV file whose header names the columns. Every cell is text as it stands, an empty one is none."""

    path: NonEmpty = option(help="the .csv or .tsv file")
    delimiter: Annotated[str, Form(r"[^\w\s\"]|\t", "one character, for example ;")] | None = option(
        default=None, help="what parts the cells; null: whichever of , ; | and tab the header has most of"
    )

    @classmethod
    def preflight(cls, config: Any) -> None:
        """The file must be there."""
        existing_file(config.path, "csv")

    def load(self) -> list[Problem]:
        """The file's problems; raises `DataError` naming file and line."""
        path = existing_file(self.path, "csv")
        return read_problems(self._rows(path), self.columns, str(path))

    def _rows(self, path: Path) -> Iterator[tuple[str, str, Row]]:
        rows = enumerate(read_csv(path, self.delimiter), start=1)
        for number, (line, row) in window(rows, self.offset, self.limit):
            yield f"{path}:{line}", f"{path.stem}-{number}", row


def read_csv(path: Path, delimiter: str | None = None) -> Iterator[tuple[int, Row]]:
    """Each row with the line it begins on; raises `DataError` naming the line that is no row of the table."""
    csv.field_size_limit(LONGEST_CELL)
    line = 1
    try:
        with opened(path) as data, io.TextIOWrapper(data, encoding="utf-8-sig", newline="") as file:
            first = next((head for head in file if head.strip(BLANK)), "")
            file.seek(0)
            reader = csv.reader(file, delimiter=delimiter or max(DELIMITERS, key=first.count), strict=True)
            names: list[str] = []
            for cells in reader:
                if not names:
                    names = _names(cells, f"{path}:{line}")
                elif cells:
                    yield line, _row(names, cells, f"{path}:{line}")
                line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{path}:{line}: the row that begins here is no CSV ({error}). A cell with quotes, line breaks or the "
            'delimiter in it stands in quotes, and a quote in it is written "".'
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason}). Convert it with iconv -t utf-8.") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from error


def _names(header: Sequence[str], where: str) -> list[str]:
    """The columns' names; none for a line of nothing but delimiters, which is no header."""
    names = [name.strip() for name in header]
    if not any(name.strip(BLANK) for name in names):
        return []
    check_names(names, where)
    return names


def _row(names: Sequence[str], cells: Sequence[str], where: str) -> Row:
    if len(cells) != len(names):
        raise DataError(
            f"{where}: {len(cells)} cells, but the header names {len(names)} columns. Put cells that hold the "
            "delimiter in quotes, or set name=csv and delimiter."
        )
    return {name: cell or None for name, cell in zip(names, cells, strict=True)}
