"""Hypothesis strategies read off the schemas: for every option values that it allows, and values that it does not.

What is allowed is decided here a second time, from the annotations alone, so that the code under test has something to
differ from.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from hypothesis import strategies as st

from exprl.component import Component
from exprl.config.fields import Choice, FieldSpec, fields_of, registry_of, rules_of
from exprl.config.ranges import Form, Range
from exprl.engines.http import ServerOptions
from exprl.engines.vllm_options import HostOptions
from exprl.experiment import Experiment
from exprl.registry import FAMILIES
from exprl.study.schema import Study

INT64 = 2**63 - 1

# What files and terminals can hold; a `$` would begin an interpolation, `???` is OmegaConf's "to be given".
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0$?", codec="utf-8"), max_size=8)
NUMBERS = (True, 0, -1, 7, 2**32, 10**30, 0.5, -0.5, 1e300, math.nan, math.inf)
WRONG = (None, *NUMBERS, "", "\0", "\ud800", "auto", [], {}, ["x"], {"x": 1})


def schemas() -> dict[str, type[Any]]:
    """Every Config of every registered component, and every section, by a name for messages."""
    found = {
        f"{registry.family} {name}": registry.get(name).Config for registry in FAMILIES for name in registry.names()
    }
    for root in (Experiment, Study, ServerOptions.Config, HostOptions.Config, *list(found.values())):
        found |= {schema.__qualname__: schema for schema in _sections(root) if schema not in found.values()}
    return found


def _sections(schema: type[Any]) -> Iterator[type[Any]]:
    yield schema
    for spec in fields_of(schema).values():
        for part in _parts(spec.annotation):
            if isinstance(part, type) and dataclasses.is_dataclass(part) and part is not Choice:
                yield from _sections(part)


def _parts(annotation: Any) -> Iterator[Any]:
    yield annotation
    if get_origin(annotation) is not Literal:
        for argument in get_args(annotation):
            yield from _parts(argument)


def numbers_without_range(schema: type[Any]) -> list[str]:
    """The options that hold a number without both ends of a range."""
    return [key for key, spec in fields_of(schema).items() if _unbounded(spec.annotation)]


def _unbounded(annotation: Any) -> bool:
    if get_origin(annotation) is Annotated:
        if get_args(annotation)[0] in (int, float):
            return not any(None not in _ends(rule) for rule in rules_of(annotation) if isinstance(rule, Range))
        return registry_of(annotation) is None and _unbounded(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return False
    return annotation in (int, float) or any(map(_unbounded, get_args(annotation)))


def _ends(rule: Range) -> tuple[float | None, float | None]:
    return (rule.ge if rule.ge is not None else rule.gt, rule.le if rule.le is not None else rule.lt)


# ------------------------------------------------------------------ what is allowed


def node(schema: type[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Options as YAML has them, each allowed by itself; those with a default may be left out."""
    required, optional = {}, {}
    for key, spec in fields_of(schema).items():
        if key == "plugins":
            continue  # would be imported
        (required if spec.required else optional)[key] = allowed(spec)
    return st.fixed_dictionaries(required, optional=optional)


def allowed(spec: FieldSpec) -> st.SearchStrategy[Any]:
    """What an option may be."""
    if spec.registry is not None:
        one = choice(spec.registry)
        return one | st.none() if type(None) in get_args(spec.annotation) else one
    if spec.each is not None:
        return st.dictionaries(TEXT.filter(str.strip), choice(spec.each), min_size=1, max_size=2)
    return values(spec.annotation)


def choice(registry: Any) -> st.SearchStrategy[dict[str, Any]]:
    """A component of a family with its options."""

    def of(name: str) -> st.SearchStrategy[dict[str, Any]]:
        return node(registry.get(name).Config).map(lambda options: {"name": name, **options})

    return st.sampled_from(registry.names()).flatmap(of)


def values(annotation: Any) -> st.SearchStrategy[Any]:
    """Values of a type within its rules, the ends of a range among them."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        registry = registry_of(annotation)
        return choice(registry) if registry is not None else _ruled(arguments[0], rules_of(annotation))
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin in (Union, types.UnionType):
        return st.one_of(*map(values, arguments))
    if origin is list:
        return st.lists(values(arguments[0]), max_size=3)
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return st.lists(values(arguments[0]), max_size=3)
        return st.tuples(*map(values, arguments)).map(list)
    if origin is dict:
        return st.dictionaries(TEXT, values(arguments[1]), max_size=2)
    if dataclasses.is_dataclass(annotation):
        return node(annotation)  # type: ignore[arg-type]
    plain = {int: st.integers(-INT64, INT64), float: st.floats(allow_nan=False, allow_infinity=False), str: TEXT}
    others = {bool: st.booleans(), type(None): st.none(), Any: st.none() | st.integers(0, 9) | TEXT}
    strategy: st.SearchStrategy[Any] = (plain | others)[annotation]
    return strategy


def _ruled(kind: Any, rules: list[Any]) -> st.SearchStrategy[Any]:
    [rule] = rules
    if isinstance(rule, Form):
        alphabet = st.characters(codec="ascii", exclude_characters="\0$?")
        return st.from_regex(rule.pattern, fullmatch=True, alphabet=alphabet)
    low, high = _ends(rule)
    assert low is not None
    assert high is not None
    if kind is int:
        first, last = int(low) + (rule.ge is None), int(high) - (rule.le is None)
        return st.integers(first, last) | st.sampled_from([first, last])
    return st.floats(low, high, exclude_min=rule.ge is None, exclude_max=rule.le is None)


# ------------------------------------------------------------------ what is not


def refused(spec: FieldSpec) -> st.SearchStrategy[Any]:
    """Values that an option must not be: of other types, beyond each end of its range, unknown choices."""
    beyond = [end for rule in _rules(spec.annotation) if isinstance(rule, Range) for end in _beyond(rule)]
    return st.sampled_from([value for value in (*WRONG, *beyond) if not fits(spec, value)])


def _rules(annotation: Any) -> Iterator[Any]:
    for part in _parts(annotation):
        if get_origin(part) is Annotated:
            yield from rules_of(part)


def _beyond(rule: Range) -> Iterator[float]:
    low, high = _ends(rule)
    assert low is not None
    assert high is not None
    yield from (low - 1, high + 1, low if rule.ge is None else math.nextafter(low, -math.inf))
    yield high if rule.le is None else math.nextafter(high, math.inf)


def fits(spec: FieldSpec, value: Any) -> bool:
    """Whether an option may be `value`, for the values that `refused` draws from."""
    if spec.registry is not None:
        if value == {} and spec.default_node is not None:
            return True  # all as in the default
        return value is None and type(None) in get_args(spec.annotation)
    return _fits(spec.annotation, value)


def _fits(annotation: Any, value: Any) -> bool:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is Any:
        return True
    if origin is Annotated:
        return registry_of(annotation) is None and _fits(arguments[0], value) and _within(rules_of(annotation), value)
    if origin is Literal:
        return any(value == known and type(value) is type(known) for known in arguments)
    if origin in (Union, types.UnionType):
        return any(_fits(argument, value) for argument in arguments)
    if origin in (list, tuple):
        free = origin is list or arguments[-1] is Ellipsis
        right = isinstance(value, list) and (free or len(value) == len(arguments))
        return right and all(_fits(arguments[0], item) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(arguments[1], item) for item in value.values())
    if dataclasses.is_dataclass(annotation):
        return value == {}
    if annotation is float:
        return type(value) in (int, float) and math.isfinite(value)
    if annotation is int:
        return type(value) is int and abs(value) <= INT64
    if annotation is str:
        return type(value) is str and "\0" not in value and value.isascii()
    return type(value) is annotation


def _within(rules: list[Any], value: Any) -> bool:
    [rule] = rules
    if isinstance(rule, Form):
        return value != ""
    low, high = _ends(rule)
    assert low is not None
    assert high is not None
    above = value >= low if rule.ge is not None else value > low
    return bool(above and (value <= high if rule.le is not None else value < high))


COMPONENTS = [component for family in FAMILIES for component in map(family.get, family.names())]
assert all(issubclass(component, Component) for component in COMPONENTS)
