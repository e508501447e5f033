"""Components made in code: options as typed keywords, other components as objects, one life in a run."""

from __future__ import annotations

import copy
import inspect
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from exprl.component import Choice, Component, Options, Stateful, choose, given, option, required_choice
from exprl.config.ranges import PositiveInt
from exprl.config.validate import validate_choice
from exprl.corrections import IcePop
from exprl.errors import ConfigError, ContractError
from exprl.judges import Judge, ReferenceStepsJudge, WrongReferenceJudge
from exprl.objectives import Clipped
from exprl.registry import FAMILIES, JUDGES, REWARDS, Registry
from exprl.resources import Resources
from exprl.rewards import ByDomainReward, ExecutionReward, OutcomeReward, ProcessReward, SparseReward
from exprl.rewards.base import Reward
from exprl.slicers import DelimiterSlicer, TokenWindowSlicer
from exprl.slicers.base import Slicer
from exprl.types import Judgement
from exprl.verifiers import ExactVerifier

ROOT = Path(__file__).parents[2]
CUPS: Registry[Any] = Registry("cup", "exprl.errors")


@CUPS.register("paper")
class Paper(Component):
    """A cup."""

    size: PositiveInt = option(default=3, help="how large")
    colour: str = option(default="white", help="which")

    def setup(self) -> None:
        self.volume = self.size**3


@CUPS.register("tray")
class Tray(Component):
    """Cups, and who carries them."""

    cup: Component = choose(CUPS, default="paper", help="what stands on it", size=2)
    other: Component | None = choose(CUPS, default=None, help="beside it")
    hands: int = given(lambda run, who: run.seed, default=2, help="of who carries it")
    name: str = given(default="tray", help="what it is called")


def test_yaml_and_code_make_the_same() -> None:
    node = {
        "name": "process",
        "judge": {"name": "reference_steps", "strict": False},
        "slicer": {"name": "token_window"},
    }
    of_yaml = validate_choice(REWARDS, node, "reward").build(Resources())
    of_code = ProcessReward(judge=ReferenceStepsJudge(strict=False), slicer=TokenWindowSlicer())
    assert of_code.config == of_yaml.config
    assert repr(of_code) == repr(of_yaml)
    assert "judge=ReferenceStepsJudge(strict=False)" in repr(of_code)


def test_a_part_that_is_left_out_is_the_default() -> None:
    assert isinstance(ProcessReward(judge=ReferenceStepsJudge()).slicer, DelimiterSlicer)
    tray = Tray()
    assert (tray.cup.size, tray.cup.volume, tray.other) == (2, 8, None)  # type: ignore[attr-defined]
    assert Tray(cup=Paper(size=4)).cup.volume == 64  # type: ignore[attr-defined]
    assert Tray(cup={"name": "paper"}).cup.size == 2  # type: ignore[attr-defined, arg-type]


def test_what_is_given_comes_from_the_run_or_as_a_keyword() -> None:
    assert (Tray(hands=3).hands, Tray().hands) == (3, 0)
    of_run = Choice.of(CUPS, "tray").build(Resources(seed=7))
    assert (of_run.hands, of_run.name) == (7, "tray")
    with pytest.raises(ConfigError, match=r"^reward 'sparse' needs a verifier: .*pass verifier="):
        SparseReward()
    assert SparseReward(verifier=ExactVerifier()).verifier.pattern


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DelimiterSlicer(delimiter=3), r"^delimiter: expected str, but got 3 \(int\)"),
        (lambda: Paper(size=0), r"^size: must be in \[1"),
        (lambda: OutcomeReward(judge=DelimiterSlicer()), r"^judge: expected a judge, but got DelimiterSlicer"),
        (lambda: OutcomeReward(judge=object()), r"^judge: expected a judge as \{name"),
        (lambda: OutcomeReward(judge="reference_step"), r"^judge.name: .*Did you mean 'reference_steps'"),
        (lambda: OutcomeReward(judge="delimiter"), r"^judge.name: Unknown judge 'delimiter'"),
        (lambda: ByDomainReward(domains={"math": "outcome"}), r"^domains.math.judge: required, but missing"),
        (lambda: OutcomeReward(), r"^judge: required, but missing"),
        (lambda: TokenWindowSlicer(window=2, min_last=3), r"^min_last: must be at most window"),
    ],
)
def test_bad_values_are_told_as_in_yaml(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_name_is_the_component_with_its_defaults_wherever_a_part_is_chosen() -> None:
    """As signatures show defaults: slicer='delimiter'."""
    judge = ReferenceStepsJudge()
    assert repr(ProcessReward(judge="reference_steps", slicer="delimiter")) == repr(ProcessReward(judge=judge))
    assert type(ProcessReward(judge=judge, slicer="token_window").slicer) is TokenWindowSlicer
    mixed = ByDomainReward(domains={"code": "execution"}, default=OutcomeReward(judge="reference_steps"))
    assert type(mixed.domains["code"]) is ExecutionReward
    assert type(Clipped(correction="icepop").correction) is IcePop
    default = inspect.signature(Tray).parameters["cup"].default
    assert (default, Tray(cup=default).cup.size, Tray(other=default).other.size) == ("paper", 2, 3)


def test_unknown_and_positional_arguments_say_what_there_is() -> None:
    with pytest.raises(TypeError, match=r"OutcomeReward: unknown option 'juge'. Did you mean 'judge'"):
        OutcomeReward(juge=ReferenceStepsJudge())  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"DelimiterSlicer takes keywords alone: DelimiterSlicer\(\*, delimiter"):
        DelimiterSlicer("###")  # type: ignore[misc]


def test_options_do_not_change_and_objects_can_be_copied() -> None:
    slicer = DelimiterSlicer(delimiter="%")
    with pytest.raises(AttributeError, match="set by the constructor"):
        slicer.delimiter = "x"  # type: ignore[misc]
    for other in (copy.deepcopy(slicer), pickle.loads(pickle.dumps(slicer))):
        assert other.config == slicer.config
        assert other.delimiter == "%"
    assert pickle.loads(pickle.dumps(slicer.config)) == slicer.config


@pytest.mark.parametrize("registry", FAMILIES, ids=lambda registry: registry.family)
def test_every_component_shows_its_options_to_whoever_asks(registry: Registry[Any]) -> None:
    for name in registry.names():
        component = registry.get(name)
        shown = inspect.signature(component).parameters
        assert set(inspect.signature(component.Config).parameters) <= set(shown), name
        assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in shown.values()), name


class TestDeclaring:
    def test_a_nested_config_says_what_to_write(self) -> None:
        with pytest.raises(ContractError, match=r"Old: options are fields of the class itself.*check_options"):

            class Old(Slicer):
                @dataclass(frozen=True, kw_only=True)
                class Config:
                    parts: int = 2

    def test_a_type_alone_is_no_option(self) -> None:
        with pytest.raises(ContractError, match=r"'parts' is annotated and no option: write `parts: type = option"):

            class Plain(Slicer):
                parts: int = 2

    def test_an_option_has_a_type(self) -> None:
        with pytest.raises(ContractError, match=r"option 'parts' has no type"):

            class Untyped(Slicer):
                parts = option(default=2)

    @pytest.mark.parametrize("name", ["judge", "setup", "from_config", "close"])
    def test_an_option_hides_no_method(self, name: str) -> None:
        body = {"__annotations__": {name: int}, name: option(default=2), "__module__": __name__}
        with pytest.raises(ContractError, match=f"option '{name}' has the name of something else"):
            type("Hiding", (Judge,), body)

    def test_nothing_else_hides_an_option(self) -> None:
        with pytest.raises(ContractError, match=r"'window' hides the option of that name"):

            class Fixed(TokenWindowSlicer):
                @property
                def window(self) -> int:  # type: ignore[override]
                    return 3

    def test_a_constructor_of_its_own_is_shown_as_it_is(self) -> None:
        class Own(DelimiterSlicer):
            def __init__(self, mark: str) -> None:
                super().__init__(delimiter=mark)

        assert list(inspect.signature(Own).parameters) == ["mark"]
        assert Own("%").delimiter == "%"

    def test_a_constructor_of_its_own_cannot_be_built_from_yaml(self) -> None:
        class Own(Component):
            def __init__(self, size: int) -> None:
                super().__init__()

        with pytest.raises(ContractError, match="Own: its constructor is its own: define `setup`"):
            Own.from_config(Own.Config(), Resources())

    def test_a_subclass_adds_and_changes_options(self) -> None:
        class Wide(TokenWindowSlicer):
            window: PositiveInt = option(default=2048, help="tokens a segment")
            note: str = option(help="why")

        assert Wide(note="x").config == Wide.Config(window=2048, min_last=1, note="x")
        assert issubclass(Wide.Config, TokenWindowSlicer.Config)

    def test_several_bases_with_options(self) -> None:
        class Where(Options):
            place: str = option(default="here")

            @classmethod
            def check_options(cls, config: Any) -> None:
                if config.place == "nowhere":
                    raise ConfigError("place: must be somewhere.")

        class Both(Where, TokenWindowSlicer):
            pass

        assert Both(window=4).place == "here"
        with pytest.raises(ConfigError, match="somewhere"):
            Both(place="nowhere")


class Noted(Judge):
    """Writes down what happens to it."""

    def setup(self) -> None:
        self.calls: list[str] = []

    def judge(self, requests: Sequence[Any], *args: Any) -> list[Judgement]:
        return []

    def prepare(self) -> None:
        self.calls.append("prepare")

    def sync(self) -> None:
        self.calls.append("sync")

    def close(self) -> None:
        self.calls.append("close")

    def texts(self) -> dict[str, str]:
        return {"noted": "text"}

    def state_dict(self) -> dict[str, Any]:
        return {"calls": list(self.calls)}

    def load_state_dict(self, state: Any) -> None:
        self.calls = list(state["calls"])


class Two(Reward):
    """A reward of two judges, which defines nothing of its life."""

    granularity = "rollout"
    first: Judge = required_choice(JUDGES)
    second: Judge = required_choice(JUDGES)

    def score(self, groups: Sequence[Any], *args: Any) -> list[Any]:
        return []


def test_a_life_is_passed_on_to_every_part() -> None:
    reward = Two(first=Noted(), second=Noted())
    reward.prepare(), reward.sync(), reward.close()
    assert reward.first.calls == reward.second.calls == ["prepare", "sync", "close"]  # type: ignore[attr-defined]
    assert reward.texts() == {"noted": "text"}
    other = Two(first=Noted(), second=Noted())
    other.load_state_dict(pickle.loads(pickle.dumps(reward.state_dict())))
    assert other.second.calls == reward.second.calls  # type: ignore[attr-defined]


def test_a_wrapper_passes_it_on_too() -> None:
    within = Noted()
    wrapper = OutcomeReward(judge=WrongReferenceJudge(around=within, problems=_problems()))
    wrapper.sync()
    assert within.calls == ["sync"]
    assert wrapper.state_dict() == {"judge": {"around": {"calls": ["sync"]}}}


def _problems() -> list[Any]:
    from exprl.types import Hidden, Problem, Question, Scaffold

    return [
        Problem(question=Question(problem_id=str(k), text="?"), scaffold=Scaffold(reference=Hidden(f"{k}")))
        for k in range(2)
    ]


def test_only_what_has_a_life_is_asked() -> None:
    assert not isinstance(DelimiterSlicer(), Stateful)
    ProcessReward(judge=ReferenceStepsJudge()).prepare()


TYPED = """
from exprl import DelimiterSlicer, ExactVerifier, OutcomeReward, ProcessReward, SmallerModelJudge, Slicer, SparseReward
from exprl import Rollout, Segment, option

OutcomeReward(judge=SmallerModelJudge(model="owner/name"))
SparseReward(verifier=ExactVerifier(ignore_case=True))
size: int | None = DelimiterSlicer(delimiter="###").max_segments


class Mine(Slicer):
    parts: int = option(default=2, help="how many")
    name: str = option(help="which")

    def slice(self, rollout: Rollout) -> tuple[Segment, ...]:
        return (Segment(0, self.parts),)


Mine(name="x", parts=3)
DelimiterSlicer(delimter="###")
DelimiterSlicer(delimiter=3)
OutcomeReward(judge=DelimiterSlicer())
OutcomeReward()
Mine(parts=3)
Mine(name="x").parts = 3
ProcessReward(judge=SmallerModelJudge(model="m"), show="whole")
"""


@pytest.mark.slow
def test_type_checkers_know_the_options(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "typed.py").write_text(TYPED)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", str(ROOT / "pyproject.toml")]
    done = subprocess.run(
        [*command, "--cache-dir", str(ROOT / ".mypy_cache"), str(tmp_path / "typed.py")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = TYPED.splitlines()
    wrong = [lines[int(line.split(":")[1]) - 1] for line in done.stdout.splitlines() if ": error:" in line]
    assert wrong == lines[-7:], done.stdout + done.stderr
