"""The classes of transformers, which vLLM changes where it runs a family by transformers' own code.

It makes the class of the decoder one that is compiled, for everybody in the process: a policy of that class could be
called no more, nor another be made. Here what vLLM made of a class holds for vLLM's own models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

_VLLMS = "do_not_compile"
"""What vLLM's models of a changed class have, and no others."""


@contextmanager
def classes_kept(model: nn.Module) -> Iterator[None]:
    """What vLLM does inside to the classes of `model` and its parts leaves other instances of them as they were."""
    before = {kind: (kind.__init__, kind.__call__) for kind in {type(module) for module in model.modules()}}
    try:
        yield
    finally:
        for kind, own in before.items():
            if kind.__call__ is not own[1]:
                _keep(kind, *own)


def _keep(kind: Any, own_init: Callable[..., None], own_call: Callable[..., Any]) -> None:
    from vllm.config import get_current_vllm_config_or_none

    vllm_init, vllm_call = kind.__init__, kind.__call__

    def __init__(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        inside = get_current_vllm_config_or_none() is not None
        (vllm_init if inside else own_init)(self, *args, **kwargs)

    def __call__(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return (vllm_call if _VLLMS in vars(self) else own_call)(self, *args, **kwargs)

    kind.__init__, kind.__call__ = __init__, __call__
