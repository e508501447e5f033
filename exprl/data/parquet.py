"""Problems from Parquet files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from exprl.component import option
from exprl.config.ranges import NonEmpty
from exprl.data.base import ProblemSource
from exprl.data.files import check_installed, existing, existing_file, require
from exprl.data.folder import split_of
from exprl.data.packed import UNPACK, opened
from exprl.data.rows import Columns, Row, TableOptions, read_problems, window
from exprl.data.tables import check_names, mapped, numbered, rows_of, with_names
from exprl.errors import DataError
from exprl.registry import SOURCES
from exprl.types import Problem


@SOURCES.register("parquet")
class ParquetSource(TableOptions, ProblemSource):
    """A Parquet file, or a folder of them read in the order of their names."""

    path: NonEmpty = option(help="the .parquet file, or a folder of them")

    @classmethod
    def preflight(cls, config: Any) -> None:
        """The file or folder must be there, and who reads it."""
        existing(config.path, "parquet")
        check_installed("pyarrow", "parquet")

    def load(self) -> list[Problem]:
        """The problems of all files; raises `DataError` naming file and row."""
        path = existing(self.path, "parquet")
        files = sorted(path.glob("*.parquet")) if path.is_dir() else [existing_file(self.path, "parquet")]
        if not files:
            raise DataError(f"source 'parquet': the folder {path} has no .parquet files.")
        if len(splits := {split_of(Path(file.name)) for file in files}) > 1:
            raise DataError(
                f"source 'parquet': the files of the folder {path} are of several splits by their names "
                f"({', '.join(sorted(splits)).strip(', ')}). Set name=hub and split, or path to one file."
            )
        rows = (row for file in files for row in _rows(file, self.columns))
        return read_problems(window(rows, self.offset, self.limit), self.columns, str(path))


def _rows(path: Path, columns: Columns) -> Iterator[tuple[str, str, Row]]:
    for number, (where, row) in enumerate(read_parquet(path, columns), start=1):
        yield where, f"{path.stem}-{number}", row


def read_parquet(path: Path, columns: Columns) -> Iterator[tuple[str, Row]]:
    """Each row with where it stands; raises `DataError` naming the file or its row."""
    parquet, arrow = require("pyarrow.parquet", "parquet"), require("pyarrow", "parquet")
    try:
        with parquet.ParquetFile(opened(path) if path.suffix.lower() in UNPACK else path) as file:
            names = file.schema_arrow.names
            check_names(names, str(path))
            batches = file.iter_batches(batch_size=1024, columns=_paths(file, mapped(columns, names)))
            rows = (row for batch in batches for row in rows_of(batch))
            for number, row in numbered(rows, str(path)):
                yield f"{path}, row {number}", with_names(row, names)
    except (arrow.ArrowException, OSError, UnicodeError) as error:  # UnicodeError: a file name that is not UTF-8
        raise DataError(f"{path}: cannot be read as Parquet: {error}") from error


def _paths(file: Any, wanted: Mapping[str, str]) -> list[str]:
    """What is read of each mapped column: its part alone, or the whole one where it reaches into a list."""
    leaves = [file.schema.column(place).path for place in range(len(file.schema))]
    return [
        column if any(f"{leaf}.".startswith(f"{column}.") for leaf in leaves) else root
        for column, root in wanted.items()
    ]
