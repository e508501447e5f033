import sys
from importlib.metadata import EntryPoint

import pytest

from exprl import registry as registry_module
from exprl.component import Component
from exprl.errors import ConfigError
from exprl.registry import FAMILIES, REWARDS, Registry, import_plugins, load_entry_points


@pytest.fixture
def fruits() -> Registry:
    registry = Registry("fruit", "exprl.errors")

    @registry.register("apple")
    class Apple(Component):
        """A pome."""

    @registry.register("pear")
    class Pear(Component):
        """Another."""

    return registry


def test_name_to_class_and_back(fruits):
    assert fruits.names() == ["apple", "pear"]
    assert fruits.get("apple").registered_name == "apple"
    assert repr(fruits) == "Registry(fruit: apple, pear)"


def test_unknown_name_suggests_and_lists(fruits):
    with pytest.raises(
        ConfigError, match=r"Unknown fruit 'aple'\. Did you mean 'apple'\? Choose one of: apple, pear\."
    ):
        fruits.get("aple")
    with pytest.raises(ConfigError, match=r"Unknown fruit 'xyz'\. Choose one of"):
        fruits.get("xyz")


def test_empty_registry_says_so():
    with pytest.raises(ConfigError, match=r"\(none\)"):
        Registry("fruit", "exprl.errors").get("apple")


def test_second_class_under_a_name_is_refused(fruits):
    class Crab:
        """Not a pome."""

    with pytest.raises(ConfigError, match=r"'apple' is already .*Apple; register .*Crab under another name"):
        fruits.register("apple")(Crab)


def test_same_qualified_name_in_another_module_is_refused(fruits):
    known = fruits.get("apple")
    impostor = type("Apple", (), {"__qualname__": known.__qualname__, "__module__": "my_lab.fruits"})
    with pytest.raises(ConfigError, match=r"my_lab\.fruits"):
        fruits.register("apple")(impostor)


def test_a_reloaded_class_replaces_itself(fruits):
    known = fruits.get("apple")
    again = type("Apple", (), {"__qualname__": known.__qualname__, "__module__": known.__module__})
    fruits.register("apple")(again)
    assert fruits.get("apple") is again


def test_every_family_has_its_own_name():
    assert len({family.family for family in FAMILIES}) == len(FAMILIES)


def test_plugin_that_is_not_there():
    with pytest.raises(ConfigError, match=r"plugins: cannot import 'my_lab\.no_such_module'"):
        import_plugins(["my_lab.no_such_module"])


@pytest.mark.parametrize(
    ("given", "written"),
    [("single.py", "single"), ("my_lab/mine.py", r"my_lab\.mine"), ("my_lab/mine", r"my_lab\.mine")],
)
def test_a_file_in_place_of_a_module_is_told_how_it_is_written(given, written, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=rf"Write {written}\. .*started from, {tmp_path}, are searched, not that"):
        import_plugins([given])


def test_what_a_plugin_registers_wrongly_is_no_matter_of_its_place(tmp_path, monkeypatch):
    imports = "from exprl import Judge\nfrom exprl.registry import JUDGES\n"
    (tmp_path / "half_lab.py").write_text(f"{imports}@JUDGES.register('half')\nclass Half(Judge): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"^plugins: half_lab: judge 'half' .* must define judge\.$"):
        import_plugins(["half_lab"])


class TestEntryPoints:
    @pytest.fixture
    def announce(self, monkeypatch):
        def announce(value: str) -> None:
            entry = EntryPoint(name="lab", value=value, group="exprl.plugins")
            monkeypatch.setattr(registry_module, "_entry_points_loaded", False)
            monkeypatch.setattr(registry_module, "broken_plugins", {})
            monkeypatch.setattr(registry_module, "entry_points", lambda group: [entry])

        return announce

    def test_are_imported_once(self, announce, monkeypatch):
        announce("json.decoder")
        load_entry_points()
        monkeypatch.setattr(registry_module, "entry_points", lambda group: pytest.fail("looked up twice"))
        load_entry_points()

    @pytest.mark.parametrize(
        ("source", "why"),
        [
            ("raise SystemExit(3)", "SystemExit: 3"),
            ("1 / 0", "ZeroDivisionError: division by zero"),
            ("import no_such_lab", "ModuleNotFoundError: No module named 'no_such_lab'"),
            ("def judges(:", "SyntaxError: "),
        ],
    )
    def test_broken_one_is_left_out_and_named(self, announce, tmp_path, monkeypatch, caplog, source, why):
        (tmp_path / "broken_lab.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        announce("broken_lab")
        load_entry_points()
        sys.modules.pop("broken_lab", None)
        assert "the exprl plugin 'lab' (broken_lab) of an installed package is left out" in caplog.text
        assert "process" in REWARDS.names()
        with pytest.raises(ConfigError, match=rf"Unknown reward 'labs'\..*The plugin 'lab'.*was left out \({why}"):
            REWARDS.get("labs")


def test_it_is_read_like_a_mapping(fruits):
    assert fruits["apple"] is fruits.get("apple")
    assert list(fruits) == fruits.names()
    assert "pear" in fruits
    assert "aple" not in fruits
    with pytest.raises(ConfigError, match=r"Unknown fruit 'aple'\. Did you mean 'apple'"):
        fruits["aple"]
