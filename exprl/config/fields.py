"""What a Config dataclass declares: its fields, their types, helps and defaults."""

from __future__ import annotations

import copy
import dataclasses
import functools
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from exprl.config.keys import joined
from exprl.config.ranges import Rule
from exprl.errors import ContractError
from exprl.registry import Registry

# ------------------------------------------------------------------ declaring


def option(
    *positional: Any,
    default: Any = MISSING,
    help: str = "",  # noqa: A002 - argparse's word
    free: bool = False,
    of: str | None = None,
    by_key: bool = False,
) -> Any:
    """An option: its one default, and the line that `exprl list` shows for it.

    Without a default the option is required. What a value must be is said by the annotation: its type, a `Literal` of
    the choices, or `Annotated` with a rule of `exprl.config.ranges`. A `free` one changes nothing of what a step
    computes, though perhaps whether the run stops there, so it may be another when a run is resumed. One that says
    something `of` what another option names, such as which file of a folder, does not outlive that: a layer that names
    something else leaves it behind. A mapping that is merged `by_key` keeps the keys that a layer does not set; any
    other is replaced.
    """
    if positional:
        raise ContractError("option takes keywords: option(default=..., help=...).")
    metadata = {"help": help, "free": free, "of": of, "by_key": by_key}
    if default is not MISSING and type(default).__hash__ is None:
        return field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    if default is MISSING:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Choice:
    """A component picked by name with its validated options: what a YAML node `{name: ..., ...}` becomes."""

    name: str
    config: Any
    cls: type[Any]

    @classmethod
    def of(cls, registry: Registry[Any], name: str, **options: Any) -> Choice:
        """The component `name` of `registry`; raises `ConfigError` for an unknown name or a value not allowed."""
        component = registry.get(name)
        return cls(name=name, config=component.Config(**options), cls=component)

    def build(self, resources: Any) -> Any:
        """The component itself, with what the run's `exprl.resources.Resources` give it."""
        return self.cls.from_config(self.config, resources)


def choices_in(part: Any, path: str) -> Iterator[tuple[str, Choice]]:
    """The components that `part` chooses, itself first where it is one, and those within them, each with its key."""
    if isinstance(part, Choice):
        yield path, part
        part = part.config
    if dataclasses.is_dataclass(part):
        for own in dataclasses.fields(part):
            yield from choices_in(getattr(part, own.name), f"{path}.{own.name}")
    if isinstance(part, Mapping):
        for name, one in part.items():
            yield from choices_in(one, joined(path, str(name)))


def chosen_by(config: Any) -> Iterator[Choice]:
    """The components that a config's options choose, not those within them."""
    for own in dataclasses.fields(config):
        value = getattr(config, own.name)
        values = value.values() if isinstance(value, Mapping) else [value]
        yield from (one for one in values if isinstance(one, Choice))


def choose(
    registry: Registry[Any],
    *positional: Any,
    default: str | None = None,
    help: str = "",  # noqa: A002
    **options: Any,
) -> Any:
    """An option that holds a component of `registry`: by default the one called `default` with `options`, or None.

    Annotate it with the component's type (in a dataclass that is no component `Annotated[Choice, registry]`), or None
    where that is the default. The default is resolved when a config is made, so that declaring imports no component.
    """
    if positional:
        raise ContractError("choose takes keywords: choose(registry, default=..., help=...).")
    if default is None:
        return field(default=None, metadata={"help": help, "registry": registry})
    node = {"name": default, **options}
    return field(
        default_factory=lambda: Choice.of(registry, default, **options),
        metadata={"help": help, "registry": registry, "default_node": node},
    )


def choose_by(
    name_for: Callable[[Mapping[str, Any]], str],
    registry: Registry[Any],
    *,
    help: str = "",  # noqa: A002
) -> Any:
    """An option that holds a component of `registry`: by default the one that goes with the options before it.

    `name_for` is given those, by name and with their defaults, and returns the component's name.
    """
    return field(default=None, metadata={"help": help, "registry": registry, "name_for": name_for})


def required_choice(registry: Registry[Any], *, help: str = "") -> Any:  # noqa: A002
    """An option that holds a component of `registry` and that must be named."""
    return field(metadata={"help": help, "registry": registry})


def choose_each(registry: Registry[Any], *, help: str = "") -> Any:  # noqa: A002
    """An option that holds components of `registry` by names of the user's own, and that must be given.

    Annotate it with `Mapping[str, the components' type]`. A layer that names one of them anew, or sets an option of
    one, leaves the others as they are; null in the place of one takes it away.
    """
    return field(metadata={"help": help, "registry": registry, "each": True})


def wrapped(registry: Registry[Any], *, help: str = "") -> Any:  # noqa: A002
    """An option that makes its component a wrapper of its family: it stands around another one of `registry`.

    Where a layer names the wrapper alone, it stands around the component that was there, whichever that is, with its
    options; so naming it is an ablation of one word.
    """
    return field(metadata={"help": help, "registry": registry, "wraps": True})


def given(
    take: Callable[[Any, str], Any] | None = None,
    *,
    default: Any = MISSING,
    help: str = "",  # noqa: A002
) -> Any:
    """What a component is given beside its options: in code as a keyword, in a run by `take(resources, who)`.

    `resources` are the run's `exprl.resources.Resources`, those of no run where code leaves the keyword out; `who`
    names the component in messages. Without `take` a run has none, and the `default` holds.
    """
    return field(default=default, metadata={"help": help, "given": take})


# ------------------------------------------------------------------ reading what is declared


@dataclass(frozen=True, kw_only=True)
class FieldSpec:
    """One option: a plain value, a nested dataclass (`dataclass`), a component picked by name (`registry`), or several
    components by names of the user's own (`each`).
    """

    annotation: Any
    required: bool
    help: str
    registry: Registry[Any] | None
    dataclass: type[Any] | None
    default_node: Mapping[str, Any] | None
    name_for: Callable[[Mapping[str, Any]], str] | None = None
    of: str | None = None
    wraps: bool = False
    each: Registry[Any] | None = None
    by_key: bool = False
    free: bool = False
    mapping: bool = False
    default: Any = MISSING
    """The plain value where none is given; of a component see `default_for`."""

    def default_for(self, chosen: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """The component node that stands where none is given, beside the options `chosen` before it; None without."""
        return self.default_node if self.name_for is None else {"name": self.name_for(chosen)}


def fields_of(schema: type[Any]) -> Mapping[str, FieldSpec]:
    """The options of a Config dataclass by name, in the order they are declared."""
    return _fields_of(schema)  # type: ignore[arg-type] # classes are hashable


@functools.cache
def _fields_of(schema: type[Any]) -> Mapping[str, FieldSpec]:
    try:
        hints = typing.get_type_hints(schema, include_extras=True)
    except NameError as error:
        raise ContractError(
            f"the type of an option cannot be read: {error}. Import it at the top of the module, not within a function "
            "or for type checkers alone.",
            giver=f"{schema.__module__}.{schema.__qualname__}",
        ) from error
    return types.MappingProxyType({field.name: _read(field, hints[field.name]) for field in dataclasses.fields(schema)})


def _read(field: dataclasses.Field[Any], annotation: Any) -> FieldSpec:
    bare = _without_none(annotation)
    plain = get_args(bare)[0] if get_origin(bare) is Annotated else bare
    nested = isinstance(plain, type) and dataclasses.is_dataclass(plain) and plain is not Choice
    without_default = field.default is MISSING and field.default_factory is MISSING
    registry, each = field.metadata.get("registry"), field.metadata.get("each", False)
    return FieldSpec(
        annotation=annotation,
        required=without_default,
        help=field.metadata.get("help", ""),
        registry=None if each else registry,
        dataclass=plain if nested else None,
        default_node=field.metadata.get("default_node"),
        name_for=field.metadata.get("name_for"),
        of=field.metadata.get("of"),
        wraps=field.metadata.get("wraps", False),
        each=registry if each else None,
        by_key=field.metadata.get("by_key", False),
        free=field.metadata.get("free", False),
        mapping=get_origin(plain) in (dict, Mapping),
        default=_plain_default(field),
    )


def _plain_default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is MISSING or "registry" in field.metadata:
        return field.default
    return field.default_factory()


def wrapped_option(registry: Registry[Any], name: Any) -> str | None:
    """The option in which the component `name` holds the one of its family that it stands around; None: no wrapper."""
    if name not in registry.names():
        return None  # `validate_choice` refuses it
    fields = fields_of(registry.get(name).Config)
    return next((key for key, spec in fields.items() if spec.wraps and spec.registry is registry), None)


def rules_of(annotation: Any) -> list[Rule]:
    """The rules at the top of an annotation."""
    return [extra for extra in get_args(annotation)[1:] if isinstance(extra, Rule)]


def registry_of(annotation: Any) -> Registry[Any] | None:
    """The family that an `Annotated[Choice, registry]` chooses from."""
    return next((extra for extra in get_args(annotation)[1:] if isinstance(extra, Registry)), None)


def allows_none(annotation: Any) -> bool:
    """Whether an option may be null."""
    return get_origin(annotation) in (Union, types.UnionType) and type(None) in get_args(annotation)


def describe(annotation: Any, *, rules: bool = False) -> str:
    """An annotation as messages name it; with its rules as `exprl list` shows it.

    >>> describe(int | list[str] | None)
    'int or a list of str or null'
    >>> from exprl.config.ranges import PositiveInt
    >>> describe(PositiveInt | None, rules=True)
    'int in [1, 1000000000] or null'
    """
    name = functools.partial(describe, rules=rules)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        registry = registry_of(annotation)
        if registry is not None:
            return f"{'an' if registry.family[0] in 'aeiou' else 'a'} {registry.family}"
        said = rules_of(annotation) if rules else []
        return functools.reduce(lambda kind, rule: rule.described(kind), said, name(arguments[0]))
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if origin in (Union, types.UnionType):
        return " or ".join("null" if argument is type(None) else name(argument) for argument in arguments)
    if origin is tuple and arguments[-1] is not Ellipsis:
        return f"[{', '.join(map(name, arguments))}]"
    if origin in (list, tuple):
        return f"a list of {name(arguments[0])}"
    if origin is dict:
        return f"a mapping to {name(arguments[1])}"
    if dataclasses.is_dataclass(annotation):
        return "options"
    return str(getattr(annotation, "__name__", annotation))


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, types.UnionType):
        rest = [argument for argument in get_args(annotation) if argument is not type(None)]
        return rest[0] if len(rest) == 1 else annotation
    return annotation
