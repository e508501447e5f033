"""Dotted keys, as overrides write them and messages name them: a part that holds a dot stands in quotation marks."""

from __future__ import annotations

import re

_PART = r'(?:"[^"]*"|[^".=]+)'
_OVERRIDE = re.compile(rf"(?P<key>{_PART}(?:\.{_PART})*)=(?P<value>.*)", re.DOTALL)


def split_override(item: str) -> tuple[list[str], str] | None:
    """The parts of the key and the text of the value of `key.path=value`; None: it is none.

    >>> split_override('reward.domains."physics.mechanics".name=outcome')
    (['reward', 'domains', 'physics.mechanics', 'name'], 'outcome')
    """
    found = _OVERRIDE.fullmatch(item)
    return None if found is None else (split_key(found["key"]), found["value"])


def split_key(key: str) -> list[str]:
    """The parts of a dotted key."""
    return [part.strip('"') for part in re.findall(_PART, key)]


def joined(path: str, key: str) -> str:
    """A key below another one, as `split_override` reads it; line breaks, which messages have none of, escaped.

    >>> joined("reward.domains", "physics.mechanics"), joined("", "reward")
    ('reward.domains."physics.mechanics"', 'reward')
    """
    if len(f"{key}.".splitlines()) > 1:
        key = key.encode("unicode_escape").decode()
    part = f'"{key}"' if re.search(r"[.=]", key) else key
    return f"{path}.{part}" if path else part
