"""`exprl list`: what an experiment's YAML may say, by component family and by section, and what a run logs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from exprl.config import to_node
from exprl.config.fields import FieldSpec, describe, fields_of
from exprl.config.keys import split_key
from exprl.errors import ConfigError, did_you_mean
from exprl.experiment import Experiment
from exprl.registry import FAMILIES, Registry
from exprl.study.calibration import Calibration
from exprl.study.schema import Study
from exprl.terminal.console import Console

METRICS = "metrics"


def topics() -> dict[str, Callable[[Console], None]]:
    """What can be listed, by name: families of components, sections of an experiment, other files, metrics."""
    families = {registry.family: _family(registry) for registry in FAMILIES}
    schemas = {**sections_of(Experiment), "study": Study, "calibration": Calibration}
    sections = {name: _section(name, schema) for name, schema in schemas.items()}
    return {**families, **sections, METRICS: _metrics}


def names() -> str:
    """The topics for `--help`."""
    return ", ".join(topics())


def show(topic: str | None, console: Console) -> None:
    """Print one topic, the option at a dotted key of an experiment, or all but the metrics.

    Raises:
        ConfigError: there is none of that name, and no such key.
    """
    known = topics()
    if topic is None:
        for name, print_it in known.items():
            if name != METRICS:
                print_it(console)
        return
    chosen = _family_of_key(topic) or topic
    if chosen in known:
        known[chosen](console)
    elif "." in topic:
        _show_option(topic, console)
    else:
        at = [f"{key}.{topic}" for key, spec in fields_of(Experiment).items() if _has(_beneath(spec), topic)]
        hint = f"It is an option: {' or '.join(at)}." if at else did_you_mean(topic, known)
        raise ConfigError(f"`exprl list` has nothing called {topic!r}. {hint}")


def sections_of(schema: type[Any]) -> dict[str, type[Any]]:
    """The sections of an experiment by their keys, and `experiment` itself for what stands outside of them.

    >>> list(sections_of(Experiment))
    ['experiment', 'lora', 'data', 'leak', 'optimizer', 'update', 'evaluation', 'trainer']
    """
    inner = {name: spec.dataclass for name, spec in fields_of(schema).items() if spec.dataclass is not None}
    return {"experiment": schema, **inner}


def option_lines(config: type[Any], indent: str = "", *, without: Collection[str] = ()) -> Iterator[str]:
    """One line an option: name, default, meaning, and what it may be; those of options within it are indented.

    Options of a name in `without` are left out.
    """
    for field, spec in _options(config):
        if field.name not in without:
            yield from _lines_of(field, spec, indent)


def _lines_of(field: dataclasses.Field[Any], spec: FieldSpec, indent: str = "") -> Iterator[str]:
    if spec.dataclass is not None:
        head = f"{field.name} = null" if field.default is None else f"{field.name}:"
        yield f"{indent}{head}  {spec.help}"
        yield from option_lines(spec.dataclass, f"{indent}    ")
    else:
        allowed = describe(spec.annotation, rules=True)
        yield f"{indent}{field.name} = {default_of(field, spec)}  {spec.help} ({allowed})"


Places = dict[str, Registry[Any] | type[Any]]
"""What may stand at a key, by its family, or the section that does."""


def _show_option(key: str, console: Console) -> None:
    """Print the option at a dotted key, for each component that has one; `name` is the component's own."""
    first, *within, last = split_key(key)
    roots = _roots()
    if first not in roots:
        raise ConfigError(f"`exprl list` has nothing called {key!r}. {did_you_mean(first, roots)}")
    places = _places(roots[first], within)
    if last == "name":
        for registry in [place for place in places.values() if isinstance(place, Registry)]:
            _family(registry)(console)
        return
    having: dict[tuple[str, ...], list[str]] = {}
    for name, schema in _schemas(places):
        for field, spec in _options(schema):
            if field.name == last:
                having.setdefault(tuple(_lines_of(field, spec)), []).append(name)
    if not having:
        known = {option for _, schema in _schemas(places) for option in fields_of(schema)}
        raise ConfigError(f"`exprl list` has no option {key!r}. {did_you_mean(last, known)}")
    console.say((key, "bold"))
    for lines, names in having.items():
        if any(names):
            console.say("  ", (", ".join(names), "green"))
        for line in lines:
            console.say(f"      {line}")


def _roots() -> dict[str, Places]:
    """What a dotted key may begin with: a key of an experiment, or a family."""
    families: dict[str, Places] = {registry.family: {registry.family: registry} for registry in FAMILIES}
    return {**families, **{key: _beneath(spec) for key, spec in fields_of(Experiment).items()}}


def _beneath(spec: FieldSpec) -> Places:
    if spec.dataclass is not None:
        return {spec.dataclass.__qualname__: spec.dataclass}
    registry = spec.registry or spec.each
    return {registry.family: registry} if registry is not None else {}


def _places(places: Places, keys: Sequence[str]) -> Places:
    """What stands at the end of `keys`, those of options that hold several components with a name for one."""
    if not keys:
        return places
    below: Places = {}
    for _, schema in _schemas(places):
        if (spec := fields_of(schema).get(keys[0])) is not None:
            below |= _places(_beneath(spec), keys[2 if spec.each is not None else 1 :])
    return below


def _schemas(places: Places) -> Iterator[tuple[str, type[Any]]]:
    """The options of what may stand at a place, each component's with its name."""
    for place in places.values():
        if isinstance(place, Registry):
            yield from ((name, place.get(name).Config) for name in place.names())
        else:
            yield "", place


def _has(places: Places, option: str) -> bool:
    return any(option in fields_of(schema) for _, schema in _schemas(places))


def _options(schema: type[Any]) -> Iterator[tuple[dataclasses.Field[Any], FieldSpec]]:
    return zip(dataclasses.fields(schema), fields_of(schema).values(), strict=True)


def _family(registry: Registry[Any]) -> Callable[[Console], None]:
    def show_family(console: Console) -> None:
        console.say((registry.family, "bold"), *_where(registry))
        for name in registry.names():
            component = registry.get(name)
            console.say("  ", (name, "green"), f"  {_first_line(component)}")
            for line in option_lines(component.Config):
                console.say(f"      {line}")

    return show_family


def _section(name: str, schema: type[Any]) -> Callable[[Console], None]:
    def show_section(console: Console) -> None:
        console.say((name, "bold"), f"  {_first_line(schema)}")
        for line in option_lines(schema, without=sections_of(schema) if schema is Experiment else ()):
            console.say(f"      {line}")

    return show_section


def _metrics(console: Console) -> None:
    from exprl.training.glossary import METRICS as GLOSSARY

    console.say((METRICS, "bold"), "  what a run logs, in metrics.jsonl and TensorBoard")
    for metric in GLOSSARY:
        console.say("  ", (metric.name, "green"), f"  [{metric.unit}]  {metric.meaning}")


def _where(registry: Registry[Any]) -> list[str]:
    """Which key of an experiment the family is chosen at, where that has another name."""
    keys = [key for key, spec in fields_of(Experiment).items() if spec.registry is registry]
    return [f"  chosen at `{key}`" for key in keys if key != registry.family]


def _family_of_key(key: str) -> str | None:
    spec = fields_of(Experiment).get(key)
    return spec.registry.family if spec is not None and spec.registry is not None else None


def default_of(field: dataclasses.Field[Any], spec: FieldSpec) -> str:
    """As it would stand in the YAML."""
    if spec.required:
        return "required"
    if spec.name_for is not None:
        return "depends"
    if spec.default_node is not None:
        return str(spec.default_node["name"])
    value = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
    return json.dumps(to_node(value), ensure_ascii=False)


def _first_line(documented: type[Any]) -> str:
    return (documented.__doc__ or "").strip().split("\n", 1)[0]
