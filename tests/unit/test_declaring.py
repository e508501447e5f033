"""What components of others get wrong: told where the class is defined, or where the object is made."""

from __future__ import annotations

import dataclasses
import typing as t
from collections.abc import Sequence
from typing import Any, ClassVar

import pytest

from exprl.component import Component, Options, choose, given, option, required_choice
from exprl.config.ranges import PositiveInt
from exprl.config.secrets import without_secrets
from exprl.config.validate import validate
from exprl.engines import TransformersEngine
from exprl.engines.base import Sampling
from exprl.engines.http import ServerOptions
from exprl.errors import ConfigError, ContractError, JudgeError
from exprl.judges import (
    Judge,
    NoReferenceJudge,
    ReferenceStepsJudge,
    SameModelJudge,
    SmallerModelJudge,
    WrongReferenceJudge,
)
from exprl.judges.backends import ServerBackend, TransformersBackend, VLLMBackend
from exprl.models.base import LanguageModel
from exprl.models.provider import ModelProvider
from exprl.objectives import Clipped
from exprl.registry import JUDGES, SLICERS
from exprl.resources import Resources
from exprl.rewards import OutcomeReward, SparseReward
from exprl.rewards.base import Reward
from exprl.slicers import DelimiterSlicer, TokenWindowSlicer
from exprl.slicers.base import Slicer
from exprl.text.prompts import PromptBuilder
from exprl.types import Hidden, JudgeRequest, Problem, Question, Rollout, RolloutReward, Scaffold
from exprl.verifiers import ExactVerifier


class TestOldStyle:
    """Components as they were written before options were fields."""

    def test_a_constructor_that_takes_a_config(self) -> None:
        with pytest.raises(ContractError, match=r"no config is handed to a constructor: .*`setup`.*given"):

            class Old(Reward):
                def __init__(self, config: Any, verifier: Any) -> None:
                    super().__init__(config)

    def test_a_check_after_construction(self) -> None:
        with pytest.raises(ContractError, match=r"nothing calls `__post_init__`"):

            class Old(Slicer):
                def __post_init__(self) -> None: ...

    @pytest.mark.parametrize("declare", [lambda: option(True, "x"), lambda: choose(SLICERS, "delimiter")])
    def test_positional_defaults(self, declare: Any) -> None:
        with pytest.raises(ContractError, match=r"takes keywords: (option|choose)\(.*default=\.\.\., help=\.\.\.\)"):
            declare()


class TestNames:
    @pytest.mark.parametrize("name", ["name", "config", "self", "_hidden", "str", "list"])
    def test_some_names_cannot_be_options(self, name: str) -> None:
        with pytest.raises(ContractError, match=f"an option cannot be called '{name}'"):
            type("Bad", (Slicer,), {"__annotations__": {name: "int"}, name: option(default=1), "__module__": __name__})

    @pytest.mark.parametrize(
        "body", [{"delimiter": "\n"}, {"delimiter": "\n", "__annotations__": {"delimiter": "ClassVar[str]"}}]
    )
    def test_a_default_is_changed_by_an_option_alone(self, body: dict[str, Any]) -> None:
        with pytest.raises(
            ContractError, match=r"'delimiter' hides the option.*another default by `delimiter: type = "
        ):
            type("Loose", (DelimiterSlicer,), body)

    def test_nor_is_what_is_given_hidden(self) -> None:
        with pytest.raises(ContractError, match="'verifier' hides the option"):
            type("Fixed", (SparseReward,), {"verifier": ExactVerifier()})

    def test_what_is_given_is_no_option_elsewhere(self) -> None:
        with pytest.raises(ContractError, match="'verifier' is an option in one class and given in the other"):
            type("Both", (SparseReward,), {"__annotations__": {"verifier": "str"}, "verifier": option(default="x")})

    def test_every_spelling_of_a_class_variable(self) -> None:
        class Spelt(Slicer):
            first: ClassVar[int] = 1
            second: t.ClassVar[int] = 2
            third: ClassVar = 3

        assert Spelt.Config is not Slicer.Config
        assert not dataclasses.fields(Spelt.Config)

    def test_a_mixin_with_options_derives_from_options(self) -> None:
        class Mixin:
            size: int = option(default=3)

        with pytest.raises(ContractError, match="option 'size' of Mixin: derive that class from Options"):
            type("Mixed", (Mixin, TokenWindowSlicer), {})

    def test_only_components_are_built_of_others(self) -> None:
        with pytest.raises(ContractError, match="'slicer': only a Component"):

            class Holder(Options):
                slicer: Slicer = required_choice(SLICERS)


class Windowed(Options):
    """Options for any component."""

    window: PositiveInt = option(default=3)

    @classmethod
    def check_options(cls, config: Any) -> None:
        if config.window == 13:
            raise ConfigError("window: must not be 13.")


class TestSeveralBases:
    def test_what_every_base_is_given_is_given(self) -> None:
        class Mine(Windowed, SparseReward):
            pass

        verifier = ExactVerifier()
        assert Mine(verifier=verifier, window=4).verifier is verifier
        assert Mine.from_config(Mine.Config(), Resources(verifier=verifier)).verifier is verifier

    def test_the_nearest_default_holds(self) -> None:
        class More(VLLMBackend.__mro__[1]):  # type: ignore[misc] # HostOptions
            more: int = option(default=1)

        class Both(More, VLLMBackend):
            pass

        assert Both.Config().gpu_memory_utilization == VLLMBackend.Config().gpu_memory_utilization == 0.3
        assert issubclass(Both.Config, VLLMBackend.Config)

    def test_every_base_checks_its_options(self) -> None:
        class Mine(Windowed, TokenWindowSlicer):
            window: PositiveInt = option(default=4)

        with pytest.raises(ConfigError, match=r"^window: must not be 13"):
            Mine(window=13)
        with pytest.raises(ConfigError, match=r"^min_last: must be at most window"):
            Mine(window=2, min_last=3)


class TestValues:
    def test_a_default_is_allowed_itself(self) -> None:
        class Zero(Slicer):
            parts: PositiveInt = option(default=0)

            def slice(self, rollout: Rollout) -> tuple[Any, ...]:
                return ()

        with pytest.raises(ContractError, match=r"Zero.Config: the default: parts: must be in \[1"):
            Zero()
        with pytest.raises(ConfigError, match="the default: parts"):
            validate(Zero.Config, {})
        assert Zero(parts=2).parts == 2

    def test_a_type_that_cannot_be_read(self) -> None:
        body = {"__annotations__": {"parts": "Nowhere"}, "parts": option(default=0), "__module__": __name__}
        with pytest.raises(ContractError, match=r"type of an option cannot be read: name 'Nowhere'"):
            type("Lost", (Component,), body)()

    def test_defaults_are_not_shared(self) -> None:
        class Nested(Component):
            items: list[list[int]] = option(default=[[1]])

        first, second = Nested(), Nested()
        first.items[0].append(2)
        assert second.items == [[1]]

    def test_a_class_is_no_object(self) -> None:
        with pytest.raises(ConfigError, match=r"the class ReferenceStepsJudge. Call it: ReferenceStepsJudge\(\)"):
            OutcomeReward(judge=ReferenceStepsJudge)  # type: ignore[arg-type]

    def test_a_judge_that_made_itself_wrongly(self) -> None:
        class Alone(ReferenceStepsJudge):
            def __init__(self, size: int) -> None:
                self.size = size

        with pytest.raises(ContractError, match=r"Alone: its constructor must call super"):
            OutcomeReward(judge=Alone(3))

    def test_nothing_unknown_is_handed_over(self) -> None:
        with pytest.raises(TypeError, match="nothing called 'langauge_model'"):
            TransformersBackend.made(TransformersBackend.Config(), langauge_model=None)

    def test_options_of_another_are_refused(self) -> None:
        with pytest.raises(ConfigError, match="slicer 'delimiter': expected its own options"):
            DelimiterSlicer.from_config(TokenWindowSlicer.Config(), Resources())

    def test_data_is_what_it_says(self) -> None:
        with pytest.raises(TypeError, match=r"^reference: expected Hidden.*but got str$"):
            Scaffold(reference="secret")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="n: must be at least 1"):
            Sampling(n=0)


class TestRegistering:
    def test_in_the_family_of_its_base(self) -> None:
        with pytest.raises(ConfigError, match=r"judge 'slic' \(.*\) is a slicer"):
            JUDGES.register("slic")(type("Slic", (TokenWindowSlicer,), {}))

    def test_under_a_name(self) -> None:
        with pytest.raises(ConfigError, match=r"needs a name: @JUDGES.register"):
            JUDGES.register(ReferenceStepsJudge)  # type: ignore[arg-type]

    def test_a_subclass_has_not_the_name_of_its_base(self) -> None:
        class Mine(ReferenceStepsJudge):
            pass

        assert (Mine.registered_name, Mine.registered_family) == ("", "judge")
        with pytest.raises(JudgeError, match=r"but judge 'Mine' needs one"):
            Mine().check([_problem(None)])


def _problem(reference: str | None) -> Problem:
    hidden = Hidden(reference) if reference is not None else None
    return Problem(question=Question(problem_id="p", text="?"), scaffold=Scaffold(reference=hidden, answer=Hidden("4")))


class TestParts:
    def test_a_provider_that_is_handed_over_is_the_one_used(self, tiny: LanguageModel) -> None:
        class Held(ModelProvider):
            held: Any = given(default=None)

            def load(self) -> LanguageModel:
                assert self.held is not None
                return tiny

        judge = SmallerModelJudge(model=Held(held=tiny), min_mass=0.0)
        [judgement] = judge.judge([JudgeRequest(problem=_problem("2 + 2 = 4"), trace="4")])
        assert judgement.status == "ok"

    def test_an_open_backend_is_what_the_options_say(self, tiny: LanguageModel) -> None:
        here = TransformersBackend(language_model=tiny)
        server = ServerBackend(url="http://127.0.0.1:9/v1", model="m", tokenizer=tiny.tokenizer)
        with pytest.raises(ConfigError, match=r"weights='live', but its backend has live=False"):
            SameModelJudge(weights="live", backend=here)
        with pytest.raises(ConfigError, match="a server's weights cannot follow the policy"):
            SameModelJudge(weights="live", backend=server)
        with pytest.raises(ConfigError, match="constrained: the backend that was handed over"):
            SameModelJudge(weights="frozen", scoring="rationale", constrained=True, backend=here)

    def test_without_a_reference_the_verifier_is_a_keyword(self) -> None:
        judge = NoReferenceJudge(around=ReferenceStepsJudge(), verifier=ExactVerifier())
        [judgement] = judge.judge([JudgeRequest(problem=_problem("x"), trace="Answer: 4")])
        assert judgement.score == 5.0

    def test_a_reference_that_is_missing_is_told_by_problem(self) -> None:
        with pytest.raises(JudgeError, match="problem 'p' has no reference solution"):
            ReferenceStepsJudge().judge([JudgeRequest(problem=_problem(None), trace="x")])

    def test_one_that_cannot_be_closed_leaves_no_other_open(self) -> None:
        closed = []

        class Closing(ReferenceStepsJudge):
            tag: str = option(default="")

            def close(self) -> None:
                closed.append(self.tag)
                if self.tag == "bad":
                    raise OSError("stuck")

        reward = Composite(first=Closing(tag="bad"), second=Closing(tag="good"))
        with pytest.raises(OSError, match="stuck"):
            reward.close()
        assert sorted(closed) == ["bad", "good"]
        closed.clear()
        same = Closing(tag="once")
        Composite(first=same, second=same).close()
        assert closed == ["once"]

    def test_a_reward_asks_what_it_is_built_of_about_the_problems(self) -> None:
        with pytest.raises(JudgeError, match="problem 'p' has no reference solution"):
            Composite(first=ReferenceStepsJudge(), second=ReferenceStepsJudge()).check([_problem(None)])

    def test_a_step_without_any_reward_is_not_learned_from(self) -> None:
        reward = Composite(first=ReferenceStepsJudge(), second=ReferenceStepsJudge())
        nothing, some = RolloutReward(value=None, length=3), RolloutReward(value=0.5, length=3)
        for step in ((nothing, nothing), (nothing, some, some)):
            with pytest.raises(JudgeError, match=r"^[12] of [23] rollouts .* no judgement says why"):
                reward.check_step([step])
        reward.check_step([(nothing, some, some, some)])


class Composite(Reward):
    """Of two judges."""

    granularity = "rollout"
    first: Judge = required_choice(JUDGES)
    second: Judge = required_choice(JUDGES)

    def score(self, groups: Sequence[Any], *args: Any) -> list[Any]:
        return []


class TestWhatIsHandedOver:
    """Given parameters and parts are of the kind that their annotation says."""

    @pytest.mark.parametrize(
        ("make", "said"),
        [
            (
                lambda: SparseReward(verifier="exact"),
                r"SparseReward: verifier: expected Verifier, but got 'exact' \(str",
            ),
            (lambda: SparseReward(verifier=None), r"verifier: expected Verifier, but got None"),
            (lambda: OutcomeReward(judge=DelimiterSlicer()), r"judge: expected a judge"),
            (
                lambda: WrongReferenceJudge(around=ReferenceStepsJudge(), problems=["a", "b"]),
                r"WrongReferenceJudge: problems: expected Sequence\[Problem\], but got \['a', 'b'\]",
            ),
            (
                lambda: WrongReferenceJudge(around=ReferenceStepsJudge(), problems="ab"),
                r"problems: expected Sequence\[Problem\], but got 'ab'",
            ),
            (
                lambda: NoReferenceJudge(around=ReferenceStepsJudge(), verifier=3),
                r"expected Verifier \| None, but got 3",
            ),
            (lambda: TransformersBackend(language_model="gpt2"), r"language_model: expected LanguageModel"),
        ],
    )
    def test_another_kind_is_refused(self, make: Any, said: str) -> None:
        with pytest.raises(ConfigError, match=said):
            make()

    def test_parts_of_a_step_are_each_of_their_family(self, tiny: LanguageModel) -> None:
        from exprl.training.module import Parts

        with pytest.raises(ConfigError, match=r"Parts: advantage: expected Advantage, but got DelimiterSlicer"):
            Parts(
                prompts=PromptBuilder(tiny.tokenizer),
                engine=TransformersEngine(policy=tiny),
                reward=SparseReward(verifier=ExactVerifier()),
                advantage=DelimiterSlicer(),  # type: ignore[arg-type]
                objective=Clipped(),
            )


class TestMethods:
    """What stands in the place of a base's method can be called as that is."""

    def test_a_parameter_left_out(self) -> None:
        with pytest.raises(
            ContractError, match=r"Short: `judge` must take .*def judge\(self, requests, on_progress=no_p"
        ):

            class Short(Judge):
                def judge(self, requests: Sequence[JudgeRequest]) -> list[Any]:  # type: ignore[override]
                    return []

    def test_one_more_that_must_be_given(self) -> None:
        with pytest.raises(ContractError, match=r"`slice` must take what it is called with \(missing a required"):

            class Long(Slicer):
                def slice(self, rollout: Rollout, width: int) -> tuple[Any, ...]:  # type: ignore[override]
                    return ()

    def test_names_of_one_s_own_and_more_with_defaults_are_fine(self) -> None:
        class Mine(Slicer):
            def slice(self, one: Rollout, width: int = 3, *more: int) -> tuple[Any, ...]:  # type: ignore[override]
                return ()


SECRET = "hunter2"


class TestSecrets:
    @pytest.mark.parametrize(
        "url",
        [
            f"http://me:{SECRET}/2@host/v1", f"http://me:a {SECRET}@host/v1", f"me:{SECRET}@host:8000/v1",
            f"http:me:{SECRET}@h", f"http:/me:{SECRET}@h/v1", f"https://h/v1?api_key={SECRET}",
            f"http://me:{SECRET}@h/v1\0", f"http://me:{SECRET}@h:port/v1",
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("wrap", [str, lambda url: [url], lambda url: {"url": url}])
    def test_no_error_shows_one(self, url: str, wrap: Any) -> None:
        with pytest.raises(ConfigError) as error:
            ServerOptions(url=wrap(url), model="m")
        assert SECRET not in str(error.value)
        with pytest.raises(ConfigError) as error:
            OutcomeReward(judge={"name": "same_model", "weights": "frozen", "backend": wrap(url)})  # type: ignore[arg-type]
        assert SECRET not in str(error.value)

    def test_they_are_those_of_one_object_and_not_shown(self) -> None:
        class Mine(ServerOptions):
            @classmethod
            def check_options(cls, config: Any) -> None:
                """Of its own, without asking the base's."""

        options = Mine(url=f"http://me:{SECRET}@host.test/v1", model="m")
        other = Mine(url="http://you:other@host.test/v1", model="m")
        assert (options.credentials, other.credentials) == (("me", SECRET), ("you", "other"))
        assert Mine(url="http://host.test/v1", model="m").credentials is None
        assert SECRET not in repr(options) + repr(options.config) + repr(vars(options.config))

    def test_what_is_no_secret_stays(self) -> None:
        assert without_secrets("expected str, but got 'a: b'") == "expected str, but got 'a: b'"
        assert without_secrets("http://host:8000/v1") == "http://host:8000/v1"
