"""Where what was asked meets what came back: one answer each, or every score after a gap is another attempt's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import TypeVar

from exprl.errors import JudgeError

T = TypeVar("T")


def one_each(asked: Sequence[object], given: Sequence[object], kind: type[T], who: str) -> list[T]:
    """`given`, seen to hold one `kind` for each thing `asked`.

    Raises:
        JudgeError: it holds more, fewer, or something else; names `who` gave it.
    """
    name = kind.__name__
    if not isinstance(given, (list, tuple)) or len(given) != len(asked):
        found = f"{len(given)}" if isinstance(given, (list, tuple)) else f"a {type(given).__name__}"
        raise JudgeError(f"{who} returned {found} for {len(asked)} requests: it must return one {name} each, in order.")
    checked = [item for item in given if isinstance(item, kind)]
    if len(checked) != len(given):
        other = next(item for item in given if not isinstance(item, kind))
        made = f" Give {name}({fields(kind)[0].name}=…)." if is_dataclass(kind) else ""
        raise JudgeError(f"{who} returned a {type(other).__name__} where a {name} belongs.{made}")
    return checked
