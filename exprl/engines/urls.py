"""Where a server is, apart from who asks: a user and password in a URL are used and never shown."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

from exprl.config.secrets import without_secrets
from exprl.errors import ConfigError


class Credentials(NamedTuple):
    """Who asks; shown nowhere."""

    user: str
    password: str

    def __repr__(self) -> str:
        return "Credentials(***)"


def split_credentials(url: str, key: str = "url") -> tuple[str, Credentials | None]:
    """`url`, an option called `key`, without user and password, and these.

    Raises:
        ConfigError: not the base URL of an HTTP server; the message holds no password.

    >>> split_credentials("http://me:p%40ss@judges:8000/v1/")
    ('http://judges:8000/v1', Credentials(***))
    >>> split_credentials("http://judges:8000/v1")
    ('http://judges:8000/v1', None)
    """
    parts = _parsed(url, key)
    host = parts.netloc.rpartition("@")[2]
    public = urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))
    if "@" not in parts.netloc:
        return public, None
    return public, Credentials(unquote(parts.username or ""), unquote(parts.password or ""))


def _parsed(url: str, key: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, half a bracket
        usable = False
    if not usable or parts.query or parts.fragment or re.search(r"\s", url):
        raise ConfigError(
            f"{key}: must begin with http:// or https://, name a host and end before any ? or #, but got "
            f"{without_secrets(url)!r}."
        )
    return parts
