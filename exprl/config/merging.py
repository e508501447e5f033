"""One layer of plain values over another.

Swapping a component's name keeps the inherited options the new component also has and drops the others, so that an
ablation is one name; an option written beside the new name is always checked. An option that says something of what
another names (`option(of=...)`) is dropped as well when that names something else: the file of a folder, the commit of
a data set.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any

from exprl.config.fields import FieldSpec, fields_of
from exprl.registry import Registry

Node = dict[str, Any]
EMPTY: Mapping[str, Any] = types.MappingProxyType({})


def merge(
    schema: type[Any], base: Mapping[str, Any], overlay: Mapping[str, Any], defaults: Mapping[str, Any] = EMPTY
) -> Node:
    """`overlay` over `base`; nested dataclasses and component nodes merge, every other value is replaced.

    `defaults` are the options that `choose` gave the enclosing component: where neither layer names a nested
    component, they do.
    """
    fields = fields_of(schema)
    merged = {key: value for key, value in base.items() if not _left_behind(fields.get(key), base, overlay)}
    for key, value in overlay.items():
        spec = fields.get(key)
        below = base.get(key)
        below = below if isinstance(below, Mapping) else EMPTY
        if spec is None or not isinstance(value, Mapping):
            merged[key] = value
        elif spec.registry is not None:
            merged[key] = _merge_choice(spec.registry, below, value, defaults.get(key) or spec.default_node or EMPTY)
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
    component = registry.get(name)
    kept = dict(base) if name == base_name else {k: v for k, v in base.items() if k in fields_of(component.Config)}
    inner = default if name == default.get("name") else EMPTY
    return {**merge(component.Config, {**kept, "name": name}, overlay, inner), "name": name}
