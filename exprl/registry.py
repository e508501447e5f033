"""Registries: a component is a class registered once under the name YAML uses.

A registry imports exprl's own components of its family, and the plugins installed packages announce through the entry
point group `exprl.plugins`, the first time a name is looked up; nothing heavy is imported before.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import entry_points
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any, Generic, TypeVar

from exprl.errors import ConfigError, ExprlError, did_you_mean, first_line

logger = logging.getLogger(__name__)

T = TypeVar("T")
C = TypeVar("C", bound=type)


class Registry(Generic[T]):
    """The components of one family (`judge`, `slicer`, ...), by name.

    >>> fruits = Registry("fruit", "exprl.errors")
    >>> @fruits.register("apple")
    ... class Apple: "A pome."
    >>> fruits.get("apple").__name__
    'Apple'
    >>> fruits.get("aple")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    exprl.errors.ConfigError: Unknown fruit 'aple'. Did you mean 'apple'? Choose one of: apple...
    """

    def __init__(self, family: str, *modules: str, shorthand: tuple[str, str] | None = None) -> None:
        self.family = family
        self.shorthand = shorthand
        self._modules = modules
        self._classes: dict[str, type[T]] = {}

    def register(self, name: str) -> Callable[[C], C]:
        """Class decorator; raises `ConfigError` when another class has `name`, or this one lacks a method."""
        if not isinstance(name, str):
            raise ConfigError(f'{self.family}: {name!r} needs a name: @{self.family.upper()}S.register("...").')

        def decorate(cls: C) -> C:
            family = getattr(cls, "registered_family", "")
            if family not in ("", self.family):
                raise ConfigError(f"{self.family} {name!r} ({cls.__module__}.{cls.__qualname__}) is a {family}.")
            if inspect.isabstract(cls):
                missing = ", ".join(sorted(getattr(cls, "__abstractmethods__", ())))
                raise ConfigError(
                    f"{self.family} {name!r} ({cls.__module__}.{cls.__qualname__}) must define {missing}."
                )
            known = self._classes.get(name)
            if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
                raise ConfigError(
                    f"{self.family} {name!r} is already {known.__module__}.{known.__qualname__}; "
                    f"register {cls.__module__}.{cls.__qualname__} under another name."
                )
            self._classes[name] = cls
            cls.registered_name, cls.registered_family = name, self.family  # type: ignore[attr-defined]
            return cls

        return decorate

    def get(self, name: str) -> type[T]:
        """The class registered as `name`; raises `ConfigError` with the closest name and all choices."""
        self._load()
        if name not in self._classes:
            missing = "".join(f" The plugin {plugin} was left out ({why})." for plugin, why in broken_plugins.items())
            if _named:
                missing += f" Imported plugins: {', '.join(sorted(_named))}; of a package, what it imports itself."
            raise ConfigError(f"Unknown {self.family} {name!r}. {did_you_mean(name, self._classes)}{missing}")
        return self._classes[name]

    def __getitem__(self, name: str) -> type[T]:
        """`get(name)`."""
        return self.get(name)

    def __iter__(self) -> Iterator[str]:
        """`names()`, in order."""
        return iter(self.names())

    def __contains__(self, name: object) -> bool:
        """Whether a component is registered as `name`."""
        return name in self.names()

    def names(self) -> list[str]:
        """All registered names, sorted."""
        self._load()
        return sorted(self._classes)

    def _load(self) -> None:
        for module in self._modules:
            importlib.import_module(module)
        load_entry_points()

    def __repr__(self) -> str:
        return f"Registry({self.family}: {', '.join(self._classes)})"


SOURCES: Registry[Any] = Registry("source", "exprl.data", "exprl.chain.source", "exprl.worlds.sources")
"""Where problems come from: `ProblemSource`."""
PROMPTS: Registry[Any] = Registry("prompt", "exprl.text.prompts")
"""How a question becomes a prompt: `exprl.text.prompts.Prompting`."""
MODELS: Registry[Any] = Registry(
    "model", "exprl.models", "exprl.chain.model", "exprl.worlds.model", shorthand=("pretrained", "path")
)
"""What loads a policy or a judge's own model: `ModelProvider`."""
ENGINES: Registry[Any] = Registry("engine", "exprl.engines")
"""Who samples rollouts: `Engine`."""
VERIFIERS: Registry[Any] = Registry("verifier", "exprl.verifiers", "exprl.execution")
"""Whether a final answer is right: `Verifier`."""
SLICERS: Registry[Any] = Registry("slicer", "exprl.slicers")
"""How a rollout is cut into segments: `Slicer`."""
JUDGES: Registry[Any] = Registry("judge", "exprl.judges")
"""Who grades: `Judge`."""
BACKENDS: Registry[Any] = Registry("backend", "exprl.judges.backends")
"""Who runs a judge's model: `exprl.judges.backends.base.JudgeBackend`."""
REWARDS: Registry[Any] = Registry("reward", "exprl.rewards")
"""What a rollout or a segment is worth: `Reward`."""
SANDBOXES: Registry[Any] = Registry("sandbox", "exprl.execution")
"""Where programs are run: `exprl.execution.sandboxes.Sandbox`."""
ADVANTAGES: Registry[Any] = Registry("advantage", "exprl.advantages")
"""How rewards become advantages: `Advantage`."""
OBJECTIVES: Registry[Any] = Registry("objective", "exprl.objectives")
"""The policy loss: `Objective`."""
CORRECTIONS: Registry[Any] = Registry("correction", "exprl.corrections")
"""What makes up for an engine that samples with other log-probs: `Correction`."""
BEHAVIOURS: Registry[Any] = Registry("behaviour", "exprl.evaluation.detectors")
"""Which behaviours a trace shows: `exprl.evaluation.detectors.BehaviourDetector`."""
PERTURBATIONS: Registry[Any] = Registry("perturbation", "exprl.evaluation.perturbations")
"""How a response is changed to try a judge: `exprl.evaluation.perturbations.Perturbation`."""
METHODS: Registry[Any] = Registry("method", "exprl.training.methods")
"""What a training step does: `exprl.training.methods`."""

FAMILIES: tuple[Registry[Any], ...] = (
    SOURCES,
    PROMPTS,
    MODELS,
    ENGINES,
    VERIFIERS,
    SLICERS,
    JUDGES,
    BACKENDS,
    REWARDS,
    SANDBOXES,
    ADVANTAGES,
    OBJECTIVES,
    CORRECTIONS,
    BEHAVIOURS,
    PERTURBATIONS,
    METHODS,
)


broken_plugins: dict[str, str] = {}
"""Announced plugins that could not be imported, each with its error: what they would have registered is unknown."""
_entry_points_loaded = False


def load_entry_points() -> None:
    """Import what installed packages announce under `exprl.plugins`, once.

    One that fails is warned about and left out: an experiment that does not use it must not fail with it.
    """
    global _entry_points_loaded
    if _entry_points_loaded:
        return
    _entry_points_loaded = True  # set first: a plugin may look up a component while it is imported
    for entry in entry_points(group="exprl.plugins"):
        try:
            entry.load()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a plugin may raise whatever it likes
            package = f"package {entry.dist.name}" if entry.dist is not None else "an installed package"
            name = f"{entry.name!r} ({entry.value}) of {package}"
            broken_plugins[name] = f"{type(error).__name__}: {error}"
            logger.warning("the exprl plugin %s is left out: %s", name, broken_plugins[name])


_named: set[str] = set()


def named_plugins() -> frozenset[str]:
    """The plugins that were imported so far, each because somebody named it who may."""
    return frozenset(_named)


class WorkingDirectory(MetaPathFinder):
    """Finds the plugins that somebody named in the folder that exprl was started from, and nothing else there.

    On `sys.path` the folder would be searched for good by whoever imports, so a file in it would be taken for each
    optional library that is not installed and that some library tries for. It is asked last: what is installed wins.
    A named package brings its own modules; a module beside a plugin is not found, unless it is named as well.
    """

    def __init__(self) -> None:
        self._folders: dict[str, str] = {}

    def add(self, module: str) -> None:
        """Look for the package that `module` lies in, or for itself, in what is the working directory now."""
        self._folders[module.partition(".")[0]] = str(Path.cwd())
        if self not in sys.meta_path:
            sys.meta_path.append(self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The place of a named plugin; None for all else, so also for modules within packages, which have a path."""
        folder = self._folders.get(fullname) if path is None else None
        return PathFinder.find_spec(fullname, [folder]) if folder is not None else None


_working_directory = WorkingDirectory()


def import_plugins(modules: Sequence[str]) -> None:
    """Import the modules named under `plugins:` so that their components register; raises `ConfigError`.

    Only the user may name them. They may lie in the working directory: see `WorkingDirectory`.
    """
    for module in modules:
        _working_directory.add(module)
    for module in modules:
        import_named(module, "plugins")
        _named.add(module)


def import_named(module: str, key: str) -> ModuleType:
    """Import a module that the user names under `key`, also from the working directory; raises `ConfigError`."""
    _working_directory.add(module)
    try:
        return importlib.import_module(module)
    except ExprlError as error:  # it is there, but what it registers is not right
        raise ConfigError(f"{key}: {module}: {error}") from error
    except (Exception, SystemExit) as error:  # a plugin is anybody's code
        raise ConfigError(
            f"{key}: cannot import {module!r} ({first_line(error)}). {_as_module(module)}What is installed, "
            f"PYTHONPATH and the folder that exprl is started from, {Path.cwd()}, are searched, not that of a YAML; "
            "the folder for named plugins alone: what they share belongs in a package with them. For one elsewhere set "
            "PYTHONPATH=FOLDER."
        ) from error


def _as_module(given: str) -> str:
    """What to write in place of a file.

    >>> _as_module("my_lab/mine.py"), _as_module("./single.py"), _as_module("/home/me/lab.py"), _as_module("my_lab")
    ('Write my_lab.mine. ', 'Write single. ', 'Write lab, with PYTHONPATH=/home/me. ', '')
    """
    path = PurePosixPath(given)
    if path.suffix != ".py" and len(path.parts) < 2:
        return ""
    file = path.with_suffix("") if path.suffix == ".py" else path
    if path.is_absolute() or ".." in path.parts:
        return f"Write {file.name}, with PYTHONPATH={path.parent}. "
    return f"Write {'.'.join(file.parts)}. "
