"""YAML text to plain values, refusing what would surprise.

Of YAML's types these are left: null, true and false, numbers, text, lists and mappings. Numbers and booleans are those
of YAML 1.2, so that `1e-6` is a number while `010`, `1:30`, `on` and `no` are the text they look like. No tag makes any
other object, a key is text and stands once, and aliases may neither contain themselves nor blow a small file up.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from exprl.config.shipped import suggestion
from exprl.errors import ConfigError, did_you_mean

DEEPEST = 64
"""Levels of nesting; an experiment has about six."""

LARGEST = 100_000
"""Values in a file once its aliases are followed."""

_PREFIX = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """PyYAML's parser and constructors with the plain scalars of YAML 1.2."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's


def _resolves(kind: str, pattern: str, first: str) -> None:
    _Loader.add_implicit_resolver(_PREFIX + kind, re.compile(rf"(?:{pattern})\Z"), list(first))


_resolves("null", r"~|null|Null|NULL|", "~nN")
_Loader.add_implicit_resolver(_PREFIX + "null", re.compile(r"\Z"), [""])
_resolves("bool", r"true|True|TRUE|false|False|FALSE", "tTfF")
_resolves("int", r"[-+]?(?:0|[1-9][0-9_]*)|0x[0-9a-fA-F]+", "-+0123456789")
_resolves("float", r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?", "-+.0123456789")
_resolves("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+.")
_resolves("merge", r"<<", "<")

_TAGS = {_PREFIX + kind for kind in ("null", "bool", "int", "float", "str", "seq", "map", "merge")}


def read_file(path: Path, wanted_by: Path | None = None) -> dict[str, Any]:
    """The mapping in a YAML file; raises `ConfigError` naming the file."""
    try:
        text = path.read_text(encoding="utf-8-sig") if path.is_file() else None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not valid YAML: no UTF-8 text ({error.reason} at byte {error.start}).") from error
    if text is None:
        raise ConfigError(f"No config file {path}{f' (extended by {wanted_by})' if wanted_by else ''}. {_hint(path)}")
    try:
        node = parse(text)
    except ConfigError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if node is None:
        return {}
    if not isinstance(node, dict):
        raise ConfigError(f"{path}: expected keys and values, but the file holds a {type(node).__name__}.")
    return node


def _hint(missing: Path) -> str:
    """What may be meant: of a folder its own config, a file beside a YAML file, or a config that comes with exprl."""
    if (missing / "config.yaml").is_file():
        return f"It is a folder: give {missing / 'config.yaml'}."
    beside = [file.name for file in missing.parent.glob("*.y*ml")] if missing.parent.is_dir() else []
    if beside and missing.suffix:
        return did_you_mean(missing.name, beside)
    return f"{'' if beside else f'The folder {missing.parent} has no YAML files. '}{suggestion(missing)}"


def parse(text: str) -> Any:
    """The plain value that YAML text stands for; raises `ConfigError` with a line of what is wrong and where."""
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            return None
        _Inspection().size(root)
        return loader.construct_document(root)
    except yaml.MarkedYAMLError as error:
        said = ", ".join(filter(None, (error.context, error.problem)))
        raise ConfigError(f"{said}{_place(error.problem_mark)}") from error
    except RecursionError as error:
        raise ConfigError(f"it is nested deeper than {DEEPEST} levels") from error
    except (yaml.YAMLError, ValueError) as error:
        # a character that YAML does not allow; a tag's or a number's text that it cannot be made of
        raise ConfigError(str(error).splitlines()[0]) from error


class _Inspection:
    """Walks a document before anything is made of it; raises `ConfigError`."""

    def __init__(self) -> None:
        self._sizes: dict[int, int] = {}
        self._above: set[int] = set()

    def size(self, node: yaml.Node) -> int:
        """Values at and below `node`, those of an alias each time that it stands there."""
        if id(node) in self._above:
            raise ConfigError(f"an alias is inside what it stands for{_place(node.start_mark)}")
        if len(self._above) >= DEEPEST:
            raise ConfigError(f"it is nested deeper than {DEEPEST} levels{_place(node.start_mark)}")
        if node.tag not in _TAGS:
            tag = node.tag.replace(_PREFIX, "!!")
            raise ConfigError(f"the tag {tag} is not allowed{_place(node.start_mark)}; write plain values")
        if id(node) not in self._sizes:
            self._above.add(id(node))
            self._sizes[id(node)] = 1 + sum(map(self.size, self._children(node)))
            self._above.discard(id(node))
        if self._sizes[id(node)] > LARGEST:
            raise ConfigError(f"with its aliases followed it holds more than {LARGEST} values")
        return self._sizes[id(node)]

    def _children(self, node: yaml.Node) -> list[yaml.Node]:
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, _ in node.value:
                self._check_key(key, seen)
            return [value for _, value in node.value]
        return list(node.value) if isinstance(node, yaml.SequenceNode) else []

    @staticmethod
    def _check_key(key: yaml.Node, seen: set[str]) -> None:
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError(f"a key must be text{_place(key.start_mark)}")
        if key.value in seen:
            raise ConfigError(f"the key {key.value!r} stands twice{_place(key.start_mark)}")
        seen.add(key.value)
        if key.tag != _PREFIX + "merge":
            key.tag = _PREFIX + "str"


def _place(mark: yaml.Mark | None) -> str:
    return "" if mark is None else f" (line {mark.line + 1}, column {mark.column + 1})"
