"""Values as one line of JSON, so that nothing but plain values passes: no object, no code, no class of anybody's own.

Numbers, texts, booleans, None and lists are themselves; all else is an object {"type": ..., "items": [...]}, and so is
a whole number of more digits than Python writes.
"""

import json
from collections.abc import Callable
from typing import Any

_CONTAINERS: dict[Any, Any] = {"tuple": tuple, "set": set, "frozenset": frozenset}
_LONG = 2**13
"""Bits; hexadecimal digits have no limit, and take no time that grows with their square."""


def refused(value: Any) -> Any:
    """What is no plain value does not pass."""
    raise TypeError(f"a {type(value).__name__} is no plain value")


def dump(message: dict[str, Any], other: Callable[[Any], Any] = refused) -> bytes:
    """One line for a mapping of names to values; `other` makes plain what is not, or raises TypeError."""
    return json.dumps({name: _encoded(value, other) for name, value in message.items()}).encode() + b"\n"


def load(line: bytes) -> dict[str, Any]:
    """The mapping of a line; raises ValueError (or RecursionError) for whatever is not one."""
    message = json.loads(line)
    if not isinstance(message, dict):
        raise ValueError("not a message")
    return {name: _decoded(value) for name, value in message.items()}


def _encoded(value: Any, other: Callable[[Any], Any]) -> Any:
    if isinstance(value, int) and value.bit_length() > _LONG:
        return {"type": "int", "items": [hex(value)]}
    if value is None or isinstance(value, (bool, str, int, float)):
        return value
    if isinstance(value, list):
        return [_encoded(item, other) for item in value]
    if isinstance(value, dict):
        return {"type": "dict", "items": [[_encoded(key, other), _encoded(item, other)] for key, item in value.items()]}
    if isinstance(value, (bytes, bytearray)):
        return {"type": "bytes", "items": list(value)}
    if isinstance(value, complex):
        return {"type": "complex", "items": [value.real, value.imag]}
    for name, kind in _CONTAINERS.items():
        if isinstance(value, kind):
            return {"type": name, "items": [_encoded(item, other) for item in value]}
    plain = other(value)
    return refused(value) if type(plain) is type(value) else _encoded(plain, other)


def _decoded(node: Any) -> Any:
    if isinstance(node, list):
        return [_decoded(item) for item in node]
    if not isinstance(node, dict):
        return node
    kind, items = node.get("type"), node.get("items")
    if not isinstance(items, list):
        raise ValueError("not a value")
    try:
        if kind == "dict":
            return {_decoded(key): _decoded(item) for key, item in items}
        if kind == "int":
            [digits] = items
            return int(digits, 16)
        if kind == "bytes":
            return bytes(items)
        if kind == "complex":
            return complex(*items)
        return _CONTAINERS[kind](_decoded(item) for item in items)
    except (TypeError, KeyError) as error:
        raise ValueError("not a value") from error
