"""Functions that torch.compile leaves as they are."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import TypeVar

import torch
from torch._compile import (
    _disable_dynamo,
)  # the public torch.compiler.disable loads the compiler, seconds at every start

F = TypeVar("F", bound=Callable[..., object])


def left_by_compilers(function: F) -> F:
    """`function`, at whose call a compiled caller breaks its graph; for what a trace would get wrong.

    Sweeps set a flag of cuBLAS, look at values and write in place, and their backward passes are differentiated once:
    traced, the flag's change is an error of Dynamo's that leaves the flag as it is.
    """
    as_it_is = _disable_dynamo(function)

    @functools.wraps(function)
    def called(*arguments: object, **options: object) -> object:
        # The second: a compiler that gave a caller up still looks at what it calls.
        if torch.compiler.is_compiling() or "torch._dynamo" in sys.modules:
            return as_it_is(*arguments, **options)
        return function(*arguments, **options)

    return called  # type: ignore[return-value]
