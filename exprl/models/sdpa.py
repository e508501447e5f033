"""transformers' attention `sdpa`, computed otherwise for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

SDPA = "sdpa"


@contextmanager
def sdpa_by(attend: Callable[..., Any]) -> Iterator[None]:
    """Inside, the models of this process that attend by `sdpa` do so by `attend`, which other threads may meet too.

    Where somebody has replaced it already, it stays so.
    """
    if ALL_ATTENTION_FUNCTIONS[SDPA] is not sdpa_attention_forward:
        yield
        return
    ALL_ATTENTION_FUNCTIONS[SDPA] = attend
    try:
        yield
    finally:
        with suppress(KeyError):  # another thread was here as well
            del ALL_ATTENTION_FUNCTIONS[SDPA]
