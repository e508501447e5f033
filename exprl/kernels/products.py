"""Matrix products whose sums are fp32 whatever the inputs are."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from exprl.kernels import onednn

_LOW = (torch.bfloat16, torch.float16)


def compute_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """What a linear layer would round its inputs to: autocast's dtype inside autocast, else the wider of the two."""
    wider = torch.promote_types(hidden.dtype, weight.dtype)
    device = hidden.device.type
    if wider != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return wider


def write_product(out: Tensor, left: Tensor, right: Tensor) -> None:
    """Out = left @ right, summed in fp32 (fp64 for an fp64 out) and rounded at most once, to `out`'s dtype."""
    if left.is_cuda and left.dtype == right.dtype == out.dtype:
        torch.mm(left, right, out=out)
    elif _has_wide_output(out, left, right):
        torch.mm(left, right, out_dtype=out.dtype, out=out)
    elif out.dtype in _LOW:
        out.copy_(left.to(torch.float32) @ right.to(torch.float32))
    elif _by_onednn(out, left, right):
        out.copy_(onednn.product(left, right.t()))
    else:
        torch.mm(left.to(out.dtype), right.to(out.dtype), out=out)


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Total += left @ right, in the dtype of `total`, which must be fp32 or fp64."""
    if _has_wide_output(total, left, right):
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    elif _by_onednn(total, left, right):
        total += onednn.product(left, right.t())
    else:
        total.addmm_(left.to(total.dtype), right.to(total.dtype))


def affine(out: Tensor, left: Tensor, right: Tensor, offset: Tensor | None) -> Tensor:
    """Left @ right + offset, with `offset` [columns of out] or None; in `out`, fp32 or fp64, unless oneDNN made it."""
    if _by_onednn(out, left, right):
        return onednn.product(left, right.t(), None if offset is None else offset.to(out.dtype))
    write_product(out, left, right)
    if offset is not None:
        out += offset.to(out.dtype)
    return out


@contextmanager
def fp32_products(device: torch.device) -> Iterator[None]:
    """Inside, autocast leaves products alone and cuBLAS does not sum split products in bf16."""
    with _FP32_SUMS, torch.autocast(device.type, enabled=False):
        yield


class _FP32Sums:
    """A context in which cuBLAS sums in fp32, however many threads are in it: the flag is the whole process's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before = True

    def __enter__(self) -> None:
        matmul = torch.backends.cuda.matmul
        with self._lock:
            if not self._inside:
                self._before = matmul.allow_bf16_reduced_precision_reduction
                matmul.allow_bf16_reduced_precision_reduction = False
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = self._before


_FP32_SUMS = _FP32Sums()


def _by_onednn(out: Tensor, left: Tensor, right: Tensor) -> bool:
    return out.numel() >= onednn.SMALLEST and onednn.gains(left, right)


def _has_wide_output(out: Tensor, left: Tensor, right: Tensor) -> bool:
    # On a CPU torch raises on a bf16 product with an fp32 result.
    return left.is_cuda and left.dtype == right.dtype and left.dtype in _LOW and out.dtype == torch.float32
