"""What to set where an option is missing or stands elsewhere, as the layers of the config tell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from exprl.config.fields import FieldSpec, fields_of
from exprl.config.keys import joined, split_key
from exprl.config.merging import lost_by


def on_missing(path: str, config: Mapping[str, Any]) -> str:
    """Whose value of the option at `path` could be taken, or what was lost to the component that needs it; or "".

    Args:
        path: the dotted key of the option.
        config: the merged layers.
    """
    *above, option = split_key(path)
    return " ".join(filter(None, (_lost_routes(above, option, config), _of_a_sibling(above, option, config))))


def on_unknown(schema: type[Any], config: Mapping[str, Any], option: str) -> str | None:
    """Which sections of `schema`, as the merged layers have them, have an option that stands beside the sections."""
    found = [name for name, spec in fields_of(schema).items() if option in _options_of(spec, config.get(name))]
    return f"It stands deeper: {' or '.join(f'{section}.{option}' for section in found)}." if found else None


def _options_of(spec: FieldSpec, node: Any) -> Mapping[str, FieldSpec]:
    if spec.dataclass is not None:
        return fields_of(spec.dataclass)
    if spec.registry is None:
        return {}
    given = node if isinstance(node, Mapping) else {}
    name = given.get("name", (spec.default_node or {}).get("name"))
    return fields_of(spec.registry.get(name).Config) if name in spec.registry.names() else {}


def _lost_routes(above: list[str], option: str, config: Mapping[str, Any]) -> str:
    node, place = _at(config, above), _dotted(above)
    for each, routes in lost_by(node).items():
        if names := [name for name, _ in _having(routes, option)]:
            changed = " ".join(f"{joined(joined(place, each), name)}.name={node['name']}" for name in names)
            return (
                f"{node['name']!r} took the place of all of {joined(place, each)}. To change these instead: {changed}."
            )
    return ""


def _of_a_sibling(above: list[str], option: str, config: Mapping[str, Any]) -> str:
    if len(above) < 2:
        return ""
    *family, own = above
    for name, _ in _having(_at(config, family), option):
        if name != own and not any("." in part for part in (*family, name)):  # `${...}` knows no dots in names
            there = joined(joined(_dotted(family), name), option)
            return f"To take that of {name!r}: {joined(_dotted(above), option)}='${{{there}}}'."
    return ""


def _having(components: Any, option: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The components of a mapping that are given an option."""
    if isinstance(components, Mapping):
        for name, node in components.items():
            if isinstance(node, Mapping) and "name" in node and option in node:
                yield str(name), node


def _at(config: Any, keys: list[str]) -> Any:
    for key in keys:
        config = config.get(key) if isinstance(config, Mapping) else None
    return config


def _dotted(keys: list[str]) -> str:
    path = ""
    for key in keys:
        path = joined(path, key)
    return path
