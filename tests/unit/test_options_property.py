"""Every option of every component and section: what its schema allows is taken, all else is refused with its key."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from exprl.config import load, to_node, to_yaml, validate
from exprl.config.fields import fields_of
from exprl.config.reading import parse
from exprl.errors import ConfigError
from exprl.experiment import Experiment
from tests.unit.option_strategies import fits, node, numbers_without_range, refused, schemas

SCHEMAS = schemas()
every_schema = pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)
with_options = pytest.mark.parametrize(
    "schema", [pytest.param(schema, id=name) for name, schema in SCHEMAS.items() if fields_of(schema)]
)

# The same examples on every machine; 60 schemas share a time that a test suite can spare.
bounded = settings(
    max_examples=12,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)


@every_schema
def test_every_number_has_both_ends_of_a_range(schema: type[Any]) -> None:
    assert numbers_without_range(schema) == []


@every_schema
def test_the_defaults_are_allowed(schema: type[Any]) -> None:
    for key in fields_of(schema):
        if key not in _required(schema):
            default = {**_required(schema), key: to_node(_default(schema, key))}
            assert to_node(validate(schema, default)) == to_node(validate(schema, _required(schema)))


@every_schema
@bounded
@given(data=st.data())
def test_what_is_allowed_survives_code_and_yaml(schema: type[Any], data: st.DataObject) -> None:
    """Or several options contradict each other, which is said in one line that begins with a key."""
    given = data.draw(node(schema))
    try:
        made = validate(schema, given)
    except ConfigError as error:
        assert_one_line(error, fields_of(schema))
        return
    assert validate(schema, to_node(made)) == made
    assert schema(**{key: getattr(made, key) for key in fields_of(schema)}) == made
    assert validate(schema, parse(to_yaml(made))) == made


@with_options
@bounded
@given(data=st.data())
def test_what_is_not_allowed_is_refused_in_the_same_words(schema: type[Any], data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(sorted(fields_of(schema))))
    spec = fields_of(schema)[key]
    value = data.draw(refused(spec))
    with pytest.raises(ConfigError) as in_yaml:
        validate(schema, {**_required(schema), key: value})
    assert_one_line(in_yaml.value, [key])
    if value is None and spec.registry is not None:
        return  # in code a required component may be handed over built
    with pytest.raises(ConfigError) as in_code:
        schema(**{**_required(schema), key: value})
    assert str(in_code.value) == str(in_yaml.value)


@every_schema
def test_unknown_options_are_refused(schema: type[Any]) -> None:
    with pytest.raises(ConfigError, match=r"^no_such_option: unknown option\. "):
        validate(schema, {**_required(schema), "no_such_option": 1})
    with pytest.raises(TypeError, match="no_such_option"):
        schema(**_required(schema), no_such_option=1)


def test_the_strategies_draw_from_all_of_it() -> None:
    """Each option has something that it must refuse, and each family and section is there."""
    assert len(SCHEMAS) >= 55
    for schema in SCHEMAS.values():
        for spec in fields_of(schema).values():
            assert not fits(spec, object)


def _required(schema: type[Any]) -> dict[str, Any]:
    """A value for each option that has no default, and for one of those of which one must be given."""
    simple = {"path": "p", "url": "http://x/v1", "model": "m", "experiment": "e", "key": "seed", "values": [1, 2]}
    simple |= {"arms": {"a": []}, "weights": "frozen", "class_path": "Timer", "text": "t"}
    chosen = {"model": {"name": "chain"}, "judge": {"name": "reference_steps"}}
    chosen["around"] = chosen["judge"]
    of_family = {"reward": "sparse", "verifier": "exact", "prompt": "template", "source": "champ"}
    each = {
        key: {"math": {"name": of_family[spec.each.family]}}
        for key, spec in fields_of(schema).items()
        if spec.each is not None
    }
    either = {"urls": ["http://x"]} if {"urls", "servers"} <= set(fields_of(schema)) else {}
    return (
        each
        | either
        | {
            key: (chosen if spec.registry is not None else simple)[key]
            for key, spec in fields_of(schema).items()
            if (spec.required and spec.each is None) or (schema is Experiment and key == "model")
        }
    )


def _default(schema: type[Any], key: str) -> Any:
    return getattr(validate(schema, _required(schema)), key)


def assert_one_line(error: ConfigError, keys: Iterable[str]) -> None:
    message = str(error)
    assert re.split(r"[:.\[]", message)[0] in keys
    assert "\n" not in message
    assert len(message) < 1000


def test_a_saved_file_is_read_as_what_it_was(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(validate(SCHEMAS["Experiment"], {"model": {"path": "a: b #c"}})))
    assert to_node(load(SCHEMAS["Experiment"], path))["model"]["path"] == "a: b #c"
