"""Log-prob and entropy of chosen tokens from given logits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from exprl.kernels.arguments import (
    check_device,
    check_matrix,
    check_temperature,
    check_values,
    check_vector,
    inverse_temperature,
    is_tempered,
)
from exprl.kernels.backends import choose, row_operations
from exprl.kernels.compilers import left_by_compilers
from exprl.kernels.names import Backend
from exprl.kernels.once import differentiable_once
from exprl.kernels.rows import FIELDS, GradientCoefficients, Tokens

_EAGER_COLUMNS = 8192


@left_by_compilers
def logprob_entropy(
    logits: Tensor,
    ids: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    mask: Tensor | None = None,
    inplace_backward: bool = False,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Log-prob and entropy of chosen tokens under given logits.

    One read of the logits forward, one read and one write backward; computed in fp32 (fp64 for fp64 logits).

    Args:
        logits: [T, V]; -inf rules a token out.
        ids: [T] chosen tokens, int64.
        temperature: logits are divided by it; a number above 0, or one for each token [T].
        mask: [T] bool; where it is false the results and the gradient are 0 and ids may hold anything.
        inplace_backward: write the gradient into the logits' memory. Only for logits that nothing reads after this
            call, and for one backward pass; a second raises.
        backend: auto, triton, eager or compile.

    Returns:
        logp [T] and entropy [T] in nats, both differentiable in logits, once.

    Raises:
        ValueError: naming the argument with a wrong shape, dtype, device or value.
        RuntimeError: a second backward pass after an in-place one.
    """
    check_matrix("logits", logits, "[T, V]")
    tokens, vocabulary = logits.shape
    check_vector("ids", ids, tokens, torch.int64)
    check_temperature(temperature, tokens)
    if mask is not None:
        check_vector("mask", mask, tokens, torch.bool)
    per_token = temperature if isinstance(temperature, Tensor) else None
    check_device(logits.device, ids=ids, temperature=per_token, mask=mask)
    if inplace_backward and logits.requires_grad and logits.is_leaf:
        raise ValueError("inplace_backward: logits are a leaf, whose values the gradient would replace; pass a result")
    rows = None if mask is None else mask.nonzero()[:, 0]
    if rows is not None:
        ids, temperature = ids[rows], temperature[rows] if isinstance(temperature, Tensor) else temperature
    check_values(ids, vocabulary, temperature)
    name = choose(backend, logits.device, logits.dtype, len(ids))
    dtype = torch.promote_types(logits.dtype, torch.float32)
    fixed = Tokens(
        ids=ids.contiguous(),
        rows=rows,
        inverse_temperature=inverse_temperature(temperature, torch.empty_like(ids, dtype=dtype)),
        tempered=is_tempered(temperature),
    )
    logp, entropy = _LogprobEntropy.apply(logits, fixed, name, inplace_backward)  # type: ignore[no-untyped-call]
    if rows is None:
        return logp, entropy
    zeros = torch.zeros(tokens, dtype=dtype, device=logits.device)
    return zeros.index_copy(0, rows, logp), zeros.index_copy(0, rows, entropy)


class _LogprobEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tokens, backend: str, inplace: bool) -> tuple[Tensor, Tensor]:
        if logits.stride(1) != 1:
            logits = logits.contiguous()
        state = tokens.inverse_temperature.new_zeros(FIELDS, len(tokens.ids))
        state[0] = -torch.inf
        for first, last in _columns(logits, backend):
            row_operations(backend).merge(
                state, logits[:, first:last], None, first, tokens, entropy=True, divergence=None
            )
        m, s, t, chosen = state[:4]
        log_s = s.log()
        lse, entropy = m + log_s, log_s - t / s
        ctx.save_for_backward(logits, lse, entropy, tokens.ids)
        ctx.tokens, ctx.backend, ctx.inplace, ctx.spent = tokens, backend, inplace, False
        ctx.set_materialize_grads(False)
        return chosen - m - log_s, entropy

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, g_logp: Tensor | None, g_entropy: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        if ctx.spent:
            raise RuntimeError(
                "inplace_backward: the logits were replaced by their gradient in an earlier backward pass; use "
                "inplace_backward=False to go backward twice"
            )
        logits, lse, entropy, _ = ctx.saved_tensors  # the ids too: changed in place since, they raise here
        g_logp = torch.zeros_like(lse) if g_logp is None else g_logp
        a, b = (-g_logp, None) if g_entropy is None else (-g_logp - g_entropy * entropy, -g_entropy.contiguous())
        k = GradientCoefficients(lse=lse, frozen_lse=None, a=a, b=b, g=g_logp.contiguous(), d=None)
        out = _gradient_memory(logits, ctx.tokens.rows, ctx.inplace)
        for first, last in _columns(logits, ctx.backend):
            row_operations(ctx.backend).gradient(
                out[:, first:last], logits[:, first:last], None, first, ctx.tokens, k, divergence=None
            )
        if ctx.inplace:
            ctx.spent = True
            if ctx.tokens.rows is not None:
                _zero_other_rows(out, ctx.tokens.rows)
        return out, None, None, None


def _columns(logits: Tensor, backend: str) -> Iterator[tuple[int, int]]:
    """Triton walks along a row by itself; torch would hold several copies of what it is given."""
    step = max(logits.shape[1], 1) if backend == "triton" else _EAGER_COLUMNS
    for first in range(0, logits.shape[1], step):
        yield first, min(first + step, logits.shape[1])


def _gradient_memory(logits: Tensor, rows: Tensor | None, inplace: bool) -> Tensor:
    if inplace:
        # Other functions that saved these logits must notice, as after any in-place operation.
        torch.autograd.graph.increment_version(logits)
        return logits.detach()
    return torch.empty_like(logits) if rows is None else torch.zeros_like(logits)


def _zero_other_rows(out: Tensor, rows: Tensor) -> None:
    others = torch.ones(len(out), dtype=torch.bool, device=out.device).index_fill(0, rows, False)
    out.index_fill_(0, others.nonzero()[:, 0], 0.0)
