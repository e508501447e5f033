"""Plain values against what a Config declares; the one check for YAML and for code.

`validate` builds a dataclass from the plain values of YAML. A dataclass that is `checked` puts the same check before
its own construction, so that `Config(first="grp")` in code fails with the line that `first: grp` in a file gives.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin

from exprl.config.fields import (
    Choice,
    FieldSpec,
    allows_none,
    describe,
    fields_of,
    registry_of,
    rules_of,
    wrapped_option,
)
from exprl.config.keys import joined
from exprl.config.merging import with_default
from exprl.config.secrets import without_secrets
from exprl.errors import ConfigError, ContractError, did_you_mean
from exprl.registry import Registry

S = TypeVar("S")
Hint = Callable[[str], str | None]

LARGEST_INT = 2**63 - 1
"""What NumPy, PyTorch and files of every kind can hold."""


class _OutOfRangeError(ConfigError):
    """A value of the right type that breaks a rule; in a union this says more than that no other type fits."""


class MissingOptionError(ConfigError):
    """A required option is missing, that of the dotted key `path`."""

    def __init__(self, message: str, path: str) -> None:
        super().__init__(message)
        self.path = path


# ------------------------------------------------------------------ whole dataclasses


def validate(schema: type[S], node: Mapping[str, Any], path: str = "", *, elsewhere: Hint = lambda _: None) -> S:
    """Build `schema` from plain values; raises `ConfigError` with the key path, the value and what is allowed.

    `elsewhere` says of an unknown option whose it is, if anybody's.
    """
    fields = fields_of(schema)
    for key in node:
        if key not in fields:
            hint = _within(node, str(key), path, fields) or elsewhere(str(key)) or did_you_mean(str(key), fields)
            raise ConfigError(f"{joined(path, str(key))}: unknown option. {hint}")
    values: dict[str, Any] = {}
    for key, spec in fields.items():
        where = joined(path, key)
        default = spec.default_for(_with_defaults(fields, values))
        if key in node:
            values[key] = _convert(spec, node[key], where, default)
        elif default is not None:
            values[key] = _convert(spec, default, where, default)
        elif spec.required:
            raise _missing(spec, where)
    try:
        return schema(**values)
    except ConfigError as error:
        # a dataclass that knows the key names it from its own level
        raise ConfigError(f"{path}.{error}" if path else str(error)) from error
    except ValueError as error:
        raise ConfigError(f"{path or schema.__name__}: {error}") from error


def checked(schema: type[S]) -> type[S]:
    """Class decorator of an options dataclass: values are checked and converted however it is made.

    `Options` puts it on every component's Config; sections of a schema carry it themselves. Its `__post_init__` is
    then left with what concerns several options at once, and may rely on each of them.
    """
    make = vars(schema).get("__init__")
    if make is None or hasattr(make, "__wrapped__"):
        return schema  # inherits its constructor, or has been here before

    @functools.wraps(make)
    def init(self: Any, **values: Any) -> None:
        fields = fields_of(schema)
        for key, spec in fields.items():
            default = spec.default_for(_with_defaults(fields, values))
            if key in values:
                values[key] = _convert(spec, values[key], key, default)
            elif default is not None:
                values[key] = _convert(spec, default, key, default)
            elif spec.required:
                raise _missing(spec, key)
            elif spec.registry is None:
                _check_default(schema, spec, key)
        make(self, **values)

    schema.__init__ = init  # type: ignore[method-assign]
    return schema


def _with_defaults(fields: Mapping[str, FieldSpec], values: Mapping[str, Any]) -> dict[str, Any]:
    plain = {key: spec.default for key, spec in fields.items() if spec.default is not dataclasses.MISSING}
    return {**plain, **values}


def _check_default(schema: type[Any], spec: FieldSpec, key: str) -> None:
    """See that a default is allowed, since a run saves it and would be resumed with it."""
    try:
        coerce(spec.annotation, spec.default, key)
    except ConfigError as error:
        raise ContractError(f"the default: {error}", giver=f"{schema.__module__}.{schema.__qualname__}") from error


# ------------------------------------------------------------------ components


def validate_choice(registry: Registry[Any], node: Any, path: str, default: Mapping[str, Any] | None = None) -> Choice:
    """A component node `{name: ..., option: ...}` as a `Choice`; without `name` the default's name holds."""
    if isinstance(node, Choice):
        return _of_family(registry, node, path)
    if not isinstance(node, Mapping):
        hint = f" Write {path}.name={node}." if isinstance(node, str) and node in registry.names() else ""
        raise ConfigError(
            f"{path}: expected {_a(registry.family)} as {{name: ..., options}}, but got {shown(node)}.{hint}"
        )
    name = node.get("name", default["name"] if default else None)
    if name is None:
        raise ConfigError(f"{path}.name: required, but missing. {did_you_mean('', registry.names())}")
    if not isinstance(name, str):
        raise _wrong_type(f"{path}.name", "str", name)
    try:
        component = registry.get(name)
    except ConfigError as error:
        raise ConfigError(f"{path}.name: {error}") from error
    if default:
        node = with_default(registry, node, default)
    options = {key: value for key, value in node.items() if key != "name"}
    elsewhere = functools.partial(_of_another, registry, name, path)
    return Choice(name=name, config=validate(component.Config, options, path, elsewhere=elsewhere), cls=component)


def _of_another(registry: Registry[Any], name: str, path: str, option: str) -> str | None:
    """What became of an option that `name` had, which components have one that it has not, or which within it do."""
    if (said := registry.get(name).former_options.get(option)) is not None:
        return str(said)
    known = [other for other in registry.names() if option in fields_of(registry.get(other).Config)]
    if not known:
        return None
    each = next((key for key, spec in fields_of(registry.get(name).Config).items() if spec.each is registry), None)
    if each is not None:
        return (
            f"None of the {registry.family}s within it has one; what one has is set for all of them so, or as "
            f"{path}.{each}.NAME.{option} for one."
        )
    inner = wrapped_option(registry, name)
    if inner is not None:
        return (
            f"{name!r} stands around another {registry.family}, whose options are set below {path}.{inner}, with its "
            f"name where no layer before has one: {path}.{inner}.name={known[0]}."
        )
    others = f"{', '.join(known)} {'have' if known[1:] else 'has'} one"
    return f"The {registry.family} {name!r} has none, {others}: set {path}.name={known[0]}."


def _of_family(registry: Registry[Any], choice: Choice, path: str) -> Choice:
    family = getattr(choice.cls, "registered_family", "")
    if family not in ("", registry.family):  # a class that is not registered was handed over in code
        raise ConfigError(f"{path}: expected {_a(registry.family)}, but got {choice.cls.__name__} ({choice.name!r}).")
    return choice


# ------------------------------------------------------------------ values


def coerce(annotation: Any, value: Any, path: str) -> Any:
    """`value` as `annotation` allows it (ints pass as floats, lists as tuples); raises `ConfigError` otherwise."""
    if annotation is Any:
        return value
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _coerce_annotated(annotation, value, path)
    if origin in (Union, types.UnionType):
        return _coerce_union(annotation, value, path)
    if origin is Literal:
        if any(value == choice and type(value) is type(choice) for choice in arguments):
            return value
        raise ConfigError(f"{path}: got {shown(value)}. {did_you_mean(str_of(value), map(str, arguments))}")
    if origin in (list, tuple):
        return _coerce_sequence(annotation, value, path)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise _wrong_type(path, "a mapping", value)
        return {str(key): coerce(arguments[1], item, joined(path, str(key))) for key, item in value.items()}
    if dataclasses.is_dataclass(annotation):
        return _coerce_dataclass(cast(type[Any], annotation), value, path)
    return _coerce_scalar(annotation, value, path)


def _convert(spec: FieldSpec, value: Any, path: str, default: Mapping[str, Any] | None) -> Any:
    if isinstance(value, str) and value == "???":
        raise _missing(spec, path)
    if spec.registry is not None and not (value is None and allows_none(spec.annotation)):
        return validate_choice(spec.registry, value, path, default)
    return coerce(spec.annotation, value, path)


def _coerce_annotated(annotation: Any, value: Any, path: str) -> Any:
    registry = registry_of(annotation)
    if registry is not None:
        return validate_choice(registry, value, path)
    value = coerce(get_args(annotation)[0], value, path)
    for rule in rules_of(annotation):
        if not rule.allows(value):
            hint = f" {rule.hint}." if rule.hint else ""
            raise _OutOfRangeError(f"{path}: must be {rule}, but got {shown(value)}.{hint}")
    return value


def _coerce_union(annotation: Any, value: Any, path: str) -> Any:
    if value is None and allows_none(annotation):
        return None
    choices = [argument for argument in get_args(annotation) if argument is not type(None)]
    errors = []
    for choice in choices:
        try:
            return coerce(choice, value, path)
        except ConfigError as error:
            errors.append(error)
    telling = [e for e in errors if isinstance(e, _OutOfRangeError) or not str(e).startswith(f"{path}:")]
    if len(errors) == 1 or telling:
        raise (telling or errors)[0]  # says which item or option of the value is wrong
    raise _wrong_type(path, describe(annotation), value)


def _coerce_sequence(annotation: Any, value: Any, path: str) -> Any:
    origin, kinds = get_origin(annotation), get_args(annotation)
    if not isinstance(value, (list, tuple)):
        raise _wrong_type(path, f"a list{_as_an_item(kinds[0], value, path)}", value)
    if origin is list or kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    elif len(kinds) != len(value):
        raise ConfigError(f"{path}: expected {len(kinds)} values, but got {shown(list(value))}.")
    return origin(coerce(kind, item, f"{path}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True)))


def _as_an_item(kind: Any, value: Any, path: str) -> str:
    """What stands alone as it is written in a list, if it could be an item: `, such as [1],`."""
    try:
        coerce(kind, value, path)
    except ConfigError:
        return ""
    return f", such as [{shown(value)}]"


def _coerce_dataclass(schema: type[Any], value: Any, path: str) -> Any:
    if isinstance(value, schema):
        return value  # made in code, where it has been checked
    if not isinstance(value, Mapping):
        raise _wrong_type(path, "options", value)
    return validate(schema, value, path)


def _coerce_scalar(annotation: Any, value: Any, path: str) -> Any:
    if annotation is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return _finite(value, path)
    if annotation is int and isinstance(value, int) and not isinstance(value, bool):
        if abs(value) > LARGEST_INT:
            raise _OutOfRangeError(f"{path}: must be at most {LARGEST_INT} in size, but got {shown(value)}.")
        return int(value)
    if annotation is str and isinstance(value, str):
        return _plain_text(value, path)
    if annotation is bool and isinstance(value, bool):
        return value
    raise _wrong_type(path, "true or false" if annotation is bool else describe(annotation), value)


def _finite(value: float, path: str) -> float:
    try:
        number = float(value)
    except OverflowError:  # an int that no float holds
        number = math.inf
    if not math.isfinite(number):
        raise _OutOfRangeError(f"{path}: must be a finite number, but got {shown(value)}.")
    return number


def _plain_text(value: str, path: str) -> str:
    """Text that files, paths and tokenizers can hold."""
    if "\0" in value or (not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value)):
        raise _OutOfRangeError(f"{path}: must be text without NUL and lone surrogates, but got {shown(value)}.")
    return str(value)


# ------------------------------------------------------------------ messages


def shown(value: Any) -> str:
    """A value in a message: its repr, on one line and not longer than a message should be."""
    try:
        text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    except (ValueError, RecursionError):  # an int of thousands of digits, a list that contains itself
        return f"a {type(value).__name__} too large to show"
    except Exception:  # noqa: BLE001 - somebody's repr
        return f"a {type(value).__name__} that cannot be shown"
    text = without_secrets(text)
    return text if len(text) <= 200 else f"{text[:197]}..."


def str_of(value: Any) -> str:
    """The text that a value is compared by when a name close to it is looked for."""
    return value if isinstance(value, str) else shown(value)


def _missing(spec: FieldSpec, path: str) -> MissingOptionError:
    names = "" if spec.registry is None else f" Set {path}.name. {did_you_mean('', spec.registry.names())}"
    return MissingOptionError(f"{path}: required, but missing{f' ({spec.help})' if spec.help else ''}.{names}", path)


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _wrong_type(path: str, expected: str, value: Any) -> ConfigError:
    return ConfigError(f"{path}: expected {expected}, but got {shown(value)} ({type(value).__name__}).")


def _within(node: Mapping[str, Any], key: str, path: str, fields: Mapping[str, FieldSpec]) -> str | None:
    """Where else an option is, that stands beside a wrapper's name and is one of the component within."""
    for inner, spec in fields.items():
        choice = node.get(inner)
        name = choice.get("name") if isinstance(choice, Mapping) else None
        known = spec.registry if spec.wraps else None
        if known is not None and name in known.names() and key in fields_of(known.get(str(name)).Config):
            return f"{name!r}, which it stands around, has one: {joined(path, inner)}.{key}."
    return None
