"""What a config may hold, and what is said of what it may not."""

import re
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from exprl.component import Component, option
from exprl.config import coerce, from_layers, load, to_node, validate, validate_choice
from exprl.errors import ConfigError
from exprl.experiment import EvaluationConfig, Experiment
from exprl.resources import Resources
from tests.schema import CUTTERS, Schema, Whole, Window, build, error_of


class TestUnknownAndMissing:
    def test_unknown_option_suggests(self):
        assert error_of({"lenght": {}}).startswith("lenght: unknown option. Did you mean 'length'? Choose one of: ")

    def test_unknown_nested_option_has_the_full_path(self):
        assert error_of({"length": {"step": 1}}).startswith("length.step: unknown option. Did you mean 'steps'?")

    def test_unknown_component(self):
        message = error_of({"scorer": {"name": "hole"}})
        assert message == (
            "scorer.name: Unknown scorer 'hole'. Did you mean 'whole'? Choose one of: parts, routed, strict, whole."
        )

    def test_unknown_component_deep_down(self):
        message = error_of({"scorer": {"name": "parts", "cutter": {"name": "widow"}}})
        assert message.startswith("scorer.cutter.name: Unknown cutter 'widow'. Did you mean 'window'?")

    def test_unknown_option_of_a_component(self):
        message = error_of({"scorer": {"name": "parts", "cutter": {"name": "window", "sise": 3}}})
        assert message == "scorer.cutter.sise: unknown option. Did you mean 'size'? Choose one of: size."

    def test_component_without_options(self):
        with pytest.raises(ConfigError, match=r"x\.a: unknown option\. Choose one of: \(none\)"):
            validate(Component.Config, {"a": 1}, "x")

    def test_missing_required_value_says_what_it_is_for(self):
        with pytest.raises(ConfigError, match=r"^path: required, but missing \(where the data lies\)\.$"):
            from_layers(Schema, [{}])

    def test_omegaconf_missing_mark(self):
        with pytest.raises(ConfigError, match=r"^path: required, but missing \("):
            from_layers(Schema, [{"path": "???"}])

    def test_missing_required_component(self):
        message = error_of({"scorer": {"name": "strict"}})
        assert (
            message
            == "scorer.inner: required, but missing (how to cut). Set scorer.inner.name. Choose one of: lines, window."
        )
        message = error_of({"scorer": {"name": "strict", "inner": {"size": 3}}})
        assert message == "scorer.inner.name: required, but missing. Choose one of: lines, window."

    def test_an_option_of_another_component_of_the_family(self):
        message = error_of({"scorer": {"name": "strict", "scale": 2.0}})
        others = r"The scorer 'strict' has none, .*parts.* one: set scorer\.name="
        assert re.search(rf"^scorer\.scale: unknown option\. {others}", message)

    def test_component_written_as_a_word(self):
        message = error_of({"scorer": "parts"})
        assert message == "scorer: expected a scorer as {name: ..., options}, but got 'parts'. Write scorer.name=parts."

    def test_component_name_that_is_no_text(self):
        assert error_of({"scorer": {"name": 3}}) == "scorer.name: expected str, but got 3 (int)."
        assert error_of({"scorer": {"name": [1]}}).startswith("scorer.name: expected str, but got [1]")


class TestTypes:
    @pytest.mark.parametrize(
        ("layer", "message"),
        [
            ({"lr": "fast"}, "lr: expected float, but got 'fast' (str)."),
            ({"lr": True}, "lr: expected float, but got True (bool)."),
            ({"lr": None}, "lr: expected float, but got None (NoneType)."),
            ({"length": {"steps": 1.5}}, "length.steps: expected int, but got 1.5 (float)."),
            ({"length": {"steps": True}}, "length.steps: expected int, but got True (bool)."),
            ({"length": {"devices": "all"}}, "length.devices: expected int or 'auto', but got 'all' (str)."),
            ({"length": 3}, "length: expected options, but got 3 (int)."),
            ({"path": 3}, "path: expected str, but got 3 (int)."),
            ({"note": 3}, "note: expected str, but got 3 (int)."),
            ({"tags": "a"}, "tags: expected a list, such as ['a'], but got 'a' (str)."),
            ({"tags": {}}, "tags: expected a list, but got {} (dict)."),
            ({"tags": ["a", 2]}, "tags[1]: expected str, but got 2 (int)."),
            ({"pair": [1, 2, 3]}, "pair: expected 2 values, but got [1, 2, 3]."),
            ({"many": [1, "b"]}, "many[1]: expected int, but got 'b' (str)."),
            ({"scorer": {"style": "smoth"}}, "scorer.style: got 'smoth'. Did you mean 'smooth'? Choose one of: "),
            ({"scorer": {"style": ["smooth"]}}, "scorer.style: got ['smooth']."),
            ({"plugins": 3}, "plugins: expected str or a list of str or null, but got 3 (int)."),
            ({"scorer": {"name": "routed", "routes": [1]}}, "scorer.routes: expected a mapping, but got [1] (list)."),
        ],
    )
    def test_wrong_type_names_key_and_value(self, layer, message):
        assert error_of(layer).startswith(message)

    def test_what_is_allowed(self):
        config = build({"lr": 1, "note": None, "pair": [1, 0.5], "many": [1, 2, 3], "length": {"devices": 2}})
        assert isinstance(config.lr, float)
        assert (config.pair, config.many, config.length.devices) == ((1.0, 0.5), (1, 2, 3), 2)

    def test_a_number_is_no_bool_of_the_same_value(self):
        assert coerce(Literal[1, "a"], 1, "x") == 1
        with pytest.raises(ConfigError, match="x: got True"):
            coerce(Literal[1, "a"], True, "x")

    def test_union_names_the_bad_item_of_the_kind_it_nearly_is(self):
        with pytest.raises(ConfigError, match=r"^x\[1\]: expected int, but got 'b'"):
            coerce(int | list[int], [1, "b"], "x")
        assert coerce(int | str, "1", "x") == "1"

    def test_any_passes(self):
        marker = object()
        assert coerce(Any, marker, "x") is marker

    def test_own_checks_name_their_place(self):
        message = error_of({"scorer": {"name": "parts", "cutter": {"name": "window", "size": 0}}})
        assert message == "scorer.cutter: size must be at least 1, but got 0"
        assert error_of({"length": {"steps": 13}}) == "length.steps: 13 is unlucky."


class TestComponents:
    def test_default_and_build(self):
        config = build()
        assert config.scorer.name == "whole"
        assert config.extra is None
        component = config.scorer.build(Resources())
        assert isinstance(component, Whole)
        assert component.config == Whole.Config()

    def test_optional_component(self):
        assert build({"extra": {"name": "lines"}}).extra.name == "lines"
        assert build({"extra": {"name": "lines"}}, {"extra": None}).extra is None
        assert error_of({"extra": {"mark": "x"}}).startswith("extra.name: required, but missing")

    def test_name_swap_keeps_what_both_have_and_drops_the_rest(self):
        inherited = {"scorer": {"name": "whole", "scale": 2.0, "style": "clipped"}}
        config = build(inherited, {"scorer": {"name": "parts"}})
        assert to_node(config.scorer) == {"name": "parts", "scale": 2.0, "cutter": {"name": "lines", "mark": "###"}}

    def test_name_swap_from_the_default_name(self):
        config = build({"scorer": {"scale": 2.0, "style": "clipped"}}, {"scorer": {"name": "parts"}})
        assert config.scorer.config.scale == 2.0

    def test_option_beside_a_new_name_is_checked(self):
        message = error_of({"scorer": {"name": "whole"}}, {"scorer": {"name": "parts", "style": "clipped"}})
        assert message.startswith("scorer.style: unknown option.")

    def test_nested_swap(self):
        layers = [{"scorer": {"name": "parts", "cutter": {"name": "window", "size": 3}}}]
        assert build(*layers, {"scorer": {"cutter": {"size": 4}}}).scorer.config.cutter.config.size == 4
        swapped = build(*layers, {"scorer": {"cutter": {"name": "lines"}}})
        assert to_node(swapped.scorer.config.cutter) == {"name": "lines", "mark": "###"}

    def test_default_options_of_a_choice(self):
        assert to_node(build().deep) == {"name": "parts", "scale": 1.0, "cutter": {"name": "window", "size": 7}}

    def test_override_inside_a_default_keeps_its_other_options(self):
        # `deep` names window where Parts alone would say lines: an option without a name belongs to window
        config = build({"deep": {"cutter": {"size": 9}}, "scorer": {}})
        assert to_node(config.deep) == {"name": "parts", "scale": 1.0, "cutter": {"name": "window", "size": 9}}
        config = build({"deep": {"scale": 3.0}})
        assert to_node(config.deep) == {"name": "parts", "scale": 3.0, "cutter": {"name": "window", "size": 7}}

    def test_the_other_name_does_not_get_the_defaults_options(self):
        config = build({"deep": {"cutter": {"name": "lines"}}})
        assert to_node(config.deep.config.cutter) == {"name": "lines", "mark": "###"}

    def test_components_in_a_mapping(self):
        config = build({"scorer": {"name": "routed", "routes": {"math": {"name": "parts"}, "code": {"name": "whole"}}}})
        assert {domain: choice.name for domain, choice in config.scorer.config.routes.items()} == {
            "math": "parts",
            "code": "whole",
        }
        message = error_of({"scorer": {"name": "routed", "routes": {"math": {"name": "part"}}}})
        assert message.startswith("scorer.routes.math.name: Unknown scorer 'part'. Did you mean 'parts'?")

    def test_a_choice_passes_through(self):
        choice = validate_choice(CUTTERS, {"name": "window"}, "x")
        assert validate_choice(CUTTERS, choice, "x") is choice
        assert choice.config == Window.Config(size=512)


class TestResources:
    def test_missing_parts_say_who_needs_them(self):
        with pytest.raises(ConfigError, match=r"judge 'same_model' needs the policy model.*backend="):
            Resources().need_policy("judge 'same_model'")
        with pytest.raises(ConfigError, match=r"objective 'clipped' needs the frozen initial policy"):
            Resources().need_initial_policy("objective 'clipped'")

    def test_present_parts(self):
        model: Any = object()
        resources = Resources(policy=model, initial_policy=lambda: model)
        assert resources.need_policy("x") is model
        assert resources.need_initial_policy("x") is model


def test_mutable_defaults_are_not_shared():
    @dataclass(frozen=True, kw_only=True)
    class Config:
        items: list[int] = option(default=[1], help="numbers")
        table: dict[str, int] = option(default={"a": 1}, help="numbers")

    first, second = Config(), Config()
    first.items.append(2)
    first.table["b"] = 2
    assert (second.items, second.table) == ([1], {"a": 1})


def test_a_domain_whose_name_has_line_breaks_is_named_on_one_line():
    with pytest.raises(ConfigError, match=r"^prompt\.domains\.a\\nb\.template: '' has no \{question\}"):
        load(
            Experiment,
            "quickstart",
            ['prompt={name: by_domain, domains: {"a\\nb": {name: template, template: ""}}}'],
        )


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("correction.name=icepop", r"^correction: unknown option\. It stands deeper: objective\.correction\.$"),
        ("max_steps=1", r"^max_steps: unknown option\. It stands deeper: model\.max_steps or trainer\.max_steps\.$"),
        ("objective.is_cap=3", r"^objective\.is_cap: unknown option\. .*correction: \{name: tis, high: 2\.0\}"),
    ],
)
def test_an_option_at_another_place_or_of_another_time_says_where_it_is(override, said):
    with pytest.raises(ConfigError, match=said):
        load(Experiment, "quickstart", [override])


@pytest.mark.parametrize(("n", "ks"), [(1, (1,)), (4, (1, 4)), (16, (1, 16)), (64, (1, 16, 64))])
def test_which_k_are_reported_follows_the_samples_until_somebody_names_them(n: int, ks: tuple[int, ...]) -> None:
    assert EvaluationConfig(samples_per_prompt=n).ks == ks
    assert EvaluationConfig(samples_per_prompt=n, k=(1,)).ks == (1,)
