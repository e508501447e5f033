"""Objects that a config names by their class: `{class_path: ..., init_args: {...}}`, the form of LightningCLI.

Importing a module runs it, so only what the user wrote comes here: a run's `config.yaml` from elsewhere is validated
and read for its values, and never trained from unless it is given as CONFIG.
"""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any, TypeVar

from exprl.errors import ConfigError, did_you_mean, one_line
from exprl.experiment import ClassPath
from exprl.registry import import_named

T = TypeVar("T")


def make(node: ClassPath, base: type[T], home: ModuleType, key: str) -> T:
    """The object.

    Args:
        node: its class and arguments.
        base: what its class must inherit from.
        home: where a name without a module is looked for.
        key: the config's, for messages.

    Raises:
        ConfigError: naming the key, where the class is not there or not of its kind, does not take these arguments, or
            raises.
    """
    cls = _class_of(node.class_path, base, home, f"{key}.class_path")
    try:
        inspect.signature(cls).bind(**node.init_args)
    except TypeError as error:
        taken = ", ".join(inspect.signature(cls).parameters) or "no arguments"
        raise ConfigError(f"{key}.init_args: {error}. {cls.__name__} takes {taken}.") from error
    try:
        return cls(**node.init_args)
    except Exception as error:  # anybody's code
        raise ConfigError(f"{key}: cannot make {cls.__name__} ({type(error).__name__}: {one_line(error)}).") from error


def _class_of(path: str, base: type[T], home: ModuleType, key: str) -> type[T]:
    module_name, _, name = path.rpartition(".")
    module = import_named(module_name, key) if module_name else home
    found: Any = getattr(module, name, None)
    kind = base.__name__
    if not (isinstance(found, type) and issubclass(found, base)):
        what = "there is no such class" if found is None else f"{_title(found)} is no {kind}"
        there = [n for n, value in vars(module).items() if isinstance(value, type) and issubclass(value, base)]
        raise ConfigError(f"{key}: {path}: {what}. In {module.__name__}: {did_you_mean(name, there)}")
    if inspect.isabstract(found):
        missing = ", ".join(sorted(getattr(found, "__abstractmethods__", ())))
        raise ConfigError(f"{key}: {path}: it must define {missing}. Choose one of its children.")
    return found


def _title(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}" if isinstance(thing, type) else f"a {type(thing).__name__}"
