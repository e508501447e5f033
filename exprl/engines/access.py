"""How a server is reached, and what tells it who asks: a key or a user and password, which no message may hold."""

from __future__ import annotations

import base64
import ipaddress
import os
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from exprl.engines.urls import Credentials
from exprl.errors import ConfigError


def proxied(url: str) -> bool:
    """Whether the environment puts a proxy before a server; never before one on this machine, which none can reach."""
    parts, proxies = urlsplit(url), getproxies()
    named = parts.scheme in proxies or "all" in proxies
    return named and not is_here(url) and not proxy_bypass(parts.netloc)


def is_here(url: str) -> bool:
    """Whether a server runs on this machine.

    >>> [is_here(f"http://{host}:8000/v1") for host in ("localhost", "127.0.0.1", "0.0.0.0", "[::1]", "judges")]
    [True, True, True, True, False]
    """
    host = urlsplit(url).hostname or ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback or address.is_unspecified


def key_in(variable: str) -> str:
    """The key in an environment variable; empty where it is not set.

    Raises:
        ConfigError: it has characters that no HTTP header can hold.
    """
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"api_key_env: the key in {variable} has characters that no HTTP header can hold.")
    return key


def authorization(key: str, credentials: Credentials | None) -> dict[str, str]:
    """The header that says who asks: the URL's user and password where it has them, else the key if there is one."""
    if credentials is not None:
        return {"Authorization": f"Basic {_basic(credentials)}"}
    return {"Authorization": f"Bearer {key}"} if key else {}


def secrets_of(key: str, credentials: Credentials | None) -> tuple[str, ...]:
    """What no message may hold."""
    found = [key, *((credentials[1], _basic(credentials)) if credentials is not None else ())]
    return tuple(secret for secret in found if secret)


def without(secrets: tuple[str, ...], text: str) -> str:
    """`text` with each secret blotted out: a server may quote the key it refuses, and messages are saved."""
    for secret in secrets:
        text = text.replace(secret, "(key)")
    return text


def _basic(credentials: Credentials) -> str:
    return base64.b64encode(":".join(credentials).encode()).decode()
