"""One layer of plain values over another.

Swapping a component's name keeps the inherited options the new component also has and drops the others, so that an
ablation is one name; an option written beside the new name is always checked. An option that says something of what
another names (`option(of=...)`) is dropped as well when that names something else: the file of a folder, the commit of
a data set.

A wrapper (`wrapped(...)`) takes nobody's place: naming it puts it around the component that stood there, which keeps
all its options, and naming what stands within takes it off again.

A component that holds several of its own family (`choose_each(...)`), one for each domain for example, takes options
for all of them: what it does not have itself is set in each of those within it that has it. A wrapper that is named for
all of them stands around whatever the same layer names for one.

Options that a component lost to another's name are kept in mind, and are back where a later layer names one that has
them: from a judge to another kind of judge and back is no change.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from typing import Any

from exprl.config.fields import FieldSpec, fields_of, wrapped_option
from exprl.registry import Registry

Node = dict[str, Any]
EMPTY: Mapping[str, Any] = types.MappingProxyType({})


class _Component(Node):
    """A component node with the options that those named before it had, and it has not."""

    def __init__(self, node: Mapping[str, Any], lost: Mapping[str, Any]) -> None:
        super().__init__(node)
        self.lost = lost


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
    lost = lost_by(base)
    if name == base_name:
        kept = dict(base)
    elif outer is not None and (inner is None or name in _names_within(registry, base)):
        return _merge_choice(registry, _mapping(base.get(outer)), overlay, default)
    elif inner is not None:
        kept = {inner: base if base_name is None else _Component({**base, "name": base_name}, lost)}
        lost = EMPTY
    else:
        fields, known = fields_of(component.Config), {**lost, **base}
        kept = {key: value for key, value in known.items() if key in fields}
        lost = {k: v for k, v in known.items() if k not in {*fields, "name"} and not _is_of(registry, base_name, k)}
    inherited = default if name == default.get("name") else EMPTY
    kept, overlay = _spread(registry, fields_of(component.Config), kept, overlay)
    return _Component({**merge(component.Config, {**kept, "name": name}, overlay, inherited), "name": name}, lost)


def _is_of(registry: Registry[Any], name: Any, option: str) -> bool:
    """Whether an option of the component says something of another one's value, which may have changed since."""
    spec = fields_of(registry.get(name).Config).get(option) if name in registry.names() else None
    return spec is not None and spec.of is not None


def _spread(
    registry: Registry[Any], fields: Mapping[str, FieldSpec], base: Node, overlay: Mapping[str, Any]
) -> tuple[Node, Mapping[str, Any]]:
    """Both layers of a component, with what `overlay` sets for all of its family within it set in these.

    That is merged below what the layer says of one of them, but for wrappers, which stand around that. What none of
    them has is left where it stands, to be refused by `validate`; so is a wrapper where it cannot stand.
    """
    each = next((key for key, spec in fields.items() if spec.each is registry), None)
    shared = {key: value for key, value in overlay.items() if key != "name" and key not in fields}
    if each is None or not shared:
        return base, overlay
    spread, said, taken = dict(base), dict(overlay), set[str]()
    places = [(key, None) for key, spec in fields.items() if spec.registry is registry]
    routes = {**_mapping(base.get(each)), **_mapping(overlay.get(each))}
    for key, name in [*places, *((each, str(name)) for name in routes)]:
        below, own = (_mapping(_within(layer, key, name)) for layer in (base, overlay))
        chosen = own.get("name", below.get("name"))
        options = {
            option: value
            for option, value in shared.items()
            if _takes(registry, chosen, option, below) or _needs_too(registry, chosen, option, value)
        }
        if options:
            within = _around(registry, chosen, own, options) if own else EMPTY
            under = {option: value for option, value in options.items() if option in own or option not in within}
            made = _merge_choice(registry, below, {"name": chosen, **under}, EMPTY)
            spread[key] = made if name is None else {**_mapping(spread.get(key)), name: made}
            if own:
                said[key] = within if name is None else {**_by_name(said.get(key)), name: within}
            taken.update(options)
    return spread, {key: value for key, value in said.items() if key not in taken}


def _around(registry: Registry[Any], chosen: Any, own: Mapping[str, Any], shared: Mapping[str, Any]) -> Node:
    """What a layer says of one component, below the wrappers that it names for all of them.

    A component that holds several itself hands on what is `shared`, to those that the layer adds as well.
    """
    fields, changed = fields_of(registry.get(chosen).Config), dict(own)
    for option, value in shared.items():
        spec = fields.get(option)
        if spec is None:
            changed.setdefault(option, value)
        elif spec.registry is not None and isinstance(value, Mapping) and isinstance(own.get(option), Mapping):
            changed[option] = _below_wrapper(spec.registry, value.get("name"), own[option])
    return changed


def _below_wrapper(registry: Registry[Any], wrapper: Any, own: Mapping[str, Any]) -> Mapping[str, Any]:
    """The layer of a component as that of the wrapper around it; as it is where `wrapper` names none, or it does."""
    inner = wrapped_option(registry, wrapper)
    if inner is None or own.get("name") == wrapper:
        return own
    fields = fields_of(registry.get(wrapper).Config)
    beside = {key: value for key, value in own.items() if "name" not in own and key in fields}
    below = {key: value for key, value in own.items() if key not in beside}
    return {**beside, inner: {**_mapping(beside.get(inner)), **below}} if below else beside


def _within(layer: Mapping[str, Any], key: str, name: str | None) -> Any:
    return layer.get(key) if name is None else _by_name(layer.get(key)).get(name)


def _by_name(value: Any) -> Node:
    return {str(name): node for name, node in _mapping(value).items()}


def _takes(registry: Registry[Any], name: Any, option: str, node: Mapping[str, Any]) -> bool:
    """Whether a component has an option, or one within it may; one that is `${...}` is set where that stands."""
    if name not in registry.names() or (isinstance(node.get(option), str) and "${" in node[option]):
        return False
    fields = fields_of(registry.get(name).Config)
    return option in fields or any(spec.each is registry for spec in fields.values())


def _needs_too(registry: Registry[Any], name: Any, option: str, value: Any) -> bool:
    """Whether a component chooses of the family of a wrapper that is named for all, but by options of other names.

    It would be left without the wrapper in silence; so it is given the option, and refused.
    """
    if name not in registry.names() or not isinstance(value, Mapping):
        return False
    own = fields_of(registry.get(name).Config)
    if option in own:
        return False
    specs = [fields_of(registry.get(other).Config).get(option) for other in registry.names()]
    families = {id(spec.registry): spec.registry for spec in specs if spec is not None and spec.registry is not None}
    wrapped_in = [family for family in families.values() if wrapped_option(family, value.get("name")) is not None]
    return any(family is spec.registry for family in wrapped_in for spec in own.values())


def _merge_each(registry: Registry[Any], base: Mapping[str, Any], overlay: Mapping[str, Any]) -> Node:
    merged = _by_name(base)
    for name, node in _by_name(overlay).items():
        if isinstance(node, Mapping):
            merged[name] = _merge_choice(registry, _mapping(merged.get(name)), node, EMPTY)
        elif node is None and name in merged:
            del merged[name]
        else:
            merged[name] = node  # `coerce` refuses it
    return merged


def lost_by(node: Any) -> Mapping[str, Any]:
    """The options that components named before had at a node's place, and the one there has not."""
    return node.lost if isinstance(node, _Component) else EMPTY


def plain(node: Any) -> Any:
    """A merged tree as dictionaries that keep nothing in mind."""
    if isinstance(node, list):
        return [plain(item) for item in node]
    return {key: plain(value) for key, value in node.items()} if isinstance(node, dict) else node


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
