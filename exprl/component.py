"""What every registered component shares: typed options, the parts it is built of, and what it is given by a run."""

from __future__ import annotations

import inspect
from abc import ABC
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import MISSING, Field, fields
from types import MappingProxyType
from typing import Any, ClassVar, Self

from exprl.config.fields import (
    Choice,
    choose,
    choose_by,
    choose_each,
    chosen_by,
    given,
    option,
    required_choice,
    wrapped,
)
from exprl.config.options import Options, check_given, given_to, parts_of
from exprl.config.validate import checked
from exprl.errors import ConfigError, ContractError
from exprl.registry import Registry
from exprl.resources import Resources
from exprl.types import Problem

EMPTY: Mapping[str, Any] = MappingProxyType({})

__all__ = [
    "Choice",
    "Component",
    "Options",
    "Stateful",
    "checked",
    "choose",
    "choose_by",
    "choose_each",
    "given",
    "option",
    "required_choice",
    "title_of",
    "wrapped",
]


class Component(Options, ABC):
    """Base of rewards, judges, slicers, engines, sources, verifiers, advantages and objectives.

    A subclass declares its options as fields, `name: type = option(...)`; other components it is built of by `choose`,
    `required_choice` or `wrapped`; and by `given` what it takes from the run, such as the policy. Each is a keyword of
    the constructor and an attribute of the object. What is derived from them is made in `setup`. The same class is
    built from YAML by `from_config`, and values are checked alike (`ConfigError`).
    """

    registered_name: ClassVar[str] = ""
    registered_family: ClassVar[str] = ""

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if "registered_name" not in vars(cls):
            cls.registered_name = ""  # a base's is that of the base

    def __init__(self, *positional: object, **options: Any) -> None:
        cls = type(self)
        if positional:
            raise TypeError(f"{cls.__name__} takes keywords alone: {cls.__name__}{inspect.signature(cls)}")
        others = given_to(cls)
        handed = {n: value for n, value in options.items() if n in others or _is_handed(_metadata(cls, n), value)}
        chosen = {name: _choice(cls, name, value) for name, value in options.items() if name not in others}
        self._build(self._checked(chosen), handed, Resources())

    @classmethod
    def from_config(cls, config: Any, resources: Resources) -> Self:
        """Build from validated options, with the parts they name and with what the run gives."""
        if cls.__init__ is not Component.__init__:
            raise ContractError("its constructor is its own: define `setup` in its place.", giver=_title(cls))
        if not isinstance(config, cls.Config):
            raise ConfigError(f"{_title(cls)}: expected its own options, but got a {type(config).__qualname__}.")
        return cls._made(config, {}, resources)

    @classmethod
    def made(cls, config: Any, **handed: Any) -> Self:
        """With options that were validated as a whole, and these parts."""
        return cls._made(config, handed, Resources())

    def setup(self) -> None:
        """Called once, when options and parts are in place: what is derived from them is made here."""

    def part(self, name: str, handed: Any, resources: Resources) -> Any:
        """The component of option `name`: the one handed over, or else the one that its option chooses, built.

        Of an option that holds several the components by their names.
        """
        choice = getattr(self.config, name)
        if isinstance(choice, dict):
            own = {key: one for key, one in (handed or {}).items() if isinstance(one, Component)}
            return {key: own[key] if key in own else one.build(resources) for key, one in choice.items()}
        return handed if handed is not None or choice is None else choice.build(resources)

    @classmethod
    def preflight(cls, config: Any) -> None:
        """Raise an `ExprlError` for what `config` names and this machine lacks: a file, a folder, a package.

        It is asked before any model is loaded, so it looks and loads nothing. Components within `config` are asked
        themselves.
        """
        del config

    @classmethod
    def check_fit(cls, config: Any, experiment: Any) -> None:
        """Raise a `ConfigError` where `config` asks what does not go with the other parts of the run.

        It is asked after `preflight`, loads nothing either, and is given the whole `exprl.experiment.Experiment`.
        """
        del config, experiment

    @classmethod
    def check_data(cls, config: Any, problems: Sequence[Problem], resources: Resources) -> None:
        """Raise an `ExprlError`, naming the first problem that lacks what `config` needs, before any model is loaded.

        Whoever defines it asks the components within `config` by `super()`.

        Args:
            config: the options.
            problems: what it will be asked about.
            resources: what there is of a run without its model: verifier, problems, seed.
        """
        for choice in chosen_by(config):
            choice.cls.check_data(choice.config, problems, resources)

    @classmethod
    def file_texts(cls, config: Any) -> dict[str, str]:
        """What is in the files that `config` names and that shapes a run, by what they are and their paths.

        A run goes on with the same, and is refused before any model is loaded. Of what a file hides from the policy
        this has digests.
        """
        return {
            name: text for choice in chosen_by(config) for name, text in choice.cls.file_texts(choice.config).items()
        }

    @classmethod
    def _made(cls, config: Any, handed: Mapping[str, Any], resources: Resources) -> Self:
        component = cls.__new__(cls)
        component._build(config, handed, resources)
        return component

    def _build(self, config: Any, handed: Mapping[str, Any], resources: Resources) -> None:
        self._assemble(config)
        self._parts: dict[str, Any] = {}
        cls, others = type(self), given_to(type(self))
        if unknown := handed.keys() - others.keys() - set(parts_of(cls)):
            raise TypeError(f"{cls.__name__}: there is nothing called {sorted(unknown)[0]!r} to hand over.")
        for name in handed.keys() & others.keys():
            check_given(cls, name, handed[name])
        for name, field in others.items():
            self._parts[name] = handed[name] if name in handed else _taken(cls, name, field, resources)
        self._make: Callable[[str], Any] = lambda name: self.part(name, handed.get(name), resources)
        for name in parts_of(cls):
            self._built(name)
        del self._make
        self.setup()

    def _built(self, name: str) -> Any:
        """A part, or what was given; a part is built when it is first asked for, by another part's building too."""
        if name not in self.__dict__.get("_parts", {}):
            if "_make" not in self.__dict__:
                raise ContractError("its constructor must call super().__init__().", giver=type(self).__name__)
            self._parts[name] = self._make(name)
        return self._parts[name]


class Stateful(Component):
    """A component with a life in a run: what it does not do itself of this, the components it is built of do."""

    overlaps: ClassVar[bool] = False
    """Whether it can work in one thread while the policy updates in another, as far as it is not its parts that do: it
    computes with no model and draws no random numbers in this process."""

    def prepare(self) -> None:
        """Called on every rank when a run starts, with all weights in place."""
        for part in self.lasting().values():
            part.prepare()

    def sync(self) -> None:
        """Called after every policy update: who has live weights, or keeps what they said, reacts here."""
        for part in self.lasting().values():
            part.sync()

    def close(self) -> None:
        """Free what is held; called when a run ends, also by an error. One that fails leaves no other open."""
        with ExitStack() as stack:
            for part in self.lasting().values():
                stack.callback(part.close)

    def texts(self) -> dict[str, str]:
        """The texts that shape its values beside its config, by what they are: a run goes on with the same."""
        return {name: text for part in self.lasting().values() for name, text in part.texts().items()}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of it; it must pickle."""
        states = {name: part.state_dict() for name, part in self.lasting().items()}
        return {name: state for name, state in states.items() if state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        for name, part in self.lasting().items():
            if name in state:
                part.load_state_dict(state[name])

    def lasting(self) -> dict[str, Stateful]:
        """The parts with a life, each once; one of several in an option has its name behind the option's and a dot."""
        parts = {id(part): (name, part) for name, part in self._each_part()}
        return {name: part for name, part in parts.values() if isinstance(part, Stateful)}

    def _each_part(self) -> Iterator[tuple[str, Any]]:
        for name in parts_of(type(self)):
            built = self._built(name)
            if isinstance(built, dict):
                yield from ((f"{name}.{key}", part) for key, part in built.items())
            else:
                yield name, built


def title_of(component: Component) -> str:
    """What messages call it: its registered name, or its class's, in quotation marks."""
    return repr(component.registered_name or type(component).__name__)


def _title(cls: type[Component]) -> str:
    return f"{cls.registered_family} {cls.registered_name!r}" if cls.registered_name else cls.__name__


def _taken(cls: type[Component], name: str, field: Field[Any], resources: Resources) -> Any:
    take = field.metadata["given"]
    if take is None and field.default is MISSING:
        raise TypeError(f"{cls.__name__}: missing {name!r} ({field.metadata['help']})")
    return field.default if take is None else take(resources, _title(cls))


def _metadata(owner: type[Component], name: str) -> Mapping[str, Any]:
    return next((field.metadata for field in fields(owner.Config) if field.name == name), EMPTY)


def _is_handed(metadata: Mapping[str, Any], value: Any) -> bool:
    """Whether it is a component, or holds one for an option that holds several."""
    if metadata.get("each") and isinstance(value, Mapping):
        return any(isinstance(one, Component) for one in value.values())
    return isinstance(value, Component)


def _choice(owner: type[Component], name: str, value: Any) -> Any:
    """What the option of a part holds: of a component handed over, the choice that would build its like."""
    metadata = _metadata(owner, name)
    registry = metadata.get("registry")
    if registry is None:
        return value
    if metadata.get("each") and isinstance(value, Mapping):
        return {str(key): _chosen(registry, f"{name}.{key}", one) for key, one in value.items()}
    return _chosen(registry, name, value)


def _chosen(registry: Registry[Any], name: str, value: Any) -> Any:
    if isinstance(value, type) and issubclass(value, Component):
        raise ConfigError(
            f"{name}: expected an object, but got the class {value.__name__}. Call it: {value.__name__}()."
        )
    if isinstance(value, Component):
        if "config" not in value.__dict__:
            raise ContractError("its constructor must call super().__init__().", giver=type(value).__name__)
        return Choice(name=value.registered_name or type(value).__name__, config=value.config, cls=type(value))
    if not isinstance(value, str):
        return value
    if registry.shorthand is None:
        return {"name": value}  # as a signature shows a default
    component, option_name = registry.shorthand
    if not value:
        raise ConfigError(f"{name}: must not be empty.")
    return Choice.of(registry, component, **{option_name: value})
