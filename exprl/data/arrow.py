"""The rows of Arrow files, streams of batches or with a footer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from exprl.data.files import require
from exprl.data.packed import opened
from exprl.data.rows import Columns, Row
from exprl.data.tables import check_names, mapped, numbered, rows_of, with_names
from exprl.errors import DataError

FOOTED = b"ARROW1"


def read_arrow(path: Path, columns: Columns) -> Iterator[tuple[str, Row]]:
    """Each row with where it stands; raises `DataError` naming the file or its row."""
    arrow = require("pyarrow", "hub")
    try:
        with opened(path) as file:
            footed = file.read(len(FOOTED)) == FOOTED
            file.seek(0)
            reader = arrow.ipc.open_file(file) if footed else arrow.ipc.open_stream(file)
            names = reader.schema.names
            check_names(names, str(path))
            wanted = [name for name in names if name in set(mapped(columns, names).values())]
            rows = (row for batch in _batches(reader) for row in rows_of(batch.select(wanted)))
            for number, row in numbered(rows, str(path)):
                yield f"{path}, row {number}", with_names(row, names)
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as Arrow: {error}") from error


def _batches(reader: Any) -> Iterator[Any]:
    """The batches of either form: one with a footer gives them by number."""
    count = getattr(reader, "num_record_batches", None)
    yield from reader if count is None else map(reader.get_batch, range(count))
