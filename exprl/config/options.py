"""Options as fields of the class that has them, typed for whoever writes `DelimiterSlicer(delimiter="###")`.

A class declares `name: type = option(default=..., help=...)` in its body. From these fields come its `Config`, the
frozen dataclass that YAML is validated against, and its constructor, which takes them as keywords; `self.name` reads
one. Type checkers and editors know them by `dataclass_transform` (PEP 681).
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, ForwardRef, dataclass_transform

from exprl.config.declaring import check_body
from exprl.config.fields import Choice, choose, choose_each, describe, given, option, required_choice, wrapped
from exprl.config.kinds import is_a, resolved
from exprl.config.validate import checked, shown
from exprl.errors import ConfigError, did_you_mean

EMPTY: Mapping[str, str] = MappingProxyType({})


@dataclass_transform(
    kw_only_default=True,
    frozen_default=True,
    field_specifiers=(option, choose, choose_each, required_choice, wrapped, given),
)
class Options:
    """Base of what has typed options.

    >>> class Window(Options):
    ...     size: int = option(default=512, help="tokens a segment")
    >>> Window(size=8)
    Window(size=8)
    >>> Window.Config()
    Window.Config(size=512)
    >>> Window(size="wide")
    Traceback (most recent call last):
    exprl.errors.ConfigError: size: expected int, but got 'wide' (str).
    """

    Config: ClassVar[type[Any]]
    """The options as a frozen dataclass, made from the fields of the class: what YAML is validated against."""

    config: ClassVar[Any]  # of each object its own, as `Any`: its class is made at run time
    """The options of this object, an instance of `Config`."""

    former_options: ClassVar[Mapping[str, str]] = EMPTY
    """What to write in the place of options that a class had once, each with a sentence for whoever still sets it."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        _declare(cls)

    def __init__(self, **options: Any) -> None:
        self._assemble(self._checked(options))

    @classmethod
    def check_options(cls, config: Any) -> None:
        """Raise a `ConfigError` where options do not go together; each of them has been checked by itself.

        That of every base is asked, so none needs to call another.
        """
        del config

    def __repr__(self) -> str:
        shown = ", ".join(f"{field.name}={getattr(self, field.name, ...)!r}" for field in _fields(type(self)))
        return f"{type(self).__name__}({shown})"

    def _checked(self, options: Mapping[str, Any]) -> Any:
        known = inspect.signature(self.Config).parameters
        for name in options:
            if name not in known:
                hint = self.former_options.get(name) or did_you_mean(name, known)
                raise TypeError(f"{type(self).__name__}: unknown option {name!r}. {hint}")
        return self.Config(**options)

    def _assemble(self, config: Any) -> None:
        object.__setattr__(self, "config", config)


class Value:
    """How an object reads one of its options; they are set once, by the constructor."""

    def __init__(self, name: str, field: dataclasses.Field[Any], annotation: Any) -> None:
        self.name, self.field, self.annotation = name, field, annotation
        self.__doc__ = field.metadata.get("help")

    def __get__(self, owner: Any, kind: type[Any]) -> Any:
        return self if owner is None else getattr(owner.config, self.name)

    def __set__(self, owner: Any, value: object) -> None:
        raise AttributeError(f"{type(owner).__name__}: {self.name} is set by the constructor; make another object.")


class Part(Value):
    """How an object reads a component that it is built of, or something else that is no option."""

    def __get__(self, owner: Any, kind: type[Any]) -> Any:
        return self if owner is None else owner._built(self.name)


def parts_of(cls: type[Any]) -> Iterator[str]:
    """The options that hold components."""
    return (field.name for field in _fields(cls) if "registry" in field.metadata)


def given_to(cls: type[Any]) -> Mapping[str, dataclasses.Field[Any]]:
    """What its objects are given beside their options, by name."""
    return {name: value.field for name, value in _values(cls).items() if "given" in value.field.metadata}


def check_given(cls: type[Any], name: str, value: object) -> None:
    """Raise `ConfigError` where what is handed over as `name`, which a run would give, is of another kind."""
    own = _values(cls)[name]
    home = next(base.__module__ for base in cls.__mro__ if vars(base).get(name) is own)
    kind = resolved(own.annotation, home)
    if not is_a(value, kind) and not (value is None and own.field.default is None):
        expected = own.annotation if isinstance(own.annotation, str) else describe(own.annotation)
        got = f"{shown(value)} ({type(value).__name__})"
        raise ConfigError(f"{cls.__name__}: {name}: expected {expected}, but got {got}.")


def _fields(cls: type[Any]) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(cls.Config)


def _values(cls: type[Any]) -> dict[str, Value]:
    """What a class and its bases declare, by name, as attributes are found: the nearest first."""
    found: dict[str, Value] = {}
    for base in cls.__mro__:
        for name, value in vars(base).items():
            if isinstance(value, Value):
                found.setdefault(name, value)
    return found


# ------------------------------------------------------------------ declaring


def _declare(cls: type[Any]) -> None:
    """Make of the fields in a class's body its `Config`, how its objects read them, and the constructor's signature."""
    declared = {name: value for name, value in vars(cls).items() if isinstance(value, dataclasses.Field)}
    annotations = inspect.get_annotations(cls)
    check_body(cls, declared, annotations, _values(cls))
    for name, field in declared.items():
        is_part = "given" in field.metadata or "registry" in field.metadata
        setattr(cls, name, (Part if is_part else Value)(name, field, annotations[name]))
    cls.Config = _config_of(cls)
    cls.__signature__ = _signature(cls)


def _config_of(cls: type[Any]) -> type[Any]:
    """The frozen dataclass of a class's options: its own, and where bases disagree the nearest one's."""
    above = [base.Config for base in cls.__bases__ if hasattr(base, "Config")]
    bases = tuple(
        dict.fromkeys(one for one in above if not any(one is not other and issubclass(other, one) for other in above))
    )
    inherited = {field.name: field.default for base in reversed(bases) for field in dataclasses.fields(base)}
    options = {name: value for name, value in _values(cls).items() if "given" not in value.field.metadata}
    body: dict[str, Any] = {
        "__module__": cls.__module__,
        "__qualname__": f"{cls.__qualname__}.Config",
        "__doc__": f"The options of `{cls.__name__}`.",
        "__annotations__": {},
        "__post_init__": lambda self: _check_together(cls, self),
    }
    for name, value in options.items():
        if name in vars(cls) or (len(bases) > 1 and inherited[name] is not value.field.default):
            body["__annotations__"][name] = _annotation(cls, value)
            body[name] = copy.copy(value.field)
    return checked(dataclasses.dataclass(frozen=True, kw_only=True)(type("Config", bases, body)))


def _check_together(cls: type[Any], config: Any) -> None:
    for base in reversed(cls.__mro__):
        if "check_options" in vars(base):
            vars(base)["check_options"].__get__(None, cls)(config)


def _annotation(cls: type[Any], value: Value) -> Any:
    """That of an option; in a `Config` a component is the choice of one."""
    registry = value.field.metadata.get("registry")
    if registry is None:
        home = next(base.__module__ for base in cls.__mro__ if vars(base).get(value.name) is value)
        elsewhere = isinstance(value.annotation, str) and home != cls.__module__
        return ForwardRef(value.annotation, module=home) if elsewhere else value.annotation
    chosen = Annotated[Choice, registry]
    if value.field.metadata.get("each"):
        return dict[str, chosen]
    return chosen | None if value.field.default is None else chosen


def _signature(cls: type[Any]) -> inspect.Signature:
    if "__init__" in vars(cls):
        own = inspect.signature(cls.__init__)
        return own.replace(parameters=list(own.parameters.values())[1:])
    values = _values(cls)
    order = [*given_to(cls), *(field.name for field in _fields(cls))]
    return inspect.Signature([_parameter(values[name]) for name in order])


def _parameter(value: Value) -> inspect.Parameter:
    """As people read it: what an option is, and of a component the default's name."""
    field, keyword = value.field, inspect.Parameter.KEYWORD_ONLY
    default: Any = inspect.Parameter.empty
    if (node := field.metadata.get("default_node")) is not None:
        default = node["name"]
    elif field.default is not dataclasses.MISSING:
        default = field.default
    elif field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    return inspect.Parameter(value.name, keyword, default=default, annotation=value.annotation)
