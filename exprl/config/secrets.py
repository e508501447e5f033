"""What no message may show of a value: users and passwords in URLs, however they are written, and keys."""

from __future__ import annotations

import re

_AFTER_SLASHES = re.compile(r"//.*@", re.DOTALL)
_WITHOUT_SLASHES = re.compile(r"[^\s'\"]*:[^\s'\"]*@")
_KEY = re.compile(r"(?i)((?:key|token|secret|password)=)[^&\s'\"]+")


def without_secrets(text: str) -> str:
    """`text` with what may be a secret left out; it errs on the side of leaving out too much.

    >>> without_secrets("http://me:hunter/2@host/v1?api_key=abc")
    'http://host/v1?api_key=***'
    >>> without_secrets("me:hunter2@host:8000/v1")
    'host:8000/v1'
    """
    text = _WITHOUT_SLASHES.sub("", _AFTER_SLASHES.sub("//", text))
    return _KEY.sub(r"\1***", text)
