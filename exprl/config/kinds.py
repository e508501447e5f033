"""Whether a value is of the kind that an annotation says, as far as that can be seen without looking at all of it."""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

PLENTY = 1000
"""Items of a sequence that are looked at."""


def is_a(value: object, annotation: Any) -> bool:
    """Whether `value` is what `annotation` says; what cannot be told is taken to be.

    >>> is_a([1, 2], Sequence[int]), is_a("ab", Sequence[str]), is_a(None, int | None), is_a(3, Any)
    (True, False, True, True)
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return any(is_a(value, argument) for argument in arguments)
    if origin is Annotated:
        return is_a(value, arguments[0])
    if origin is Literal:
        return value in arguments
    kind = type(None) if annotation is None else origin or annotation
    if not isinstance(kind, type) or kind is type:
        return True
    if kind is float:
        return isinstance(value, (int, float))
    try:
        fits = isinstance(value, kind)
    except TypeError:  # a protocol that is not for this
        return True
    return fits and not _other_items(value, kind, arguments)


def resolved(annotation: Any, module: str) -> Any:
    """An annotation that may be text, as its module means it; of names that only type checkers know, `Any`."""
    if not isinstance(annotation, str):
        return annotation
    try:
        return typing.get_type_hints(
            types.SimpleNamespace(__annotations__={"it": annotation}), vars(sys.modules[module]), include_extras=True
        )["it"]
    except NameError:
        return Any


def _other_items(value: object, kind: type, arguments: tuple[Any, ...]) -> bool:
    if kind is Sequence and isinstance(value, (str, bytes)):
        return True
    if isinstance(value, Mapping) and len(arguments) == 2:
        return not all(is_a(item, arguments[1]) for item in value.values())
    if isinstance(value, (list, tuple)) and len(set(arguments) - {...}) == 1:
        return not all(is_a(item, arguments[0]) for item in value[:PLENTY])
    return False
