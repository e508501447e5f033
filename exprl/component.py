"""What every registered component shares: a nested typed `Config`, and being built from it."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from typing import Any, Self

from exprl.config.fields import Choice, choose, choose_by, option, required_choice, wrapped
from exprl.config.validate import checked
from exprl.errors import ConfigError

__all__ = ["Choice", "Component", "checked", "choose", "choose_by", "option", "required_choice", "title_of", "wrapped"]


class Component(ABC):  # noqa: B024 - so that abstract methods of the families hold
    """Base of rewards, judges, slicers, engines, sources, verifiers, advantages and objectives.

    A subclass declares its options as a keyword-only dataclass `Config` and takes it as the first argument of
    `__init__`; what it needs from the run (a tokenizer, a model) arrives in `from_config` through `Resources`. Values
    of a `Config` are checked when it is made, in code too, and no component takes another's (`ConfigError`).
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """No options."""

    registered_name: str = ""

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        checked(cls.Config)

    def __init__(self, config: Any = None) -> None:
        if config is not None and not isinstance(config, self.Config):
            given = type(config).__qualname__
            raise ConfigError(
                f"{type(self).__name__}: expected a {self.Config.__qualname__}, but got a {given}. "
                f"Make one: {self.Config.__qualname__}(...)."
            )
        self.config: Any = config if config is not None else self.Config()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.config!r})"

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
    def from_config(cls, config: Any, resources: Any) -> Self:
        """Build from validated options; override when the component needs something from the run.

        `resources` are `exprl.resources.Resources`, which stands above all components and is not imported here.
        """
        del resources
        return cls(config)


def title_of(component: Component) -> str:
    """What messages call it: its registered name, or its class's, in quotation marks."""
    return repr(component.registered_name or type(component).__name__)
