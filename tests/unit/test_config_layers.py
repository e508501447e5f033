"""Layers of a config, from files, overrides and plugins to one, and back to YAML."""

import sys
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import pytest

from exprl.component import Choice, Component, choose, option
from exprl.config import from_layers, load, parse_overrides, to_node, to_yaml, validate
from exprl.config.fields import fields_of
from exprl.config.layers import load_layers
from exprl.errors import ConfigError, PathError
from exprl.registry import BACKENDS, ENGINES, MODELS, SOURCES, Registry
from tests.schema import CUTTERS, Schema, build, error_of


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


def test_a_config_in_a_home_that_is_not_there():
    with pytest.raises(PathError, match=r"config: '~nobody-is-called-so/x\.yaml' cannot be a path here"):
        load_layers("~nobody-is-called-so/x.yaml")
