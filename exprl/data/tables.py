"""What the readers of tables share: only the mapped columns are read, and whatever a reader raises names its row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from exprl.data.rows import Columns, Row
from exprl.errors import DataError

T = TypeVar("T")

READER_ERRORS = (ArithmeticError, LookupError, OSError, RuntimeError, TypeError, ValueError)
"""What readers raise on a bad cell: dates out of range, unknown time zones, bad UTF-8, types they do not know."""


def mapped(columns: Columns, names: Sequence[str]) -> dict[str, str]:
    """Each mapped column that there can be, with the table's own column that holds it.

    >>> mapped(Columns(question="q", reference="extra.solution", answer="gold"), ["q", "extra", "date"])
    {'q': 'q', 'extra.solution': 'extra'}
    """
    wanted = columns.by_role().values()
    roots = {column: column if column in names else column.partition(".")[0] for column in wanted}
    return {column: root for column, root in roots.items() if root in names}


def check_names(names: Sequence[str], where: str) -> None:
    """Raise `DataError` where two columns have one name, as readers differ in which of them they take."""
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(f"{where}: the column {repeated[0]!r} is there twice. Rename one of them.")


def with_names(row: Row, names: Sequence[str]) -> Row:
    """A row that also names the columns that were not read, for messages about one that is missing."""
    return {**dict.fromkeys(names), **row}


def numbered(rows: Iterable[T], where: str) -> Iterator[tuple[int, T]]:
    """Rows with their numbers, from 1; what the reader raises becomes a `DataError` that names the row."""
    reader, number = iter(rows), 1
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except READER_ERRORS as error:
            raise unreadable(f"{where}, row {number}", error) from error
        yield number, row
        number += 1


def unreadable(where: str, error: BaseException) -> DataError:
    """What is wrong with a row, without the text of its cells, which may be those of a reference."""
    what = f"{error.reason} at byte {error.start}" if isinstance(error, UnicodeDecodeError) else type(error).__name__
    return DataError(f"{where}: cannot be read ({what}). Repair the row, or leave it out with offset and limit.")


def rows_of(batch: Any) -> Iterator[dict[str, Any]]:
    """The rows of an Arrow batch; where one cannot be converted each is alone, so that it is known by its number.

    Numbers are as they are written in the width they are stored in: the float32 1.1 is 1.1, not 1.100000023841858.
    """
    try:
        rows = batch.to_pylist()
    except READER_ERRORS:
        rows = (batch.slice(start, 1).to_pylist()[0] for start in range(batch.num_rows))
    kinds = narrow(batch.schema)
    yield from (written(row, kinds) for row in rows)


def narrow(schema: Any) -> dict[str, Any]:
    """The Arrow types of the columns that are or hold floats of less than 64 bits."""
    return {field.name: field.type for field in schema if _is_narrow(field.type)}


def written(row: dict[str, Any], kinds: Mapping[str, Any]) -> dict[str, Any]:
    """A row with the columns of `kinds` as they are written in the width they are stored in."""
    return {**row, **{name: _shortest(row[name], kind) for name, kind in kinds.items()}} if kinds else row


NARROW = {"float": "float32", "halffloat": "float16"}
"""Arrow's names of types, with NumPy's."""


def _is_narrow(kind: Any) -> bool:
    return str(kind) in NARROW or any(_is_narrow(kind.field(place).type) for place in range(kind.num_fields))


def _shortest(value: Any, kind: Any) -> Any:
    """A value of an Arrow type with its narrow floats as the float64 that is written alike."""
    if isinstance(value, float) and str(kind) in NARROW:
        return float(str(np.dtype(NARROW[str(kind)]).type(value)))
    if isinstance(value, list) and kind.num_fields == 1:
        return [_shortest(item, kind.field(0).type) for item in value]
    if isinstance(value, Mapping):
        return {name: _shortest(item, kind.field(name).type) for name, item in value.items()}
    return value
