"""Cells that are a chat: a list of messages, `{role, content}` or ShareGPT's `{from, value}`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_FORMS = (("role", "content"), ("from", "value"))
_USERS = frozenset({"user", "human"})
_REPLIES = frozenset({"assistant", "gpt"})
_SHOWN = _USERS | _REPLIES | {"system", "developer", "tool"}

_WRITTEN = tuple(
    (
        re.compile(rf"""["']{role}["']\s*:\s*["']({"|".join(sorted(_SHOWN))})["']"""),
        re.compile(rf"""["']{text}["']\s*:"""),
    )
    for role, text in _FORMS
)
"""What a chat that is written out has, by its form: a role that is a usual one, and a text."""


def roles_of(cell: Any) -> list[str] | None:
    """The roles of a chat's messages; None for a cell that is none.

    >>> roles_of([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}])
    ['system', 'user']
    """
    form = _form(cell)
    return [str(message[form[0]]) for message in cell] if form else None


def only_request(cell: Any) -> Any:
    """The content of a chat that is one message of the user's; any other cell as it is."""
    form, roles = _form(cell), roles_of(cell)
    return cell[0][form[1]] if form and roles is not None and len(roles) == 1 and roles[0] in _USERS else cell


def path_of(cell: Any, column: str, role: str) -> str | None:
    """The column that is the one message which can be meant: the last request for a question, else the last reply."""
    form, roles = _form(cell), roles_of(cell)
    wanted = _USERS if role == "question" else _REPLIES
    places = [place for place, name in enumerate(roles or ()) if name in wanted]
    return f"{column}.{places[-1]}.{form[1]}" if form and places else None


def shown_roles(roles: list[str]) -> str:
    """Roles for a message; what is no usual role may be text of any kind."""
    return ", ".join(role if role in _SHOWN else "another" for role in roles)


def is_chat_text(text: str) -> bool:
    """Whether a text is a chat written out, as JSON or as Python prints one: its messages are not what it says.

    >>> is_chat_text('[{"role": "user", "content": "1+1?"}]')
    True
    >>> is_chat_text("{'messages': [{'from': 'gpt', 'value': '2'}]}")
    True
    >>> is_chat_text('What is {"role": "user", "content": 1} in JSON?')
    False
    """
    text = text.strip()
    bracketed = text[:1] in ("[", "{") and text[-1:] in ("]", "}")
    return bracketed and any(role.search(text) and content.search(text) for role, content in _WRITTEN)


def _form(cell: Any) -> tuple[str, str] | None:
    if not isinstance(cell, (list, tuple)) or not cell or not all(isinstance(item, Mapping) for item in cell):
        return None
    return next((form for form in _FORMS if all(key in item for item in cell for key in form)), None)
