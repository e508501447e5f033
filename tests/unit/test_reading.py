"""YAML that would surprise is refused or stays the text it looks like; nothing but plain values comes out."""

import math
from dataclasses import dataclass
from typing import Any

import pytest

from exprl.component import checked, option
from exprl.config import from_layers, load, parse_overrides, to_yaml
from exprl.config.reading import parse
from exprl.errors import ConfigError, PathError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 1e-6),
        ("1E6", 1e6),
        (".5", 0.5),
        ("5.", 5.0),
        ("-.inf", -math.inf),
        ("0x10", 16),
        ("16_384", 16384),
        ("+3", 3),
        ("32", 32),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("null", None),
        ("", None),
        # YAML 1.1 would make numbers, booleans and dates of these
        ("010", "010"),
        ("0o10", "0o10"),
        ("1:30", "1:30"),
        ("on", "on"),
        ("no", "no"),
        ("2026-11-26", "2026-11-26"),
        ("1e", "1e"),
        ("1.5.2", "1.5.2"),
        ("!!str 3", "3"),
        ("!!float 3", 3.0),
        ("{1: a, on: b, null: c}", {"1": "a", "on": "b", "null": "c"}),
        ("{a: &x [1, 2], b: *x}", {"a": [1, 2], "b": [1, 2]}),
        ("{a: &x {p: 1}, b: {<<: *x, q: 2}}", {"a": {"p": 1}, "b": {"p": 1, "q": 2}}),
    ],
)
def test_plain_values(text: str, value: Any) -> None:
    read = parse(text)
    assert read == value
    assert type(read) is type(value)


def laughs(levels: int) -> str:
    """Each level holds nine aliases of the one before: a few hundred bytes that stand for 9 ** levels values."""
    lines = ["a0: &a0 [" + ", ".join(["lol"] * 9) + "]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)]
    return "\n".join(lines)


REFUSED = {
    "!!int abc": "invalid literal for int",
    "!!float abc": "could not convert string to float",
    "!!python/object/apply:os.system [echo]": r"the tag !!python/object/apply:os\.system is not allowed \(line 1",
    "!!python/name:os.system": r"the tag !!python/name:os\.system is not allowed",
    "!!timestamp 2026-11-26": "the tag !!timestamp is not allowed",
    "!!set {a}": "the tag !!set is not allowed",
    "!!binary aGk=": "the tag !!binary is not allowed",
    "!mine 3": "the tag !mine is not allowed",
    "9" * 5000: "Exceeds the limit",
    "{a: 1, a: 2}": r"the key 'a' stands twice \(line 1, column 8\)",
    "{[1]: 2}": "a key must be text",
    "&a [*a]": "an alias is inside what it stands for",
    "*a": "undefined alias",
    "a: b: c": "mapping values are not allowed here",
    "'": "found unexpected end of stream",
    "a\x07b": "special characters are not allowed",
    "--- 1\n--- 2": "expected a single document",
    "{a: " * 400 + "1" + "}" * 400: "nested deeper than 64 levels",
    "[" * 20_000: "nested deeper than 64 levels",
    laughs(9): "with its aliases followed it holds more than 100000 values",
}


@pytest.mark.parametrize(("text", "message"), REFUSED.items(), ids=[text[:20] for text in REFUSED])
def test_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse(text)
    assert "\n" not in str(caught.value)


def test_a_file_is_named(tmp_path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("a: !!int abc")
    with pytest.raises(ConfigError, match=r"^.*bad\.yaml: not valid YAML: invalid literal"):
        load(Schema, path)
    path.write_bytes(b"\xef\xbb\xbfsize: 3")
    assert load(Schema, path).size == 3  # a byte order mark, as some editors write it
    with pytest.raises(PathError, match="config: a name of 300 bytes"):
        load(Schema, tmp_path / ("x" * 300))


@checked
@dataclass(frozen=True, kw_only=True)
class Schema:
    size: int = option(default=1, help="a number")
    name: str = option(default="", help="a text")
    flag: bool = option(default=False, help="a switch")
    many: tuple[int, ...] = option(default=(1,), help="numbers")
    plugins: list[str] = option(default=[], help="modules")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("a." * 1500 + "b=1", "a key of 1501 parts; no option lies that deep"),
        ("a..b=1", r"write key\.path=value"),
        (".a=1", r"write key\.path=value"),
        ("size=!!int abc", "override 'size=!!int abc': the value is no YAML: invalid literal"),
        ("size=" + "[" * 400, "the value is no YAML"),
        ("size=", r"size: expected int, but got None"),
        ("size=null", r"size: expected int, but got None"),
        ("size=1_0.5", r"size: expected int, but got '1_0\.5' \(str\)"),
        ("size=010", r"size: expected int, but got '010' \(str\)"),
        ("size=1:30", r"size: expected int, but got '1:30' \(str\)"),
        ("size=" + "9" * 100, "size: must be at most 9223372036854775807 in size"),
        ("flag=on", r"flag: expected true or false, but got 'on' \(str\)"),
        ("name=3", r"name: expected str, but got 3 \(int\)"),
        ("many.0=3", r"many: expected a list, but got \{'0': 3\}"),
        ("many[0]=3", r"many\[0\]: unknown option"),
        ("name=${size", "name: "),
        ("name=${name}", "name: "),
        ("name=${nothing}", "name: "),
        ("name=${oc.env:NO_SUCH_VARIABLE_HERE}", "name: .*NO_SUCH_VARIABLE_HERE"),
        ("name=${no_such_resolver:3}", "name: .*no_such_resolver"),
        ("name=${oc.decode:'[1'}", "name: "),
        ("plugins=[.]", r"plugins: cannot import '\.' \("),
        ("plugins=['']", r"plugins: cannot import '' \("),
        ("plugins=[..x]", r"plugins: cannot import '\.\.x' \("),
        ("plugins=[a b]", "plugins: cannot import 'a b'"),
    ],
)
def test_overrides_fail_in_one_line(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        from_layers(Schema, [parse_overrides([override])])
    assert "\n" not in str(caught.value)


def test_circle_of_interpolations() -> None:
    with pytest.raises(ConfigError, match=r"^(name|size|config): ") as caught:
        from_layers(Schema, [parse_overrides(["name=${size}", "size=${name}"])])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "body", ["raise RuntimeError('no GPU\\nat all')", "import sys; sys.exit(3)", "1 +", "import nope"]
)
def test_a_plugin_that_fails_is_named_with_its_own_error(body: str, tmp_path, monkeypatch) -> None:
    (tmp_path / "broken_lab.py").write_text(body)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r"^plugins: cannot import 'broken_lab' \(\w+: ") as caught:
        from_layers(Schema, [{"plugins": ["broken_lab"]}])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["no", "010", "1:30", "2026-11-26", "1_000", "0x1F", "1e5", ".5", "~", "<<", "a: b", "=", "é\n"]
)
def test_a_saved_text_stays_text(name: str, tmp_path) -> None:
    (tmp_path / "config.yaml").write_text(to_yaml(Schema(name=name)))
    assert load(Schema, tmp_path / "config.yaml").name == name
