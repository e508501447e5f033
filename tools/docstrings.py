"""An extension of Griffe: docstrings as the site shows them, with tables of options, registered names and examples."""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Iterator
from typing import Any

import griffe

from exprl.commands.listing import default_of
from exprl.config.fields import describe, fields_of

REGISTERED = re.compile(r"\w+\.register\(['\"](\w+)['\"]\)")
DOCTEST = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Completes the docstrings of exprl."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for each object once its package has been read."""
        if not obj.path.startswith("exprl.") or not obj.docstring:
            return
        text = DOCTEST.sub(lambda example: f"```pycon\n{example[0]}\n```", obj.docstring.value)
        if isinstance(obj, griffe.Class):
            text = with_name(text, obj)
            if config := options_of(obj):
                text = f"{text}\n\n{table(config)}"
                for name in {"__init__", *fields_of(config)} & obj.members.keys():
                    del obj.members[name]
        obj.docstring.value = text


def with_name(text: str, cls: griffe.Class) -> str:
    """The docstring with the name that YAML uses, after its summary."""
    names = [found[1] for decorator in cls.decorators if (found := REGISTERED.fullmatch(str(decorator.value)))]
    if not names:
        return text
    summary, *rest = text.split("\n\n", 1)
    return "\n\n".join([summary, f"In YAML: `name: {names[0]}`.", *rest])


def options_of(cls: griffe.Class) -> type[Any] | None:
    """The options of a component, or the class itself, if it is a dataclass of options."""
    found: Any = importlib.import_module(cls.module.path)
    for name in cls.path.removeprefix(f"{cls.module.path}.").split("."):
        found = getattr(found, name)
    found = getattr(found, "Config", found)
    if not dataclasses.is_dataclass(found):
        return None
    return found if any("help" in field.metadata for field in dataclasses.fields(found)) else None


def table(config: type[Any]) -> str:
    """Options in Markdown, inherited ones included, as `exprl list` has them."""
    return "\n".join(["| option | default | what it does |", "|---|---|---|", *rows(config)])


def rows(config: type[Any]) -> Iterator[str]:
    """One row an option; a section of options has no default of its own."""
    for field, spec in zip(dataclasses.fields(config), fields_of(config).values(), strict=True):
        allowed = "" if spec.dataclass else f" ({describe(spec.annotation, rules=True)})"
        default = "" if spec.dataclass else f"`{default_of(field, spec)}`"
        yield f"| `{field.name}` | {default} | {escaped(spec.help + allowed)} |"


def escaped(text: str) -> str:
    """Text in a cell, without what would end it or be taken for mark-up."""
    return re.sub(r"([|*_$\[\]`\\])", r"\\\1", text).replace("<", "&lt;")
