"""An experiment from its files and overrides: `extends` chains, dotted keys, interpolations."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from exprl.config.advice import on_missing, on_unknown
from exprl.config.keys import split_override
from exprl.config.merging import Node, merge, plain
from exprl.config.reading import DEEPEST, parse, read_file
from exprl.config.shipped import located
from exprl.config.validate import MissingOptionError, coerce, validate
from exprl.errors import ConfigError
from exprl.files.disk import local_path
from exprl.registry import import_plugins

__all__ = ["from_layers", "load", "load_layers", "merge", "override_layers", "parse_overrides"]

S = TypeVar("S")


def load(schema: type[S], path: str | Path, overrides: Sequence[str] = ()) -> S:
    """Read a YAML file with its `extends` chain and dotted overrides into `schema`.

    Args:
        schema: the dataclass of the whole file.
        path: the YAML file, or the name of one that comes with exprl.
        overrides: `key.path=value` items; values are parsed as YAML and win over every file.

    Raises:
        ConfigError: naming the file or the full key path.
    """
    return from_layers(schema, [*load_layers(path), *override_layers(overrides)])


def load_layers(path: str | Path) -> list[Node]:
    """A YAML file after those it `extends`, as plain dictionaries; raises `ConfigError` naming the file.

    Each is a path, from the folder of the file that extends it, or the name of a config that comes with exprl.
    """
    return _load_file(located(local_path(path, "config")), seen=())


def load_resolved(path: str | Path) -> Node:
    """The one file that a run saved as its config; raises `ConfigError`, also where it `extends` another."""
    node = read_file(Path(path))
    if "extends" in node:
        raise ConfigError(f"{path}: extends: not allowed here, a run's config.yaml has no other files. Remove it.")
    return node


def from_layers(schema: type[S], layers: Sequence[Node]) -> S:
    """Merge plain dictionaries, later ones winning, and validate the result."""
    plugins = list(dict.fromkeys(module for layer in layers for module in plugins_of(layer)))
    import_plugins(plugins)
    merged: Node = {}
    for layer in layers:
        merged = merge(schema, merged, layer)
    if plugins:
        merged["plugins"] = plugins  # a component named in a base file needs that file's plugin too
    try:
        whole = _resolve(merged) if _interpolates(merged) else merged
        return validate(schema, whole, elsewhere=partial(on_unknown, schema, merged))
    except MissingOptionError as error:
        raise ConfigError(f"{error} {on_missing(error.path, merged)}".strip()) from error


def override_layers(overrides: Sequence[str]) -> list[Node]:
    """Overrides as the last layer, after the files that `extends=NAME` among them puts over the config.

    As in a file the names may be a list, `extends=[one,other]`, of configs that come with exprl or of paths, here from
    the working directory.

    Raises:
        ConfigError: naming the override or the file.
    """
    layer = parse_overrides(overrides)
    return [*_extended(layer, "extends", Path(), ()), layer]


def parse_overrides(overrides: Sequence[str]) -> Node:
    """Dotted `key.path=value` items as one nested dictionary; of two for one key the later holds.

    >>> parse_overrides(["trainer.max_steps=2", "reward.judge.name=no_reference"])
    {'trainer': {'max_steps': 2}, 'reward': {'judge': {'name': 'no_reference'}}}

    A part of a key that holds a dot, as a domain's name may, stands in quotation marks:

    >>> parse_overrides(['reward.domains."physics.mechanics".name=outcome'])
    {'reward': {'domains': {'physics.mechanics': {'name': 'outcome'}}}}

    A `#` is a character like any other, since a command line has no comments:

    >>> parse_overrides(["run_dir=r/exp #1"])
    {'run_dir': 'r/exp #1'}
    """
    tree: Node = {}
    for item in overrides:
        found = split_override(item)
        if found is None or item.startswith("-"):
            raise ConfigError(f"override {item!r}: write key.path=value, for example trainer.max_steps=2.")
        *above, last = keys = found[0]
        key, text = item.removesuffix(f"={found[1]}"), found[1]
        if len(keys) > DEEPEST:
            raise ConfigError(f"override {key[:60]}...: a key of {len(keys)} parts; no option lies that deep.")
        try:
            value = text if _has_comment(text) else parse(text)
        except ConfigError as error:
            quoted = f"Quote a string with signs in it: '{key}=\"...\"'."
            raise ConfigError(f"override {item!r}: the value is no YAML: {error}. {quoted}") from error
        node = tree
        for part in above:
            below = node.get(part)
            node[part] = node = below if isinstance(below, dict) else {}
        node[last] = value
    return tree


def _has_comment(text: str) -> bool:
    """Whether YAML would take the end of a value for a comment."""
    for mark in re.finditer(r"(?<!\S)#", text):
        try:
            if repr(parse(text[: mark.start()])) == repr(parse(text)):
                return True
        except ConfigError:
            continue  # inside quotes or brackets; or no YAML at all, which is said later
    return False


def _interpolates(node: Any) -> bool:
    if isinstance(node, (dict, list)):
        return any(map(_interpolates, node.values() if isinstance(node, dict) else node))
    return isinstance(node, str) and "${" in node


def _resolve(node: Node) -> Node:
    """With every `${...}` replaced; slow, and a study makes its experiments by the hundred."""
    try:
        return cast(Node, OmegaConf.to_container(OmegaConf.create(plain(node)), resolve=True))
    except OmegaConfBaseException as error:
        reason = str(error.msg or error).strip().splitlines()[0]
        raise ConfigError(f"{error.full_key or 'config'}: {reason}") from error
    except RecursionError as error:
        raise ConfigError("config: an interpolation ${...} leads back to itself.") from error


def plugins_of(layer: Node) -> list[str]:
    """The modules that a layer names under `plugins`; raises `ConfigError`."""
    plugins = coerce(str | list[str] | None, layer.get("plugins"), "plugins") or []
    return [plugins] if isinstance(plugins, str) else plugins


def _load_file(path: Path, seen: tuple[Path, ...]) -> list[Node]:
    path = path.resolve()
    if path in seen:
        raise ConfigError(f"extends: {' -> '.join(str(p) for p in (*seen, path))} is a circle; remove one of them.")
    mapping = read_file(path, seen[-1] if seen else None)
    return [*_extended(mapping, f"{path}: extends", path.parent, (*seen, path)), mapping]


def _extended(layer: Node, key: str, folder: Path, seen: tuple[Path, ...]) -> list[Node]:
    """The layers of the files that `layer` extends, which it says no longer afterwards."""
    parents = coerce(str | list[str] | None, layer.pop("extends", None), key) or []
    parents = [parents] if isinstance(parents, str) else parents
    return [found for parent in parents for found in _load_file(located(parent, folder), seen)]
