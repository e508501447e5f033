"""Whether there is a C compiler, with which Triton starts its kernels and Inductor builds its own, and what fails."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from shutil import which

from exprl.errors import ConfigError, ModelError


def has_compiler() -> bool:
    """One that is named by CC, or one of the usual names."""
    return any(map(which, (os.environ.get("CC") or "cc", "gcc", "clang")))


def check_compiler(key: str, instead: str) -> None:
    """Raise `ConfigError` where the option at `key` would compile, unlike with the value `instead`, and nothing can."""
    if not has_compiler():
        raise ConfigError(f"{key}: needs a C and C++ compiler, and none is found: install gcc, or set {key}={instead}.")


@contextmanager
def compile_errors() -> Iterator[None]:
    """What torch.compile cannot make inside is a `ModelError` of one line, not the code that it made and its build."""
    try:
        yield
    except RuntimeError as error:
        dynamo = sys.modules.get("torch._dynamo.exc")  # loaded by whoever compiles
        if dynamo is None or not isinstance(error, dynamo.TorchDynamoException):
            raise
        raise ModelError(
            f"torch.compile cannot compile this model here ({_reason(error)}). Leave out what compiles it: "
            "model.attn_implementation=sdpa instead of flex_attention, update.compile_layers=false, "
            "update.kernels=auto."
        ) from error


def _reason(error: RuntimeError) -> str:
    """The first line, and the first error of a compiler where there is its output."""
    first, *others = str(error).strip().splitlines() or [type(error).__name__]
    found = next((line.partition(" error: ")[2] for line in others if " error: " in line), "")
    return f"{first[:_LONGEST]}{': ' if found else ''}{found[:_LONGEST]}"


_LONGEST = 200
