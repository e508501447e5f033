"""YAML to validated dataclasses: `extends`, dotted overrides, component choices, and errors that name the key.

Three steps, each a function: `load_layers` reads files and overrides, `merge` lays one over the other, `validate`
builds the dataclass. Swapping a component's name keeps the inherited options the new component also has and drops
the others, so that an ablation is one name; an option written beside the new name is always checked.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from exprl.component import Choice
from exprl.errors import ConfigError, did_you_mean
from exprl.registry import Registry, import_plugins

S = TypeVar("S")
Node = dict[str, Any]


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
    layers = [*_load_file(Path(path), seen=()), parse_overrides(overrides)]
    return from_layers(schema, layers)


def from_layers(schema: type[S], layers: Sequence[Node]) -> S:
    """Merge plain dictionaries, later ones winning, and validate the result."""
    for layer in layers:
        plugins = layer.get("plugins") or []
        import_plugins(plugins if isinstance(plugins, list) else [plugins])
    merged: Node = {}
    for layer in layers:
        merged = merge(schema, merged, layer)
    try:
        resolved = OmegaConf.to_container(OmegaConf.create(merged), resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or 'config'}: {error.msg or error}") from error
    return validate(schema, cast(Node, resolved))


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
        return cast(Node, OmegaConf.to_container(OmegaConf.from_dotlist(list(overrides)), resolve=False))
    except (OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(f"overrides {' '.join(overrides)!r}: {error}") from error


def _load_file(path: Path, seen: tuple[Path, ...]) -> list[Node]:
    path = path.resolve()
    if path in seen:
        raise ConfigError(f"extends: {' -> '.join(str(p) for p in (*seen, path))} is a circle; remove one of them.")
    if not path.is_file():
        siblings = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        hint = did_you_mean(path.name, siblings) if siblings else f"The folder {path.parent} has no YAML files."
        raise ConfigError(f"No config file {path}. {hint}")
    try:
        node = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(node, dict):
        raise ConfigError(f"{path}: expected keys and values, but the file holds a {type(node).__name__}.")
    mapping = cast(Node, node)
    parents = mapping.pop("extends", None) or []
    parents = [parents] if isinstance(parents, str) else parents
    layers = [layer for parent in parents for layer in _load_file(path.parent / parent, (*seen, path))]
    return [*layers, mapping]


# ------------------------------------------------------------------ merging


def merge(schema: type[Any], base: Mapping[str, Any], overlay: Mapping[str, Any]) -> Node:
    """`overlay` over `base`; nested dataclasses and component nodes merge, every other value is replaced."""
    fields = _fields(schema)
    merged = dict(base)
    for key, value in overlay.items():
        spec = fields.get(key)
        below = base.get(key)
        if spec is None or not isinstance(value, Mapping):
            merged[key] = value
        elif spec.registry is not None:
            merged[key] = _merge_choice(spec, below if isinstance(below, Mapping) else {}, value)
        elif spec.dataclass is not None:
            merged[key] = merge(spec.dataclass, below if isinstance(below, Mapping) else {}, value)
        else:
            merged[key] = value
    return merged


def _merge_choice(spec: _Field, base: Mapping[str, Any], overlay: Mapping[str, Any]) -> Node:
    assert spec.registry is not None
    base_name = base.get("name", spec.default_name)
    name = overlay.get("name", base_name)
    if not isinstance(name, str):
        return {**base, **overlay}
    component = spec.registry.get(name)
    kept = dict(base) if name == base_name else {k: v for k, v in base.items() if k in _fields(component.Config)}
    return {**merge(component.Config, {**kept, "name": name}, overlay), "name": name}


# ------------------------------------------------------------------ validating


def validate(schema: type[S], node: Mapping[str, Any], path: str = "") -> S:
    """Build `schema` from plain values; raises `ConfigError` with the key path, the value and what is allowed."""
    fields = _fields(schema)
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


def validate_choice(registry: Registry[Any], node: Any, path: str, default: Mapping[str, Any] | None = None) -> Choice:
    """A component node `{name: ..., option: ...}` as a `Choice`; without `name` the default's name holds."""
    if isinstance(node, Choice):
        return node
    if not isinstance(node, Mapping):
        raise ConfigError(f"{path}: expected a {registry.family} as {{name: ..., options}}, but got {node!r}.")
    if default is not None and node.get("name", default["name"]) == default["name"]:
        node = {**default, **node}
    name = node.get("name")
    if not isinstance(name, str):
        raise ConfigError(f"{path}.name: required, but missing. {did_you_mean('', registry.names())}")
    try:
        component = registry.get(name)
    except ConfigError as error:
        raise ConfigError(f"{path}.name: {error}") from error
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
    return OmegaConf.to_yaml(OmegaConf.create(to_node(config)))


# ------------------------------------------------------------------ fields and types


@dataclass(frozen=True, kw_only=True)
class _Field:
    annotation: Any
    required: bool
    help: str
    registry: Registry[Any] | None
    dataclass: type[Any] | None
    default_node: Mapping[str, Any] | None

    @property
    def default_name(self) -> str | None:
        return self.default_node["name"] if self.default_node else None


def _fields(schema: type[Any]) -> dict[str, _Field]:
    hints = typing.get_type_hints(schema, include_extras=True)
    found = {}
    for field in dataclasses.fields(schema):
        annotation = hints[field.name]
        bare = _without_none(annotation)
        plain = get_args(bare)[0] if get_origin(bare) is Annotated else bare
        found[field.name] = _Field(
            annotation=annotation,
            required=field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING,
            help=field.metadata.get("help", ""),
            registry=field.metadata.get("registry"),
            dataclass=plain if dataclasses.is_dataclass(plain) and plain is not Choice else None,
            default_node=field.metadata.get("default_node"),
        )
    return found


def _convert(spec: _Field, value: Any, path: str) -> Any:
    if value == "???":
        raise ConfigError(f"{path}: required, but missing. {spec.help}".rstrip())
    if spec.registry is not None and not (value is None and _allows_none(spec.annotation)):
        return validate_choice(spec.registry, value, path, spec.default_node)
    return coerce(spec.annotation, value, path)


def coerce(annotation: Any, value: Any, path: str) -> Any:
    """`value` as `annotation` allows it (ints pass as floats, lists as tuples); raises `ConfigError` otherwise."""
    if annotation is Any:
        return value
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return coerce(arguments[0], value, path)
    if origin in (Union, types.UnionType):
        return _coerce_union(arguments, value, path)
    if origin is Literal:
        if value in arguments and not (isinstance(value, bool) and True not in arguments and False not in arguments):
            return value
        raise ConfigError(f"{path}: got {value!r}. {did_you_mean(str(value), map(str, arguments))}")
    if origin in (list, tuple):
        if not isinstance(value, (list, tuple)):
            raise _wrong_type(path, "a list", value)
        items = [coerce(arguments[0], item, f"{path}[{index}]") for index, item in enumerate(value)]
        return tuple(items) if origin is tuple else items
    if origin is dict:
        if not isinstance(value, Mapping):
            raise _wrong_type(path, "a mapping", value)
        return {str(key): coerce(arguments[1], item, f"{path}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(annotation):
        if not isinstance(value, Mapping):
            raise _wrong_type(path, "options", value)
        return validate(cast(type[Any], annotation), value, path)
    return _coerce_scalar(annotation, value, path)


def _coerce_union(arguments: tuple[Any, ...], value: Any, path: str) -> Any:
    if value is None and type(None) in arguments:
        return None
    choices = [argument for argument in arguments if argument is not type(None)]
    for index, argument in enumerate(choices):
        try:
            return coerce(argument, value, path)
        except ConfigError:
            if index == len(choices) - 1:
                raise
    raise _wrong_type(path, "a value", value)


def _coerce_scalar(annotation: Any, value: Any, path: str) -> Any:
    if annotation is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if annotation is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if annotation in (bool, str) and isinstance(value, annotation):
        return value
    raise _wrong_type(path, getattr(annotation, "__name__", str(annotation)), value)


def _wrong_type(path: str, expected: str, value: Any) -> ConfigError:
    return ConfigError(f"{path}: expected {expected}, but got {value!r} ({type(value).__name__}).")


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, types.UnionType):
        rest = [argument for argument in get_args(annotation) if argument is not type(None)]
        return rest[0] if len(rest) == 1 else annotation
    return annotation


def _allows_none(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType) and type(None) in get_args(annotation)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
