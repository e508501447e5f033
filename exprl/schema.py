"""What a Config dataclass declares: its fields, their types, helps and defaults."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from exprl.component import Choice
from exprl.registry import Registry


@dataclass(frozen=True, kw_only=True)
class FieldSpec:
    """One option: a plain value, a nested dataclass (`dataclass`) or a component picked by name (`registry`)."""

    annotation: Any
    required: bool
    help: str
    registry: Registry[Any] | None
    dataclass: type[Any] | None
    default_node: Mapping[str, Any] | None


def fields_of(schema: type[Any]) -> dict[str, FieldSpec]:
    """The options of a Config dataclass by name, in the order they are declared."""
    hints = typing.get_type_hints(schema, include_extras=True)
    return {field.name: _read(field, hints[field.name]) for field in dataclasses.fields(schema)}


def _read(field: dataclasses.Field[Any], annotation: Any) -> FieldSpec:
    bare = _without_none(annotation)
    plain = get_args(bare)[0] if get_origin(bare) is Annotated else bare
    nested = isinstance(plain, type) and dataclasses.is_dataclass(plain) and plain is not Choice
    without_default = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    return FieldSpec(
        annotation=annotation,
        required=without_default or field.metadata.get("required", False),
        help=field.metadata.get("help", ""),
        registry=field.metadata.get("registry"),
        dataclass=plain if nested else None,
        default_node=field.metadata.get("default_node"),
    )


def allows_none(annotation: Any) -> bool:
    """Whether an option may be null."""
    return get_origin(annotation) in (Union, types.UnionType) and type(None) in get_args(annotation)


def describe(annotation: Any) -> str:
    """An annotation as messages name it.

    >>> describe(int | list[str] | None)
    'int or a list of str or null'
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if origin in (Union, types.UnionType):
        return " or ".join("null" if argument is type(None) else describe(argument) for argument in arguments)
    if origin in (list, tuple):
        return f"a list of {describe(arguments[0])}"
    return getattr(annotation, "__name__", str(annotation))


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, types.UnionType):
        rest = [argument for argument in get_args(annotation) if argument is not type(None)]
        return rest[0] if len(rest) == 1 else annotation
    return annotation
