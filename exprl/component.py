"""What every registered component shares: a nested typed `Config`, and being built from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from exprl.registry import Registry
    from exprl.resources import Resources


def option(default: Any = MISSING, help: str = "") -> Any:  # noqa: A002 - argparse's word for it
    """A Config field: its one default, and the line that `exprl list` and `exprl config` show for it.

    Without a default the option is required.
    """
    metadata = {"help": help}
    if isinstance(default, (list, dict)):
        kind, items = type(default), default
        return field(default_factory=lambda: kind(items), metadata=metadata)
    if default is MISSING:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)


class Component:
    """Base of rewards, judges, slicers, engines, sources, verifiers, advantages and objectives.

    A subclass declares its options as a keyword-only dataclass `Config` and takes it as the first argument of
    `__init__`; what it needs from the run (a tokenizer, a model) arrives in `from_config` through `Resources`.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """No options."""

    registered_name: str = ""

    def __init__(self, config: Any = None) -> None:
        self.config: Any = config if config is not None else self.Config()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.config!r})"

    @classmethod
    def from_config(cls, config: Any, resources: Resources) -> Self:
        """Build from validated options; override when the component needs something from `resources`."""
        del resources
        return cls(config)


@dataclass(frozen=True)
class Choice:
    """A component picked by name with its validated options: what a YAML node `{name: ..., ...}` becomes."""

    name: str
    config: Any
    cls: type[Any]

    def build(self, resources: Resources) -> Any:
        """The component itself."""
        return self.cls.from_config(self.config, resources)


def choose(registry: Registry[Any], name: str | None, help: str = "", **options: Any) -> Any:  # noqa: A002
    """A Config field that holds a component of `registry`: by default `name` with `options`, or None.

    Annotate it `Annotated[Choice, registry]` (`Annotated[Choice, registry] | None` where `name` is None). The default
    is resolved when a config is made, so that declaring the field imports no component.
    """
    if name is None:
        return field(default=None, metadata={"help": help, "registry": registry})
    node = {"name": name, **options}
    return field(
        default_factory=lambda: _default_choice(registry, node),
        metadata={"help": help, "registry": registry, "default_node": node},
    )


def required_choice(registry: Registry[Any], help: str = "") -> Any:  # noqa: A002
    """A Config field that holds a component of `registry` and that YAML must name.

    In code it may be left out where the component is handed over built (`ProcessReward(slicer=..., judge=...)`).
    """
    return field(default=None, metadata={"help": help, "registry": registry, "required": True})


def _default_choice(registry: Registry[Any], node: Mapping[str, Any]) -> Choice:
    from exprl.config import validate_choice

    return validate_choice(registry, node, path=registry.family)
