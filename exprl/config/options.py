"""Options as fields of the class that has them, typed for whoever writes `DelimiterSlicer(delimiter="###")`.

A class declares `name: type = option(default=..., help=...)` in its body. From these fields come its `Config`, the
frozen dataclass that YAML is validated against, and its constructor, which takes them as keywords; `self.name` reads
one. Type checkers and editors know them by `dataclass_transform` (PEP 681).
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, dataclass_transform, get_origin

from exprl.config.fields import Choice, choose, given, option, required_choice, wrapped
from exprl.config.validate import checked
from exprl.errors import ContractError, did_you_mean


@dataclass_transform(
    kw_only_default=True, frozen_default=True, field_specifiers=(option, choose, required_choice, wrapped, given)
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

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        _declare(cls)

    def __init__(self, **options: Any) -> None:
        self._assemble(self._checked(options))

    @classmethod
    def check_options(cls, config: Any) -> None:
        """Raise a `ConfigError` where options do not go together; each of them has been checked by itself."""
        del config

    def __repr__(self) -> str:
        shown = ", ".join(f"{field.name}={getattr(self, field.name)!r}" for field in _fields(type(self)))
        return f"{type(self).__name__}({shown})"

    def _checked(self, options: Mapping[str, Any]) -> Any:
        known = inspect.signature(self.Config).parameters
        for name in options:
            if name not in known:
                raise TypeError(f"{type(self).__name__}: unknown option {name!r}. {did_you_mean(name, known)}")
        return self.Config(**options)

    def _assemble(self, config: Any) -> None:
        object.__setattr__(self, "config", config)


class Value:
    """How an object reads one of its options; they are set once, by the constructor."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, owner: Any, kind: type[Any]) -> Any:
        return self if owner is None else getattr(owner.config, self._name)

    def __set__(self, owner: Any, value: object) -> None:
        raise AttributeError(f"{type(owner).__name__}: {self._name} is set by the constructor; make another object.")


class Part(Value):
    """How an object reads a component that it was built with, or something else that is no option."""

    def __get__(self, owner: Any, kind: type[Any]) -> Any:
        return self if owner is None else owner._parts[self._name]


def parts_of(cls: type[Any]) -> Iterator[str]:
    """The options that hold components."""
    return (field.name for field in _fields(cls) if "registry" in field.metadata)


def given_to(cls: type[Any]) -> Mapping[str, dataclasses.Field[Any]]:
    """What its objects are given beside their options, by name."""
    found: Mapping[str, dataclasses.Field[Any]] = cls._given
    return found


def _fields(cls: type[Any]) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(cls.Config)


# ------------------------------------------------------------------ declaring


def _declare(cls: type[Any]) -> None:
    """Make of the fields in a class's body its `Config`, how its objects read them, and the constructor's signature."""
    declared = {name: value for name, value in vars(cls).items() if isinstance(value, dataclasses.Field)}
    annotations = inspect.get_annotations(cls)
    _check_body(cls, declared, annotations)
    given = {name: field for name, field in declared.items() if "given" in field.metadata}
    options = {name: field for name, field in declared.items() if name not in given}
    for name, field in declared.items():
        setattr(cls, name, Part(name) if name in given or "registry" in field.metadata else Value(name))
    cls._given = {**getattr(cls, "_given", {}), **given}
    cls.Config = _config_of(cls, {name: _annotation(annotations[name], options[name]) for name in options}, options)
    cls.__signature__ = _signature(cls)


def _config_of(cls: type[Any], annotations: Mapping[str, Any], options: Mapping[str, Any]) -> type[Any]:
    """The frozen dataclass of a class's own options, below those of its bases."""
    above = [base.Config for base in cls.__bases__ if hasattr(base, "Config")]
    bases = tuple(
        dict.fromkeys(one for one in above if not any(one is not other and issubclass(other, one) for other in above))
    )
    body = {
        "__module__": cls.__module__,
        "__qualname__": f"{cls.__qualname__}.Config",
        "__doc__": f"The options of `{cls.__name__}`.",
        "__annotations__": dict(annotations),
        "__post_init__": lambda self: cls.check_options(self),
        **options,
    }
    return checked(dataclasses.dataclass(frozen=True, kw_only=True)(type("Config", bases, body)))


def _annotation(annotation: Any, field: dataclasses.Field[Any]) -> Any:
    """That of an option; in a `Config` a component is the choice of one."""
    registry = field.metadata.get("registry")
    if registry is None:
        return annotation
    chosen = Annotated[Choice, registry]
    return chosen | None if field.default is None else chosen


def _signature(cls: type[Any]) -> inspect.Signature:
    if "__init__" in vars(cls):
        return _without_self(inspect.signature(cls.__init__))
    options = inspect.signature(cls.Config).parameters.values()
    keyword, required = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.empty
    given = [
        inspect.Parameter(name, keyword, default=required if f.default is dataclasses.MISSING else f.default)
        for name, f in cls._given.items()
    ]
    return inspect.Signature([*given, *(option.replace(kind=keyword) for option in options)])


def _without_self(signature: inspect.Signature) -> inspect.Signature:
    return signature.replace(parameters=list(signature.parameters.values())[1:])


def _check_body(cls: type[Any], declared: Mapping[str, Any], annotations: Mapping[str, Any]) -> None:
    """Raise `ContractError` for what would not be what it looks like."""
    who = f"{cls.__module__}.{cls.__qualname__}"
    if "Config" in vars(cls):
        raise ContractError(
            "options are fields of the class itself, no longer of a class Config within: write `name: type = "
            "option(default=..., help=...)` in its body, read self.name, check several together in `check_options`.",
            giver=who,
        )
    for name in vars(cls).keys() - declared.keys():
        if any(isinstance(vars(base).get(name), Value) for base in cls.__mro__[1:]):
            raise ContractError(f"{name!r} hides the option of that name of its base: rename it.", giver=who)
    for name in declared:
        if name not in annotations:
            raise ContractError(f"option {name!r} has no type: write `{name}: type = option(...)`.", giver=who)
        if any(not isinstance(vars(base).get(name, Value(name)), Value) for base in cls.__mro__[1:]):
            raise ContractError(f"option {name!r} has the name of something else of its base: rename it.", giver=who)
    for name, annotation in annotations.items():
        if name not in declared and not _is_of_class(annotation):
            raise ContractError(
                f"{name!r} is annotated and no option: write `{name}: type = option(...)`, or ClassVar[type], or "
                "leave out the type and assign it in `setup`.",
                giver=who,
            )


def _is_of_class(annotation: Any) -> bool:
    if isinstance(annotation, str):
        return annotation.removeprefix("typing.").startswith("ClassVar")
    return annotation is ClassVar or get_origin(annotation) is ClassVar
