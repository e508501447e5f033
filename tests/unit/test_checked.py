"""One check for YAML and code: what a Config refuses in a file it refuses when made by hand, in the same words."""

import math
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import pytest

from exprl.advantages import SegmentDelta
from exprl.component import Choice, Component, checked, choose, option, required_choice
from exprl.config import validate
from exprl.config.fields import describe
from exprl.config.ranges import Form, NonEmpty, PositiveInt, Range, Seed, Share
from exprl.errors import ConfigError
from exprl.objectives import Clipped
from exprl.registry import JUDGES, SLICERS, Registry
from exprl.rewards import ProcessReward
from exprl.slicers import DelimiterSlicer, Slicer


@checked
@dataclass(frozen=True, kw_only=True)
class Inner:
    depth: PositiveInt = option(default=1, help="how deep")


@checked
@dataclass(frozen=True, kw_only=True)
class Schema:
    share: Share = option(default=0.5, help="part of all")
    seed: Seed = option(default=0, help="seed")
    size: Annotated[int, Range(ge=2, lt=10)] | None = option(default=None, help="how many")
    rate: Annotated[float, Range(gt=0)] = option(default=1.0, help="a factor")
    devices: PositiveInt | Literal["auto"] = option(default="auto", help="on what")
    betas: tuple[Annotated[float, Range(ge=0, lt=1)], Annotated[float, Range(ge=0, lt=1)]] = option(
        default=(0.9, 0.99), help="two"
    )
    stop: list[NonEmpty] = option(default=[], help="texts")
    letters: Annotated[str, Form("[A-Z]+", "capital letters")] = option(default="AB", help="choices")
    flag: bool = option(default=False, help="whether")
    inner: Inner = option(default=Inner(), help="nested")
    slicer: Annotated[Choice, SLICERS] = choose(SLICERS, default="delimiter", help="a component")
    maybe: Annotated[Choice, SLICERS] | None = choose(SLICERS, default=None, help="a component or none")
    judge: Annotated[Choice, JUDGES] = required_choice(JUDGES, help="named in YAML")


JUDGE = {"name": "reference_steps"}

REFUSED: list[tuple[str, Any, str]] = [
    ("share", 1.5, "share: must be in [0, 1], but got 1.5."),
    ("share", math.nan, "share: must be a finite number, but got nan."),
    ("share", 10**400, "share: must be a finite number, but got "),
    ("share", "half", "share: expected float, but got 'half' (str)."),
    ("seed", -1, "seed: must be in [0, 4294967295], but got -1."),
    ("seed", 2**32, "seed: must be in [0, 4294967295], but got 4294967296."),
    ("seed", 10**5000, "seed: must be at most 9223372036854775807 in size, but got a int too large to show."),
    ("seed", True, "seed: expected int, but got True (bool)."),
    ("size", 1, "size: must be in [2, 10), but got 1."),
    ("rate", math.inf, "rate: must be a finite number, but got inf."),
    ("rate", 0.0, "rate: must be above 0, but got 0.0."),
    ("devices", 0, "devices: must be in [1, 1000000000], but got 0."),
    ("devices", "all", "devices: expected int or 'auto', but got 'all' (str)."),
    ("betas", [1, 0.9], "betas[0]: must be in [0, 1), but got 1.0."),
    ("betas", [0.9], "betas: expected 2 values, but got [0.9]."),
    ("stop", ["\n", ""], "stop[1]: must be text that is not empty, but got ''."),
    ("stop", ["\ud800"], "stop[0]: must be text without NUL and lone surrogates, but got '\\ud800'."),
    ("letters", "Ab", "letters: must be capital letters, but got 'Ab'."),
    ("flag", "yes", "flag: expected true or false, but got 'yes' (str)."),
    ("inner", {"depth": 0}, "inner.depth: must be in [1, 1000000000], but got 0."),
    ("inner", {"death": 1}, "inner.death: unknown option. Did you mean 'depth'?"),
    ("inner", 3, "inner: expected options, but got 3 (int)."),
    ("slicer", "delimiter", "slicer: expected a slicer as {name: ..., options}, but got 'delimiter'."),
    ("slicer", {"name": "delimiter", "position": "middle"}, "slicer.position: got 'middle'."),
    (
        "slicer",
        Choice.of(JUDGES, "reference_steps"),
        "slicer: expected a slicer, but got ReferenceStepsJudge ('reference_steps').",
    ),
]


@pytest.mark.parametrize(("key", "value", "message"), REFUSED, ids=[message[:40] for _, _, message in REFUSED])
def test_yaml_and_code_refuse_in_the_same_words(key: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as in_code:
        Schema(**{"judge": {"name": "reference_steps"}, key: value})
    with pytest.raises(ConfigError) as in_yaml:
        validate(Schema, {"judge": {"name": "reference_steps"}, key: value})
    assert str(in_code.value) == str(in_yaml.value)
    assert str(in_code.value).startswith(message)


@pytest.mark.parametrize(
    ("config", "option", "value"),
    [
        (SegmentDelta.Config, "first", "grp"),
        (ProcessReward.Config, "show", "prefixx"),
        (DelimiterSlicer.Config, "position", "middle"),
        (Clipped.Config, "kl", "k9"),
        (Clipped.Config, "clip_low", "0.2"),
    ],
)
def test_a_components_own_config_is_checked_in_code(config: type[Any], option: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{option}: .*got '{value}'"):
        config(**{"judge": JUDGE, option: value} if config is ProcessReward.Config else {option: value})


def test_values_are_converted_in_code_as_from_yaml() -> None:
    made = Schema(judge=JUDGE, share=1, betas=[0, 0.5], size=None, slicer={"name": "token_window"}, inner={"depth": 3})
    assert (made.share, made.betas, made.inner) == (1.0, (0.0, 0.5), Inner(depth=3))
    assert isinstance(made.share, float)
    assert made.slicer == Choice.of(SLICERS, "token_window")


def test_a_copy_with_other_values_is_checked() -> None:
    with pytest.raises(ConfigError, match=r"^rate: must be above 0"):
        replace(Schema(judge=JUDGE), rate=-1.0)


def test_a_required_component_is_required_everywhere() -> None:
    for judge in ({}, {"judge": None}):
        with pytest.raises(ConfigError, match=r"^judge: (expected a judge|required)"):
            validate(Schema, judge)
        with pytest.raises(ConfigError, match=r"^judge: (expected a judge|required)"):
            Schema(**judge)


def test_a_config_error_is_a_value_error() -> None:
    """What a library's user catches around a wrong argument."""
    with pytest.raises(ValueError, match="rate"):
        Schema(judge=JUDGE, rate=-1)


def test_a_plugins_config_is_checked_without_asking_for_it() -> None:
    class Cut(Component):
        size: PositiveInt = option(default=3, help="tokens")
        seen: int = option(default=0, help="set by the check of several options")

        @classmethod
        def check_options(cls, config: Any) -> None:
            if config.seen > config.size:  # may rely on both being numbers
                raise ConfigError(f"seen: must be at most size ({config.size}), but got {config.seen}.")

    with pytest.raises(ConfigError, match=r"^size: expected int, but got '3' \(str\)"):
        Cut(size="3")
    with pytest.raises(ConfigError, match=r"^seen: must be at most size \(3\), but got 4"):
        Cut(seen=4)
    with pytest.raises(ConfigError, match=r"^x\.seen: must be at most size"):
        validate(Cut.Config, {"seen": 4}, "x")


class TestAbstract:
    def test_a_family_cannot_be_made(self) -> None:
        with pytest.raises(TypeError, match="abstract method"):
            Slicer()  # type: ignore[abstract]

    def test_a_class_that_lacks_a_method_is_not_registered(self) -> None:
        class Lazy(Slicer):
            """Slices nothing."""

        with pytest.raises(ConfigError, match=r"^slicer 'lazy' \(.*Lazy\) must define slice\.$"):
            SLICERS.register("lazy")(Lazy)
        assert "lazy" not in SLICERS.names()


def test_what_a_listing_says() -> None:
    hints = {
        "share": "float in [0, 1]",
        "size": "int in [2, 10) or null",
        "devices": "int in [1, 1000000000] or 'auto'",
    }
    fields = {
        "share": Share,
        "size": Annotated[int, Range(ge=2, lt=10)] | None,
        "devices": PositiveInt | Literal["auto"],
    }
    assert {key: describe(annotation, rules=True) for key, annotation in fields.items()} == hints
    assert describe(Annotated[Choice, Registry("fruit", "exprl.errors")]) == "a fruit"
