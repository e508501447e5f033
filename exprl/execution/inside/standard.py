"""`/dev/stdin` and its like, which are links into the `/proc` that a sandbox does not have: opened by their numbers."""

import builtins
import functools
import io
import os
from collections.abc import Callable
from typing import Any

_NAMES = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
_NUMBERED = ("/dev/fd/", "/proc/self/fd/")


def open_by_name() -> None:
    """From here on `open` and `os.open` know those names, unless the system does."""
    if os.access("/dev/stdin", os.F_OK):
        return
    plain = builtins.open

    @functools.wraps(plain)
    def opened(file: Any, *arguments: Any, **named: Any) -> Any:
        number = _number(file)
        return plain(file if number is None else os.dup(number), *arguments, **named)

    builtins.open = io.open = opened
    os.open = _descriptor(os.open)


def _descriptor(plain: Callable[..., int]) -> Callable[..., int]:
    @functools.wraps(plain)
    def opened(path: Any, flags: int, *arguments: Any, **named: Any) -> int:
        number = _number(path)
        return plain(path, flags, *arguments, **named) if number is None else os.dup(number)

    return opened


def _number(file: Any) -> int | None:
    """The descriptor that a path names; None: it names another file."""
    if not isinstance(file, (str, bytes, os.PathLike)):
        return None
    path = os.fsdecode(file)
    if path in _NAMES:
        return _NAMES[path]
    folder = next((one for one in _NUMBERED if path.startswith(one)), None)
    rest = path.removeprefix(folder) if folder else ""
    return int(rest) if rest.isdecimal() and rest.isascii() else None
