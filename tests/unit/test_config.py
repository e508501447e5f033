"""The config machinery on a small schema of its own, so that no shipped component is needed."""

import re
import sys
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import pytest

from exprl.component import Choice, Component, choose, option, required_choice
from exprl.config import coerce, from_layers, load, parse_overrides, to_node, to_yaml, validate, validate_choice
from exprl.config.fields import fields_of
from exprl.config.layers import load_layers
from exprl.errors import ConfigError, PathError
from exprl.experiment import Experiment
from exprl.registry import BACKENDS, ENGINES, MODELS, SOURCES, Registry
from exprl.resources import Resources

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


@pytest.fixture
def write(tmp_path):
    def write(name: str, text: str) -> str:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


class TestFiles:
    def test_extends_chain_later_wins(self, write):
        write("base.yaml", "path: a\nlr: 1e-3\nlength: {steps: 1}")
        write("sub/middle.yaml", "extends: ../base.yaml\nlr: 1e-4\ntags: [m]")
        top = write("top.yaml", "extends: sub/middle.yaml\ntags: [t]")
        config = load(Schema, top, ["length.steps=3"])
        assert (config.path, config.lr, config.tags, config.length.steps) == ("a", 1e-4, ["t"], 3)

    def test_several_parents_in_order(self, write):
        write("a.yaml", "path: a\nlr: 1.0")
        write("b.yaml", "lr: 2.0")
        assert load(Schema, write("top.yaml", "extends: [a.yaml, b.yaml]")).lr == 2.0

    def test_the_same_ancestor_twice_is_no_circle(self, write):
        write("base.yaml", "path: a")
        write("a.yaml", "extends: base.yaml")
        write("b.yaml", "extends: base.yaml")
        assert load(Schema, write("top.yaml", "extends: [a.yaml, b.yaml]")).path == "a"

    def test_circle(self, write):
        write("a.yaml", "extends: b.yaml")
        with pytest.raises(ConfigError, match=r"extends: .*b\.yaml -> .*a\.yaml -> .*b\.yaml is a circle"):
            load(Schema, write("b.yaml", "extends: a.yaml"))

    def test_missing_file_suggests_a_sibling(self, write):
        path = write("quickstart.yaml", "path: a")
        with pytest.raises(ConfigError, match=r"Did you mean 'quickstart\.yaml'"):
            load(Schema, path.replace("quickstart", "quikstart"))

    def test_missing_parent_names_who_extends_it(self, write):
        with pytest.raises(ConfigError, match=r"No config file .*bass\.yaml \(extended by .*top\.yaml\)\. Choose"):
            load(Schema, write("top.yaml", "extends: bass.yaml"))

    def test_missing_folder(self, tmp_path):
        with pytest.raises(ConfigError, match="has no YAML files"):
            load(Schema, tmp_path / "nowhere" / "x.yaml")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("a: [1", "not valid YAML"),
            ("a: 1\na: 2", "not valid YAML"),
            ("- a\n- b", "expected keys and values, but the file holds a list"),
            ("3", "expected keys and values, but the file holds a int"),
            ("extends: 3", r"extends: expected str or a list of str or null, but got 3 \(int\)"),
            ("extends: [1]", r"extends\[0\]: expected str, but got 1"),
        ],
    )
    def test_bad_file(self, write, text, message):
        with pytest.raises(ConfigError, match=message) as caught:
            load(Schema, write("bad.yaml", text))
        assert "bad.yaml" in str(caught.value)

    def test_not_text(self, tmp_path):
        (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe\x00a")
        with pytest.raises(ConfigError, match=r"bad\.yaml: not valid YAML"):
            load(Schema, tmp_path / "bad.yaml")

    def test_interpolation(self, write):
        config = load(Schema, write("a.yaml", "path: a\nnote: ${path}/b"))
        assert config.note == "a/b"
        with pytest.raises(ConfigError, match="note: "):
            load(Schema, write("b.yaml", "path: a\nnote: ${nothing}"))

    def test_scientific_numbers_are_numbers(self, write):
        assert load(Schema, write("a.yaml", "path: a\nlr: 1e-6")).lr == 1e-6


class TestOverrides:
    def test_values_are_yaml(self):
        assert parse_overrides(["a.b=1", "a.c=[1,2]", "d=null", "e=1e-6", "f=x=y", "g={h: true}"]) == {
            "a": {"b": 1, "c": [1, 2]},
            "d": None,
            "e": 1e-6,
            "f": "x=y",
            "g": {"h": True},
        }
        assert parse_overrides([]) == {}

    @pytest.mark.parametrize("item", ["trainer", "=3", "--trainer.max_steps=2"])
    def test_not_an_assignment(self, item):
        with pytest.raises(ConfigError, match=r"write key\.path=value"):
            parse_overrides([item])

    def test_broken_value(self):
        with pytest.raises(ConfigError, match="override 'a="):
            parse_overrides(["a=[1"])

    def test_swap_a_component(self):
        config = build(parse_overrides(["scorer.name=parts", "scorer.cutter.name=window", "scorer.cutter.size=3"]))
        assert to_node(config.scorer) == {"name": "parts", "scale": 1.0, "cutter": {"name": "window", "size": 3}}


STORES: Registry[Any] = Registry("store", "exprl.errors")


@STORES.register("stored")
class Stored(Component):
    folder: str = option(default="here", help="where it lies")
    file: str | None = option(default=None, help="of that folder", of="folder")
    width: int = option(default=1, help="how wide")


@dataclass(frozen=True, kw_only=True)
class Keeping:
    store: Annotated[Choice, STORES] = choose(STORES, default="stored", help="where")


class TestWhatGoesWithAnother:
    """An option `of` another does not outlive it."""

    BASE: ClassVar[dict[str, Any]] = {"name": "stored", "folder": "a", "file": "a.bin", "width": 3}

    @pytest.mark.parametrize(
        ("overlay", "expected"),
        [
            ({"folder": "b"}, {"folder": "b", "file": None, "width": 3}),
            ({"folder": "b", "file": "b.bin"}, {"folder": "b", "file": "b.bin", "width": 3}),
            ({"folder": "a"}, {"folder": "a", "file": "a.bin", "width": 3}),
            ({"width": 4}, {"folder": "a", "file": "a.bin", "width": 4}),
            ({"name": "stored", "folder": "b"}, {"folder": "b", "file": None, "width": 3}),
        ],
    )
    def test_another_name_leaves_it_behind(self, overlay, expected):
        config = from_layers(Keeping, [{"store": self.BASE}, {"store": overlay}])
        assert to_node(config.store) == {"name": "stored", **expected}

    def test_it_may_be_given_before_what_it_is_of(self):
        config = from_layers(Keeping, [{"store": {"file": "f"}}, {"store": {"folder": "b"}}])
        assert config.store.config.file == "f"

    def test_shipped_components_say_which_options_are_of_another(self):
        of = {
            (registry.family, name, key): spec.of
            for registry in (MODELS, SOURCES, ENGINES, BACKENDS)
            for name in registry.names()
            for key, spec in fields_of(registry.get(name).Config).items()
            if spec.of is not None
        }
        families = {registry.family: registry for registry in (MODELS, SOURCES, ENGINES, BACKENDS)}
        for (family, name, _), subject in of.items():
            assert subject in fields_of(families[family].get(name).Config)
        assert {(name, key) for _, name, key in of} == {
            ("pretrained", "gguf_file"),
            ("hub", "subset"),
            ("hub", "revision"),
            ("reasoning_gym", "options"),
            ("reasoning_gym", "reference"),
            ("server", "context_length"),
        }


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


class TestPlugins:
    @pytest.fixture
    def plugin(self, tmp_path, monkeypatch):
        source = (
            "from tests_config_registry import CUTTERS\nfrom exprl.component import Component\n"
            "@CUTTERS.register('lab_cutter')\nclass LabCutter(Component):\n    'From a lab.'\n"
        )
        (tmp_path / "lab_plugin.py").write_text(source)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setitem(sys.modules, "tests_config_registry", sys.modules[__name__])
        yield "lab_plugin"
        sys.modules.pop("lab_plugin", None)
        CUTTERS._classes.pop("lab_cutter", None)

    def test_component_of_a_plugin(self, plugin):
        config = build({"plugins": [plugin], "extra": {"name": "lab_cutter"}})
        assert config.extra.name == "lab_cutter"
        assert config.plugins == [plugin]

    def test_plugins_of_all_layers_are_kept(self, plugin):
        config = build({"plugins": plugin, "extra": {"name": "lab_cutter"}}, {"plugins": ["json"]})
        assert config.plugins == [plugin, "json"]
        assert from_layers(Schema, [to_node(config)]) == config

    def test_missing_plugin(self):
        assert error_of({"plugins": ["no_such_lab"]}).startswith("plugins: cannot import 'no_such_lab'")


class TestRoundTrip:
    @pytest.mark.parametrize(
        "layer",
        [
            {},
            {"lr": 1e-7, "pair": [0.1, 0.2], "many": [4, 5], "note": "a: b # c", "length": {"devices": 4}},
            {"scorer": {"name": "parts", "scale": 3, "cutter": {"name": "lines", "mark": "### \n"}}},
            {"scorer": {"name": "routed", "routes": {"math": {"name": "parts"}}}, "extra": {"name": "window"}},
            {"note": "null"},
            {"note": "1e-6"},
            {"tags": [r"\${path}", "no", "é"]},
        ],
    )
    def test_yaml_gives_the_same_config(self, write, layer):
        config = build(layer)
        assert load(Schema, write("config.yaml", to_yaml(config))) == config
        assert validate(Schema, to_node(config)) == config

    def test_every_default_is_written_out(self):
        assert "size: 7" in to_yaml(build())
        assert "devices: auto" in to_yaml(build())


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


def test_a_config_in_a_home_that_is_not_there():
    with pytest.raises(PathError, match=r"config: '~nobody-is-called-so/x\.yaml' cannot be a path here"):
        load_layers("~nobody-is-called-so/x.yaml")
