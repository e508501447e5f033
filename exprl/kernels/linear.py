"""Log-prob, entropy and divergence of chosen tokens from hidden states and the LM head, without a [T, V] tensor."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from exprl.kernels.arguments import (
    check_choice,
    check_device,
    check_matrix,
    check_positive,
    check_temperature,
    check_values,
    check_vector,
    describe,
    inverse_temperature,
    is_tempered,
)
from exprl.kernels.backends import choose
from exprl.kernels.compilers import left_by_compilers
from exprl.kernels.names import Backend, Divergence
from exprl.kernels.once import differentiable_once
from exprl.kernels.products import compute_dtype, fp32_products
from exprl.kernels.rows import Tokens
from exprl.kernels.sweep import LinearHead, Plan, coefficients, gradients, keeps_logits, slice_columns, statistics


class TokenStatistics(NamedTuple):
    """Results for T tokens, each [T] in nats, fp32 (fp64 for fp64 inputs), None where it was not asked for.

    `logp` of the chosen ids; `entropy`; `divergence` from the frozen head; `frozen_logp` of the chosen ids under the
    frozen head; `lse`, the log-sum-exp of the logits after softcap and temperature. All but `frozen_logp` are
    differentiable in hidden, weight and bias, once.
    """

    logp: Tensor
    entropy: Tensor | None
    divergence: Tensor | None
    frozen_logp: Tensor | None
    lse: Tensor


@left_by_compilers
def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    mask: Tensor | None = None,
    entropy: bool = True,
    frozen: LinearHead | tuple[Tensor, Tensor] | None = None,
    divergence: Divergence | None = None,
    vocab_block: int | None = None,
    weight_grad_out: Tensor | None = None,
    backend: Backend = "auto",
) -> TokenStatistics:
    """Log-prob, entropy, log-sum-exp and divergence of T tokens from hidden states and the LM head.

    Logits are softcap(hidden @ weight.T + bias) / temperature, kept in fp32: rounded to bf16 they would move log-probs
    by up to 0.07. Under autocast hidden and weight are rounded as it rounds a linear layer's, the logits are not. Each
    head is computed in its own dtype: a frozen one in fp32 is not rounded because the policy is bf16.

    Args:
        hidden: [T, D] last hidden states.
        weight: [V, D] LM head.
        ids: [T] chosen tokens, int64.
        bias: [V], where the head has one.
        temperature: the one that sampling used, above 0; one number, or one for each token [T].
        softcap: c of c·tanh(z / c) (Gemma 2), where the model has it; of both heads.
        mask: [T] bool; where it is false results and gradients are 0 and ids may hold anything. Such rows cost
            nothing.
        entropy: whether to compute the entropy.
        frozen: a frozen head over the same vocabulary, as (hidden, weight) or `LinearHead`; width and dtype may differ.
            Gives `frozen_logp` and any divergence, in the same sweep, at the same temperature.
        divergence: full-vocabulary divergence of the policy p and the frozen q: `rkl` KL(p ‖ q), `fkl` KL(q ‖ p),
            `jsd` ½ KL(p ‖ ½(p + q)) + ½ KL(q ‖ ½(p + q)), which takes a second sweep.
        vocab_block: vocabulary columns a slice; None: what fits 384 MiB on a GPU. Changes memory and speed, never the
            result beyond rounding.
        weight_grad_out: [V, D] fp32 to which the backward pass adds the weight's gradient (a main gradient); the
            weight itself then gets none.
        backend: auto, triton, eager or compile.

    Returns:
        `TokenStatistics`.

    Raises:
        ValueError: naming the argument with a wrong shape, dtype, device or value, before anything is computed.
    """
    head = LinearHead(hidden, weight, bias)
    frozen = _frozen_head(frozen)
    _check(head, frozen, ids, temperature, softcap, mask, divergence, vocab_block, weight_grad_out)
    tokens = len(hidden)
    rows = None if mask is None else mask.nonzero()[:, 0]
    if rows is not None:
        ids, temperature = ids[rows], temperature[rows] if isinstance(temperature, Tensor) else temperature
        head = head._replace(hidden=hidden[rows])
        frozen = frozen and frozen._replace(hidden=frozen.hidden[rows])
    check_values(ids, len(weight), temperature)
    compute = compute_dtype(hidden, weight)
    wide = torch.promote_types(compute, torch.float32)
    frozen_compute = None if frozen is None else compute_dtype(frozen.hidden, frozen.weight)
    frozen_wide = None if frozen_compute is None else torch.promote_types(frozen_compute, wide)
    name = choose(backend, hidden.device, compute, len(ids))
    differentiated = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in head)
    inverse = inverse_temperature(temperature, torch.empty_like(ids, dtype=wide))
    plan = Plan(
        tokens=Tokens(
            ids=ids.contiguous(), inverse_temperature=inverse, softcap=softcap, tempered=is_tempered(temperature)
        ),
        frozen=frozen,
        divergence=divergence,
        entropy=entropy,
        compute=compute,
        frozen_compute=frozen_compute,
        backend=name,
        vocab_block=vocab_block
        or slice_columns(len(ids), hidden, name, wide.itemsize + (frozen_wide.itemsize if frozen_wide else 0)),
        weight_grad_out=weight_grad_out,
        keeps_logits=differentiated and keeps_logits(len(ids), len(weight), hidden.device, name, wide),
    )
    results = TokenStatistics(*_LinearLogprob.apply(*head, plan))  # type: ignore[no-untyped-call]
    if rows is None:
        return results
    zeros = torch.zeros(tokens, dtype=wide, device=hidden.device)
    return TokenStatistics._make(None if x is None else zeros.index_copy(0, rows, x) for x in results)


class _LinearLogprob(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor]:
        with fp32_products(hidden.device):
            s = statistics(LinearHead(hidden, weight, bias), plan)
        frozen = plan.frozen or (None, None, None)
        kept = (s.lse, s.entropy, s.divergence, s.frozen_lse, s.policy_half)
        ctx.save_for_backward(hidden, weight, bias, *frozen, *kept, plan.tokens.ids, *s.slices)
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        if s.frozen_logp is not None:
            ctx.mark_non_differentiable(s.frozen_logp)
        return s.logp, s.entropy, s.divergence, s.frozen_logp, s.lse

    @staticmethod
    @differentiable_once
    def backward(
        ctx: Any,
        g_logp: Tensor | None,
        g_entropy: Tensor | None,
        g_divergence: Tensor | None,
        _: None,
        g_lse: Tensor | None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        (
            hidden,
            weight,
            bias,
            frozen_hidden,
            frozen_weight,
            frozen_bias,
            lse,
            entropy,
            divergence,
            frozen_lse,
            half,
            __,
            *slices,
        ) = ctx.saved_tensors  # the ids too: changed in place since, they raise here
        # Without a gradient of the divergence the frozen head has no part in the backward pass.
        kind = ctx.plan.divergence if g_divergence is not None else None
        frozen = LinearHead(frozen_hidden, frozen_weight, frozen_bias) if kind is not None else None
        expected = half if kind == "jsd" else divergence
        k = coefficients(kind, lse, entropy, expected, frozen_lse, g_logp, g_entropy, g_divergence, g_lse)
        with fp32_products(hidden.device):
            head, needed = LinearHead(hidden, weight, bias), ctx.needs_input_grad
            found = gradients(head, frozen, kind, k, ctx.plan, needed, tuple(slices))
        return *found, None


def _frozen_head(frozen: LinearHead | tuple[Tensor, Tensor] | None) -> LinearHead | None:
    if frozen is None:
        return None
    if not isinstance(frozen, (tuple, list)) or len(frozen) not in (2, 3):
        raise ValueError(f"frozen: expected (hidden, weight) or a LinearHead, but got {describe(frozen)}")
    return LinearHead(*frozen)


def _check(
    head: LinearHead,
    frozen: LinearHead | None,
    ids: Tensor,
    temperature: float | Tensor,
    softcap: float | None,
    mask: Tensor | None,
    divergence: Divergence | None,
    vocab_block: int | None,
    weight_grad_out: Tensor | None,
) -> None:
    check_matrix("hidden", head.hidden, "[T, D]")
    tokens, width = head.hidden.shape
    check_matrix("weight", head.weight, f"[V, {width}]", columns=width)
    vocabulary = len(head.weight)
    if head.bias is not None:
        check_vector("bias", head.bias, vocabulary)
    check_vector("ids", ids, tokens, torch.int64)
    check_temperature(temperature, tokens)
    check_positive("softcap", softcap)
    if mask is not None:
        check_vector("mask", mask, tokens, torch.bool)
    if vocab_block is not None and (not isinstance(vocab_block, int) or vocab_block < 1):
        raise ValueError(f"vocab_block: expected a whole number of at least 1 or None, but got {vocab_block!r}")
    per_token = temperature if isinstance(temperature, Tensor) else None
    check_device(
        head.hidden.device,
        weight=head.weight,
        bias=head.bias,
        ids=ids,
        temperature=per_token,
        mask=mask,
    )
    _check_frozen(frozen, divergence, tokens, vocabulary, head.hidden.device)
    if weight_grad_out is not None:
        check_matrix("weight_grad_out", weight_grad_out, f"[{vocabulary}, {width}]", vocabulary, width)
        check_device(head.hidden.device, weight_grad_out=weight_grad_out)
        if weight_grad_out.dtype not in (torch.float32, torch.float64) or weight_grad_out.requires_grad:
            raise ValueError(
                f"weight_grad_out: expected float32 without requires_grad, but got {describe(weight_grad_out)}"
            )


def _check_frozen(
    frozen: LinearHead | None, divergence: Divergence | None, tokens: int, vocabulary: int, device: torch.device
) -> None:
    if divergence is not None:
        check_choice("divergence", divergence, Divergence, " or None")
    if frozen is None:
        if divergence is not None:
            raise ValueError(f"frozen: required for divergence {divergence!r}, but got None")
        return
    check_matrix("frozen hidden", frozen.hidden, f"[{tokens}, D_frozen]", rows=tokens)
    width = frozen.hidden.shape[1]
    check_matrix("frozen weight", frozen.weight, f"[{vocabulary}, {width}]", vocabulary, width)
    if frozen.bias is not None:
        check_vector("frozen bias", frozen.bias, vocabulary)
    check_device(device, **{"frozen hidden": frozen.hidden, "frozen weight": frozen.weight, "frozen bias": frozen.bias})
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in frozen):
        raise ValueError("frozen: it is a constant here and gets no gradient; pass its hidden and weight detached")
