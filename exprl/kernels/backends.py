"""Which code runs the row operations: Triton, plain torch, or plain torch compiled by Inductor."""

from __future__ import annotations

import functools
import importlib.util
import os

import torch

from exprl.kernels import rows
from exprl.kernels.arguments import check_choice
from exprl.kernels.names import Backend
from exprl.kernels.rows import RowOperations

TRITON_DTYPES = (torch.float32, torch.bfloat16)
"""fp16 is left to plain torch: p times a gradient of 1 / tokens underflows there. fp64 is for checking."""


_EAGER = RowOperations(rows.merge, rows.merge_jsd, rows.gradient, rounds_gradient=False)


def choose(backend: Backend, device: torch.device, dtype: torch.dtype, tokens: int) -> str:
    """The backend that runs: `auto` is triton where it can run, else eager.

    Raises:
        ValueError: an unknown backend, or triton where it cannot run, saying why.
    """
    check_choice("backend", backend, Backend)
    if backend not in ("auto", "triton"):
        return backend
    obstacle = triton_obstacle(device, dtype)
    if backend == "triton" and obstacle:
        raise ValueError(f"backend: triton cannot run here: {obstacle}. Use backend='auto' or 'eager'")
    # Nothing can be launched for no tokens.
    return "eager" if obstacle or tokens == 0 or (backend == "auto" and device.type == "cpu") else "triton"


def row_operations(backend: str) -> RowOperations:
    """The operations of a backend that `choose` returned."""
    if backend == "triton":
        # Only here: `import exprl.kernels` must work without Triton.
        from exprl.kernels.fused import TRITON

        return TRITON
    return _compiled() if backend == "compile" else _EAGER


def triton_obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why triton cannot run on tensors of `dtype` on `device`; None: it can."""
    if not _has_triton():
        return "the package triton is not installed (pip install 'exprl[triton]')"
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"the tensors are on {device} and TRITON_INTERPRET=1 is not set"
    if dtype not in TRITON_DTYPES:
        return f"it computes in float32 or bfloat16, and here that would be {str(dtype).removeprefix('torch.')}"
    return None


def _has_triton() -> bool:
    try:
        return importlib.util.find_spec("triton") is not None
    except ValueError:  # someone has blocked its import
        return False


@functools.cache
def _compiled() -> RowOperations:
    # dynamic: one compilation for every number of tokens and the last, narrower slice.
    merge, merge_jsd, gradient = (torch.compile(f, dynamic=True) for f in (rows.merge, rows.merge_jsd, rows.gradient))
    return RowOperations(merge, merge_jsd, gradient, rounds_gradient=True)
