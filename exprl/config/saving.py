"""A validated config as plain values and as the YAML that gives the same config back."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from omegaconf import OmegaConf

from exprl.config.fields import Choice, FieldSpec, fields_of
from exprl.config.keys import joined


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


def flat(node: Any, path: str = "") -> dict[str, Any]:
    """The values of a tree by dotted keys; lists are values.

    >>> flat({"a": {"b": 1}, "c": [2]})
    {'a.b': 1, 'c': [2]}
    """
    if not isinstance(node, dict):
        return {path: node}
    return {k: v for key, value in node.items() for k, v in flat(value, joined(path, str(key))).items()}


def free_keys(config: Any) -> tuple[str, ...]:
    """The dotted keys of a config's options that may be others when a run is resumed."""
    return tuple(key for key, option in _options(config) if option.free)


def mapping_keys(config: Any) -> tuple[str, ...]:
    """The dotted keys of a config's options that are mappings: whoever writes a config chooses what is in them."""
    return tuple(key for key, option in _options(config) if option.mapping)


def _options(config: Any, path: str = "") -> Iterator[tuple[str, FieldSpec]]:
    """All options of a config, those of its parts as well, by their dotted keys; of a free one no parts."""
    if isinstance(config, Choice):
        yield from _options(config.config, path)
    elif isinstance(config, dict):
        for name, one in config.items():
            yield from _options(one, joined(path, str(name)))
    elif dataclasses.is_dataclass(config) and not isinstance(config, type):
        for name, spec in fields_of(type(config)).items():
            key = joined(path, name)
            yield key, spec
            if not spec.free:
                yield from _options(getattr(config, name), key)


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
