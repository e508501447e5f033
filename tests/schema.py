"""A small schema with components of its own, so that no shipped one is needed."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest

from exprl.component import Choice, Component, choose, option, required_choice
from exprl.config import from_layers
from exprl.errors import ConfigError
from exprl.registry import Registry

CUTTERS: Registry[Any] = Registry("cutter", "exprl.errors")
SCORERS: Registry[Any] = Registry("scorer", "exprl.errors")


@CUTTERS.register("window")
class Window(Component):
    size: int = option(default=512, help="tokens")

    @classmethod
    def check_options(cls, config: Any) -> None:
        if config.size < 1:
            raise ValueError(f"size must be at least 1, but got {config.size}")


@CUTTERS.register("lines")
class Lines(Component):
    mark: str = option(default="###", help="ends a segment")


@SCORERS.register("whole")
class Whole(Component):
    scale: float = option(default=1.0, help="factor")
    style: Literal["smooth", "clipped"] = option(default="smooth", help="normalisation")


@SCORERS.register("parts")
class Parts(Component):
    scale: float = option(default=1.0, help="factor")
    cutter: Annotated[Choice, CUTTERS] = choose(CUTTERS, default="lines", help="how to cut")


@SCORERS.register("routed")
class Routed(Component):
    routes: dict[str, Annotated[Choice, SCORERS]] = option(default={}, help="scorer of each domain")


@SCORERS.register("strict")
class Strict(Component):
    inner: Annotated[Choice, CUTTERS] = required_choice(CUTTERS, help="how to cut")


@dataclass(frozen=True, kw_only=True)
class Length:
    steps: int = option(default=10, help="how long")
    devices: int | Literal["auto"] = option(default="auto", help="on what")

    def __post_init__(self) -> None:
        if self.steps == 13:
            raise ConfigError("steps: 13 is unlucky.")


@dataclass(frozen=True, kw_only=True)
class Schema:
    path: str = option(help="where the data lies")
    lr: float = option(default=1e-6, help="learning rate")
    tags: list[str] = option(default=[], help="labels")
    pair: tuple[float, float] = option(default=(0.9, 0.95), help="two numbers")
    many: tuple[int, ...] = option(default=(1,), help="numbers")
    note: str | None = option(default=None, help="anything")
    plugins: list[str] = option(default=[], help="modules")
    length: Length = option(default=Length(), help="how long")
    scorer: Annotated[Choice, SCORERS] = choose(SCORERS, default="whole", help="what a rollout is worth")
    extra: Annotated[Choice, CUTTERS] | None = choose(CUTTERS, default=None, help="optional")
    deep: Annotated[Choice, SCORERS] = choose(
        SCORERS, default="parts", help="nested default", cutter={"name": "window", "size": 7}
    )


def build(*layers: dict[str, Any]) -> Schema:
    return from_layers(Schema, [{"path": "p"}, *layers])


def error_of(*layers: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        build(*layers)
    return str(caught.value)
