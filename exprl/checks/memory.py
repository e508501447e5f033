"""Memory of a device that ran out, and which option takes less."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from exprl.errors import OutOfMemoryError

_ON_A_CPU = "can't allocate memory"  # torch has no class of its own for it there


@contextmanager
def memory_for(doing: str, less: str) -> Iterator[None]:
    """Memory that runs out inside is said in one line.

    Args:
        doing: what needed it.
        less: which options take less of it.

    Raises:
        OutOfMemoryError: it ran out.
    """
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        import torch

        if not (isinstance(error, torch.OutOfMemoryError) or _ON_A_CPU in str(error)):
            raise
        # Of a GPU the two sentences with what was asked for and what there was; the rest is about its allocator.
        said = ". ".join(str(error).splitlines()[0].split(". ")[:3]).strip().rstrip(".")
        raise OutOfMemoryError(f"{doing}: memory ran out ({said}). {less}") from error
