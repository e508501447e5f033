"""One layer of plain values over another.

Swapping a component's name keeps the inherited options the new component also has and drops the others, so that an
ablation is one name; an option written beside the new name is always checked. An option that says something of what
another names (`option(of=...)`) is dropped as well when that names something else: the file of a folder, the commit of
a data set.

A wrapper (`wrapped(...)`) takes nobody's place: naming it puts it around the component that stood there, which keeps
all its options, and naming what stands within takes it off again.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from typing import Any

from exprl.config.fields import FieldSpec, fields_of, wrapped_option
from exprl.registry import Registry

Node = dict[str, Any]
EMPTY: Mapping[str, Any] = types.MappingProxyType({})


def merge(
    schema: type[Any], base: Mapping[str, Any], overlay: Mapping[str, Any], defaults: Mapping[str, Any] = EMPTY
) -> Node:
    """`overlay` over `base`; nested dataclasses, component nodes and mappings by key merge, other values are replaced.

    `defaults` are the options that `choose` gave the enclosing component: where neither layer names a nested
    component, they do.
    """
    fields = fields_of(schema)
    merged = {key: value for key, value in base.items() if not _left_behind(fields.get(key), base, overlay)}
    for key, value in overlay.items():
        spec = fields.get(key)
        below = _mapping(base.get(key))
        if spec is None or not isinstance(value, Mapping):
            merged[key] = value
        elif spec.registry is not None:
            merged[key] = _merge_choice(spec.registry, below, value, defaults.get(key) or spec.default_node or EMPTY)
        elif spec.each is not None:
            merged[key] = _merge_each(spec.each, below, value)
        elif spec.by_key:
            merged[key] = {**below, **value}
        elif spec.dataclass is not None:
            merged[key] = merge(spec.dataclass, below, value)
        else:
            merged[key] = value
    return merged


def _left_behind(spec: FieldSpec | None, base: Mapping[str, Any], overlay: Mapping[str, Any]) -> bool:
    """Whether an option of `base` is about something in whose place `overlay` names another."""
    subject = spec.of if spec is not None else None
    return subject is not None and subject in base and subject in overlay and base[subject] != overlay[subject]


def _merge_choice(
    registry: Registry[Any], base: Mapping[str, Any], overlay: Mapping[str, Any], default: Mapping[str, Any]
) -> Node:
    base_name = base.get("name", default.get("name"))
    name = overlay.get("name", base_name)
    if name not in registry.names():
        return {**base, **overlay}  # `validate_choice` refuses it and knows the key path
    component, inner, outer = registry.get(name), wrapped_option(registry, name), wrapped_option(registry, base_name)
    if name == base_name:
        kept = dict(base)
    elif outer is not None and (inner is None or name in _names_within(registry, base)):
        return _merge_choice(registry, _mapping(base.get(outer)), overlay, default)
    elif inner is not None:
        kept = {inner: dict(base) if base_name is None else {**base, "name": base_name}}
    else:
        kept = {key: value for key, value in base.items() if key in fields_of(component.Config)}
    inherited = default if name == default.get("name") else EMPTY
    return {**merge(component.Config, {**kept, "name": name}, overlay, inherited), "name": name}


def _merge_each(registry: Registry[Any], base: Mapping[str, Any], overlay: Mapping[str, Any]) -> Node:
    merged = {str(name): node for name, node in base.items()}
    for name, node in ((str(name), node) for name, node in overlay.items()):
        if isinstance(node, Mapping):
            merged[name] = _merge_choice(registry, _mapping(merged.get(name)), node, EMPTY)
        elif node is None and name in merged:
            del merged[name]
        else:
            merged[name] = node  # `coerce` refuses it
    return merged


def with_default(registry: Registry[Any], node: Mapping[str, Any], default: Mapping[str, Any]) -> Node:
    """A component node with the options of `default` where it is of that name, or the innermost within wrappers is.

    Raises:
        ConfigError: no component has the node's name.
    """
    name = node.get("name", default["name"])
    if name == default["name"]:
        return {**merge(registry.get(name).Config, default, node), "name": name}
    inner = wrapped_option(registry, name)
    if inner is None or not isinstance(node.get(inner, EMPTY), Mapping):
        return dict(node)
    return {**node, inner: with_default(registry, node.get(inner, EMPTY), default)}


def _names_within(registry: Registry[Any], node: Mapping[str, Any]) -> Iterator[Any]:
    """The names of the components that a wrapper's node stands around, the outermost first."""
    while (inner := wrapped_option(registry, node.get("name"))) is not None:
        node = _mapping(node.get(inner))
        yield node.get("name")


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else EMPTY
