"""Whether there is a C compiler, with which Triton starts its kernels and Inductor builds its own."""

from __future__ import annotations

import os
from shutil import which

from exprl.errors import ConfigError


def has_compiler() -> bool:
    """One that is named by CC, or one of the usual names."""
    return any(map(which, (os.environ.get("CC") or "cc", "gcc", "clang")))


def check_compiler(key: str) -> None:
    """Raise `ConfigError` where the option at `key` would compile and nothing can."""
    if not has_compiler():
        raise ConfigError(f"{key}: needs a C and C++ compiler, and none is found: install gcc, or set {key}=false.")
