"""VLLM's process groups, kept apart from the trainer's.

vLLM makes a default process group where there is none, joins the one there is, and at its end destroys all. Here each
process's engines have a default group of their own, of this one process: an engine starts, steps and ends without the
other ranks, before or after the trainer's groups are made, and leaves those alone.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed import distributed_c10d as c10d

_FIRST_NAME = 1_000_000
"""Groups are named by number, alike on all ranks. Those of vLLM, which are not, count from here."""

_hidden: tuple[Any, int] = (None, _FIRST_NAME)
"""The default group that is not installed now, and the number of the next group beside it."""
_inside = False


@contextmanager
def engine_groups() -> Iterator[None]:
    """Inside, torch's default process group is that of this process's engines, and none before the first starts."""
    if _inside or not torch.distributed.is_available():
        yield
        return
    _swap()
    try:
        yield
    finally:
        _swap()


@contextmanager
def trainer_groups() -> Iterator[None]:
    """Within `engine_groups`, the trainer's groups again: for its own code that vLLM calls."""
    if not _inside or not torch.distributed.is_available():
        yield
        return
    _swap()
    try:
        yield
    finally:
        _swap()


def shut_down(llm: Any, *, last: bool) -> None:
    """End one engine; its process groups, which all engines of a process share, end with the last one."""
    client = llm.llm_engine.engine_core
    # vLLM's own shutdown, which its finalizer would call, destroys all process groups; the rest of it is done here.
    if client._finalizer.detach() is None:
        return
    core = client.engine_core
    with engine_groups():
        core.structured_output_manager.clear_backend()
        core.model_executor.shutdown()
        core.scheduler.shutdown()
        gc.unfreeze()
        if last:
            _destroy_groups()


def _swap() -> None:
    global _hidden, _inside
    installed = c10d.GroupMember.WORLD, c10d._world.group_count
    c10d._update_default_pg(_hidden[0])
    c10d._world.group_count = _hidden[1]
    _hidden, _inside = installed, not _inside


def _destroy_groups() -> None:
    from vllm.distributed import parallel_state

    default = c10d.GroupMember.WORLD
    c10d._update_default_pg(None)  # else vLLM ends with destroying every group there is
    if default is None or default not in c10d._world.pg_map:
        # Who destroyed the trainer's default group has destroyed all: vLLM only has to forget its own.
        for name, value in vars(parallel_state).copy().items():
            if isinstance(value, parallel_state.GroupCoordinator):
                setattr(parallel_state, name, None)
    parallel_state.cleanup_dist_env_and_memory()
    if default is not None and default in c10d._world.pg_map:
        torch.distributed.destroy_process_group(default)
