"""The row operations, launched. A pointer that a kernel's flags switch off gets any valid one."""

from __future__ import annotations

import torch
from torch import Tensor

from exprl.kernels.fused.gradient import gradient_kernel
from exprl.kernels.fused.launch import launch_for, on_device
from exprl.kernels.fused.merge import merge_kernel
from exprl.kernels.fused.merge_jsd import merge_jsd_kernel
from exprl.kernels.names import Divergence
from exprl.kernels.rows import GradientCoefficients, RowOperations, Tokens


def merge(
    state: Tensor,
    z: Tensor,
    z_frozen: Tensor | None,
    first: int,
    tokens: Tokens,
    *,
    entropy: bool,
    divergence: Divergence | None,
) -> None:
    """See `exprl.kernels.rows.merge`."""
    launch = launch_for(z, two_heads=z_frozen is not None)
    other = z if z_frozen is None else z_frozen
    with on_device(z):
        merge_kernel[(len(tokens.ids),)](
            state,
            z,
            other,
            tokens.ids,
            tokens.inverse_temperature,
            tokens.ids if tokens.rows is None else tokens.rows,
            z.stride(0),
            other.stride(0),
            state.shape[1],
            z.shape[1],
            first,
            tokens.softcap or 0.0,
            HAS_FROZEN=z_frozen is not None,
            DIVERGENCE=divergence or "none",
            ENTROPY=entropy,
            HAS_SOFTCAP=tokens.softcap is not None,
            HAS_ROWS=tokens.rows is not None,
            BLOCK=launch.block,
            num_warps=launch.num_warps,
        )


def merge_jsd(sums: Tensor, z: Tensor, z_frozen: Tensor, tokens: Tokens, lse: Tensor, frozen_lse: Tensor) -> None:
    """See `exprl.kernels.rows.merge_jsd`."""
    launch = launch_for(z, two_heads=True)
    with on_device(z):
        merge_jsd_kernel[(len(tokens.ids),)](
            sums,
            z,
            z_frozen,
            tokens.inverse_temperature,
            lse,
            frozen_lse,
            z.stride(0),
            z_frozen.stride(0),
            sums.shape[1],
            z.shape[1],
            tokens.softcap or 0.0,
            HAS_SOFTCAP=tokens.softcap is not None,
            BLOCK=launch.block,
            num_warps=launch.num_warps,
        )


def gradient(
    out: Tensor,
    z: Tensor,
    z_frozen: Tensor | None,
    first: int,
    tokens: Tokens,
    coefficients: GradientCoefficients,
    *,
    divergence: Divergence | None,
) -> None:
    """See `exprl.kernels.rows.gradient`."""
    k = coefficients
    launch = launch_for(z, two_heads=z_frozen is not None)
    other = z if z_frozen is None else z_frozen
    with on_device(z):
        gradient_kernel[(len(tokens.ids),)](
            out,
            z,
            other,
            tokens.ids,
            tokens.inverse_temperature,
            tokens.ids if tokens.rows is None else tokens.rows,
            k.lse,
            k.lse if k.frozen_lse is None else k.frozen_lse,
            k.a,
            torch.zeros_like(k.a) if k.b is None else k.b,
            k.g,
            k.g if k.d is None else k.d,
            out.stride(0),
            z.stride(0),
            other.stride(0),
            z.shape[1],
            first,
            tokens.softcap or 0.0,
            DIVERGENCE=divergence or "none",
            HAS_SOFTCAP=tokens.softcap is not None,
            HAS_ROWS=tokens.rows is not None,
            BLOCK=launch.block,
            num_warps=launch.num_warps,
        )


TRITON = RowOperations(merge, merge_jsd, gradient, rounds_gradient=True)
