"""YAML to validated dataclasses: `extends`, dotted overrides, component choices, and errors that name the key.

Three steps, each a function: `load_layers` reads files and overrides, `merge` lays one over the other, `validate`
builds the dataclass. Swapping a component's name keeps the inherited options the new component also has and drops
the others, so that an ablation is one name; an option written beside the new name is always checked.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from exprl.component import Choice
from exprl.errors import ConfigError, did_you_mean
from exprl.registry import Registry, import_plugins
from exprl.schema import FieldSpec, allows_none, describe, fields_of

S = TypeVar("S")
Node = dict[str, Any]
EMPTY: Mapping[str, Any] = types.MappingProxyType({})


# ------------------------------------------------------------------ reading


def load(schema: type[S], path: str | Path, overrides: Sequence[str] = ()) -> S:
    """Read a YAML file with its `extends` chain and dotted overrides into `schema`.

    Args:
        schema: the dataclass of the whole file.
        path: the YAML file.
        overrides: `key.path=value` items; values are parsed as YAML and win over every file.

    Raises:
        ConfigError: naming the file or the full key path.
    """
    return from_layers(schema, [*load_layers(path), parse_overrides(overrides)])


def load_layers(path: str | Path) -> list[Node]:
    """A YAML file after those it `extends`, as plain dictionaries; raises `ConfigError` naming the file."""
    return _load_file(Path(path), seen=())


def from_layers(schema: type[S], layers: Sequence[Node]) -> S:
    """Merge plain dictionaries, later ones winning, and validate the result."""
    plugins = list(dict.fromkeys(module for layer in layers for module in _plugins(layer)))
    import_plugins(plugins)
    merged: Node = {}
    for layer in layers:
        merged = merge(schema, merged, layer)
    if plugins:
        merged["plugins"] = plugins  # a component named in a base file needs that file's plugin too
    return validate(schema, _resolve(merged) if _interpolates(merged) else merged)


def _interpolates(node: Any) -> bool:
    if isinstance(node, (dict, list)):
        return any(map(_interpolates, node.values() if isinstance(node, dict) else node))
    return isinstance(node, str) and "${" in node


def _resolve(node: Node) -> Node:
    """With every `${...}` replaced; slow, and a study makes its experiments by the hundred."""
    try:
        return cast(Node, OmegaConf.to_container(OmegaConf.create(node), resolve=True))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or 'config'}: {error.msg or error}") from error


def parse_overrides(overrides: Sequence[str]) -> Node:
    """Dotted `key.path=value` items as one nested dictionary.

    >>> parse_overrides(["trainer.max_steps=2", "reward.judge.name=no_reference"])
    {'trainer': {'max_steps': 2}, 'reward': {'judge': {'name': 'no_reference'}}}
    """
    for item in overrides:
        key, equals, _ = item.partition("=")
        if not equals or not key or key.startswith("-"):
            raise ConfigError(f"override {item!r}: write key.path=value, for example trainer.max_steps=2.")
        try:
            OmegaConf.from_dotlist([item])
        except (OmegaConfBaseException, YAMLError) as error:
            raise ConfigError(
                f"override {item!r}: the value is no YAML. Quote a string with signs in it: '{key}=\"...\"'."
            ) from error
    return cast(Node, OmegaConf.to_container(OmegaConf.from_dotlist(list(overrides)), resolve=False))


def _plugins(layer: Node) -> list[str]:
    plugins = coerce(str | list[str] | None, layer.get("plugins"), "plugins") or []
    return [plugins] if isinstance(plugins, str) else plugins


def _load_file(path: Path, seen: tuple[Path, ...]) -> list[Node]:
    path = path.resolve()
    if path in seen:
        raise ConfigError(f"extends: {' -> '.join(str(p) for p in (*seen, path))} is a circle; remove one of them.")
    if not path.is_file():
        siblings = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        hint = did_you_mean(path.name, siblings) if siblings else f"The folder {path.parent} has no YAML files."
        wanted_by = f" (extended by {seen[-1]})" if seen else ""
        raise ConfigError(f"No config file {path}{wanted_by}. {hint}")
    try:
        node = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (OmegaConfBaseException, YAMLError, UnicodeDecodeError, OSError) as error:
        # OmegaConf refuses a file that is a lone string or number with an OSError
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(node, dict):
        raise ConfigError(f"{path}: expected keys and values, but the file holds a {type(node).__name__}.")
    mapping = cast(Node, node)
    parents = coerce(str | list[str] | None, mapping.pop("extends", None), f"{path}: extends") or []
    parents = [parents] if isinstance(parents, str) else parents
    layers = [layer for parent in parents for layer in _load_file(path.parent / parent, (*seen, path))]
    return [*layers, mapping]


# ------------------------------------------------------------------ merging


def merge(
    schema: type[Any], base: Mapping[str, Any], overlay: Mapping[str, Any], defaults: Mapping[str, Any] = EMPTY
) -> Node:
    """`overlay` over `base`; nested dataclasses and component nodes merge, every other value is replaced.

    `defaults` are the options that `choose` gave the enclosing component: where neither layer names a nested
    component, they do.
    """
    fields = fields_of(schema)
    merged = dict(base)
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


# ------------------------------------------------------------------ validating


def validate(schema: type[S], node: Mapping[str, Any], path: str = "") -> S:
    """Build `schema` from plain values; raises `ConfigError` with the key path, the value and what is allowed."""
    fields = fields_of(schema)
    for key in node:
        if key not in fields:
            raise ConfigError(f"{_join(path, str(key))}: unknown option. {did_you_mean(str(key), fields)}")
    values = {}
    for key, spec in fields.items():
        where = _join(path, key)
        if key in node:
            values[key] = _convert(spec, node[key], where)
        elif spec.required:
            raise ConfigError(f"{where}: required, but missing. {spec.help}".rstrip())
    try:
        return schema(**values)
    except ValueError as error:
        raise ConfigError(f"{path or schema.__name__}: {error}") from error
    except ConfigError as error:
        # a dataclass that knows the key names it from its own level
        raise ConfigError(f"{path}.{error}" if path else str(error)) from error


def validate_choice(registry: Registry[Any], node: Any, path: str, default: Mapping[str, Any] | None = None) -> Choice:
    """A component node `{name: ..., option: ...}` as a `Choice`; without `name` the default's name holds."""
    if isinstance(node, Choice):
        return node
    if not isinstance(node, Mapping):
        raise ConfigError(f"{path}: expected a {registry.family} as {{name: ..., options}}, but got {node!r}.")
    name = node.get("name", default["name"] if default else None)
    if name is None:
        raise ConfigError(f"{path}.name: required, but missing. {did_you_mean('', registry.names())}")
    if not isinstance(name, str):
        raise _wrong_type(f"{path}.name", "str", name)
    try:
        component = registry.get(name)
    except ConfigError as error:
        raise ConfigError(f"{path}.name: {error}") from error
    if default and name == default["name"]:
        node = merge(component.Config, default, node)
    options = {key: value for key, value in node.items() if key != "name"}
    return Choice(name=name, config=validate(component.Config, options, path), cls=component)


def to_node(config: Any) -> Any:
    """The plain tree of a validated config, every default filled in; `validate` gives the same config back."""
    if isinstance(config, Choice):
        return {"name": config.name, **to_node(config.config)}
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_node(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, (list, tuple)):
        return [to_node(item) for item in config]
    if isinstance(config, dict):
        return {key: to_node(value) for key, value in config.items()}
    return config


def to_yaml(config: Any) -> str:
    """The resolved config as YAML, as saved in a run directory."""
    return OmegaConf.to_yaml(OmegaConf.create(_escape(to_node(config))))


def _escape(node: Any) -> Any:
    """Keep a resolved `${` from being read as an interpolation when the file is loaded again."""
    if isinstance(node, dict):
        return {key: _escape(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_escape(value) for value in node]
    return node.replace("${", r"\${") if isinstance(node, str) else node


# ------------------------------------------------------------------ types


def _convert(spec: FieldSpec, value: Any, path: str) -> Any:
    if value == "???":
        raise ConfigError(f"{path}: required, but missing. {spec.help}".rstrip())
    if spec.registry is not None and not (value is None and allows_none(spec.annotation)):
        return validate_choice(spec.registry, value, path, spec.default_node)
    return coerce(spec.annotation, value, path)


def coerce(annotation: Any, value: Any, path: str) -> Any:
    """`value` as `annotation` allows it (ints pass as floats, lists as tuples); raises `ConfigError` otherwise."""
    if annotation is Any:
        return value
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        registry = next((extra for extra in arguments[1:] if isinstance(extra, Registry)), None)
        return coerce(arguments[0], value, path) if registry is None else validate_choice(registry, value, path)
    if origin in (Union, types.UnionType):
        return _coerce_union(annotation, value, path)
    if origin is Literal:
        if any(value == choice and type(value) is type(choice) for choice in arguments):
            return value
        raise ConfigError(f"{path}: got {value!r}. {did_you_mean(str(value), map(str, arguments))}")
    if origin in (list, tuple):
        return _coerce_sequence(annotation, value, path)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise _wrong_type(path, "a mapping", value)
        return {str(key): coerce(arguments[1], item, f"{path}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(annotation):
        if not isinstance(value, Mapping):
            raise _wrong_type(path, "options", value)
        return validate(cast(type[Any], annotation), value, path)
    return _coerce_scalar(annotation, value, path)


def _coerce_union(annotation: Any, value: Any, path: str) -> Any:
    choices = [argument for argument in get_args(annotation) if argument is not type(None)]
    if value is None and allows_none(annotation):
        return None
    errors = []
    for choice in choices:
        try:
            return coerce(choice, value, path)
        except ConfigError as error:
            errors.append(error)
    inside = [error for error in errors if not str(error).startswith(f"{path}:")]
    if len(errors) == 1 or inside:
        raise (inside or errors)[0]  # says which item or option of the value is wrong
    raise _wrong_type(path, describe(annotation), value)


def _coerce_sequence(annotation: Any, value: Any, path: str) -> Any:
    origin, kinds = get_origin(annotation), get_args(annotation)
    if not isinstance(value, (list, tuple)):
        raise _wrong_type(path, "a list", value)
    if origin is list or kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    elif len(kinds) != len(value):
        raise ConfigError(f"{path}: expected {len(kinds)} values, but got {list(value)!r}.")
    return origin(coerce(kind, item, f"{path}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True)))


def _coerce_scalar(annotation: Any, value: Any, path: str) -> Any:
    if annotation is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if annotation is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if annotation in (bool, str) and isinstance(value, annotation):
        return value
    raise _wrong_type(path, describe(annotation), value)


def _wrong_type(path: str, expected: str, value: Any) -> ConfigError:
    return ConfigError(f"{path}: expected {expected}, but got {value!r} ({type(value).__name__}).")


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
