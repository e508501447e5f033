"""What the body of a class with options must look like, each fault told where the class is defined."""

from __future__ import annotations

import builtins
import dataclasses
import inspect
import re
from collections.abc import Mapping
from typing import Any, ClassVar, get_origin

from exprl.errors import ContractError

RESERVED = ("name", "config", "self")
"""`name` is the component's own in YAML, the others are the object's."""

_CLASS_VARIABLE = re.compile(r"(\w+\.)?ClassVar\b")


def check_body(
    cls: type[Any],
    declared: Mapping[str, dataclasses.Field[Any]],
    annotations: Mapping[str, Any],
    known: Mapping[str, Any],
) -> None:
    """Raise `ContractError` for what would not be what it looks like.

    Args:
        cls: the class.
        declared: the options in its body, and what it is given.
        annotations: of its body.
        known: what its bases declare.
    """
    who = f"{cls.__module__}.{cls.__qualname__}"
    _check_style(cls, who)
    for name, field in declared.items():
        _check_option(cls, name, field, annotations, known, who)
    for name in vars(cls).keys() - declared.keys():
        if name in known:
            raise ContractError(
                f"{name!r} hides the option of that name: give it another default by `{name}: type = "
                "option(default=...)`, or rename what is no option.",
                giver=who,
            )
    _check_methods(cls, who)
    for name, annotation in annotations.items():
        if name not in declared and not _is_of_class(annotation):
            raise ContractError(
                f"{name!r} is annotated and no option: write `{name}: type = option(...)`, or ClassVar[type], or "
                "leave out the type and assign it in `setup`.",
                giver=who,
            )


def _check_style(cls: type[Any], who: str) -> None:
    """See that nothing is left of how components were written before options were fields."""
    own = vars(cls)
    if "Config" in own:
        raise ContractError(
            "options are fields of the class itself, no longer of a class Config within: write `name: type = "
            "option(default=..., help=...)` in its body, read self.name, check several together in `check_options`.",
            giver=who,
        )
    if "__post_init__" in own:
        raise ContractError("nothing calls `__post_init__`: check options in `check_options`.", giver=who)
    parameters = list(inspect.signature(own["__init__"]).parameters) if "__init__" in own else []
    if parameters[1:2] == ["config"]:
        raise ContractError(
            "no config is handed to a constructor: leave it out, read self.name, make the rest in `setup`, and declare "
            "what comes from the run by `name: type = given(Resources....)`.",
            giver=who,
        )
    for base in cls.__mro__[1:]:
        for name, value in vars(base).items():
            if isinstance(value, dataclasses.Field):
                raise ContractError(f"option {name!r} of {base.__name__}: derive that class from Options.", giver=who)


def _check_methods(cls: type[Any], who: str) -> None:
    """See that what is defined in the place of a base's method can be called as that is."""
    for name, own in vars(cls).items():
        theirs = next((vars(base)[name] for base in cls.__mro__[1:] if name in vars(base)), None)
        if name.startswith("_") or not (inspect.isfunction(own) and inspect.isfunction(theirs)):
            continue
        asked = inspect.signature(theirs)
        try:
            _call(inspect.signature(own), asked)
        except TypeError as error:
            raise ContractError(
                f"`{name}` must take what it is called with ({error}): write def {name}({_written(asked)}).", giver=who
            ) from None


def _call(own: inspect.Signature, asked: inspect.Signature) -> None:
    """Raise `TypeError` where what is called as `asked` says cannot be."""
    parameters = asked.parameters.values()
    places = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    own.bind(*places, **{p.name: None for p in parameters if p.kind is p.KEYWORD_ONLY})


def _written(signature: inspect.Signature) -> str:
    """Parameters by name alone, with the names of defaults."""
    defaults = {p.name: p.default for p in signature.parameters.values() if p.default is not p.empty}
    return ", ".join(
        f"{name}={getattr(defaults[name], '__name__', repr(defaults[name]))}" if name in defaults else name
        for name in signature.parameters
    )


def _check_option(
    cls: type[Any],
    name: str,
    field: dataclasses.Field[Any],
    annotations: Mapping[str, Any],
    known: Mapping[str, Any],
    who: str,
) -> None:
    is_given = "given" in field.metadata
    if name not in annotations:
        raise ContractError(f"option {name!r} has no type: write `{name}: type = option(...)`.", giver=who)
    if name.startswith("_") or hasattr(builtins, name) or (name in RESERVED and not (is_given and name == "name")):
        raise ContractError(f"an option cannot be called {name!r}: choose another name.", giver=who)
    if name in known:
        if is_given != ("given" in known[name].field.metadata):
            raise ContractError(f"{name!r} is an option in one class and given in the other: rename one.", giver=who)
    elif any(name in vars(base) for base in cls.__mro__[1:]):
        raise ContractError(f"option {name!r} has the name of something else of its base: rename it.", giver=who)
    if ("registry" in field.metadata or is_given) and not hasattr(cls, "part"):
        raise ContractError(f"{name!r}: only a Component is built of others or given anything.", giver=who)


def _is_of_class(annotation: Any) -> bool:
    if isinstance(annotation, str):
        return _CLASS_VARIABLE.match(annotation) is not None
    return annotation is ClassVar or get_origin(annotation) is ClassVar
