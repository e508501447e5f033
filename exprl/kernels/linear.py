"""Log-prob, entropy and divergence of chosen tokens from hidden states and the LM head, without a [T, V] tensor.

The vocabulary is visited in slices of all T tokens. Forward: the slice's logits, one product with an fp32 result, are
merged into running numbers a token. Backward: the slice's logits are computed again, turned into their gradient, and
two products add that to the gradient of the hidden states (fp32) and write the slice's rows of the weight's gradient,
each once. Sums run in one fixed order, so the same input gives the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from exprl.kernels.arguments import (
    check_device,
    check_matrix,
    check_positive,
    check_temperature,
    check_values,
    check_vector,
    describe,
    inverse_temperature,
)
from exprl.kernels.backends import Backend, choose, row_operations
from exprl.kernels.products import add_product, fp32_products, write_affine, write_product
from exprl.kernels.rows import FIELDS, Divergence, GradientCoefficients, Tokens

_GPU_SLICE_BYTES = 384 * 2**20
"""Memory of one slice's logits and their gradient. At 16,384 tokens: 4,096 columns of one head, 2,048 of two."""

_CPU_SLICE_BYTES = 32 * 2**20
"""Plain torch holds about five times this: each step of its arithmetic makes a copy."""


class LinearHead(NamedTuple):
    """Logits hidden @ weight.T + bias: `hidden` [T, D], `weight` [V, D], `bias` [V] or None."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None


class TokenStatistics(NamedTuple):
    """Results for T tokens, each [T] in nats, fp32 (fp64 for fp64 inputs), None where it was not asked for.

    `logp` of the chosen ids; `entropy`; `divergence` from the reference head; `ref_logp` of the chosen ids under the
    reference head; `lse`, the log-sum-exp of the logits after softcap and temperature. All but `ref_logp` are
    differentiable in hidden, weight and bias, once.
    """

    logp: Tensor
    entropy: Tensor | None
    divergence: Tensor | None
    ref_logp: Tensor | None
    lse: Tensor


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
    ref: LinearHead | tuple[Tensor, Tensor] | None = None,
    divergence: Divergence | None = None,
    vocab_block: int | None = None,
    weight_grad_out: Tensor | None = None,
    backend: Backend = "auto",
) -> TokenStatistics:
    """Log-prob, entropy, log-sum-exp and divergence of T tokens from hidden states and the LM head.

    Logits are softcap(hidden @ weight.T + bias) / temperature, kept in fp32: rounded to bf16 they would move log-probs
    by up to 0.07. Under autocast hidden and weight are rounded as it rounds a linear layer's, the logits are not.

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
        ref: a frozen head over the same vocabulary, as (hidden, weight) or `LinearHead`; its width may differ. Gives
            `ref_logp` and any divergence, in the same sweep, at the same temperature.
        divergence: full-vocabulary divergence of the policy p and the reference q: `rkl` KL(p ‖ q), `fkl` KL(q ‖ p),
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
    reference = None if ref is None else LinearHead(*ref)
    _check(head, reference, ids, temperature, softcap, mask, divergence, vocab_block, weight_grad_out)
    tokens = len(hidden)
    rows = None if mask is None else mask.nonzero()[:, 0]
    if rows is not None:
        ids, temperature = ids[rows], temperature[rows] if isinstance(temperature, Tensor) else temperature
        head = head._replace(hidden=hidden[rows])
        reference = reference and reference._replace(hidden=reference.hidden[rows])
    check_values(ids, len(weight), temperature)
    compute = _compute_dtype(hidden, weight)
    wide = torch.promote_types(compute, torch.float32)
    name = choose(backend, hidden.device, compute, len(ids))
    heat = inverse_temperature(temperature, torch.empty_like(ids, dtype=wide))
    plan = _Plan(
        tokens=Tokens(ids=ids, inverse_temperature=heat, softcap=softcap),
        ref=reference,
        divergence=divergence,
        entropy=entropy,
        compute=compute,
        backend=name,
        vocab_block=vocab_block or _slice_columns(len(ids), hidden, name, reference is not None, wide),
        weight_grad_out=weight_grad_out,
    )
    results = TokenStatistics(*_LinearLogprob.apply(*head, plan))  # type: ignore[no-untyped-call]
    if rows is None:
        return results
    zeros = torch.zeros(tokens, dtype=wide, device=hidden.device)
    return TokenStatistics._make(None if x is None else zeros.index_copy(0, rows, x) for x in results)


@dataclass(frozen=True)
class _Plan:
    """What a call does, apart from the tensors with a gradient."""

    tokens: Tokens
    ref: LinearHead | None
    divergence: Divergence | None
    entropy: bool
    compute: torch.dtype
    backend: str
    vocab_block: int
    weight_grad_out: Tensor | None


class _LinearLogprob(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, plan: _Plan
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor]:
        with fp32_products(hidden.device):
            s = _statistics(LinearHead(hidden, weight, bias), plan)
        ref = plan.ref or (None, None, None)
        ctx.save_for_backward(hidden, weight, bias, *ref, s.lse, s.entropy, s.divergence, s.ref_lse, s.policy_half)
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        if s.ref_logp is not None:
            ctx.mark_non_differentiable(s.ref_logp)
        return s.logp, s.entropy, s.divergence, s.ref_logp, s.lse

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,
        g_logp: Tensor | None,
        g_entropy: Tensor | None,
        g_divergence: Tensor | None,
        _: None,
        g_lse: Tensor | None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        hidden, weight, bias, ref_hidden, ref_weight, ref_bias, lse, entropy, divergence, ref_lse, half = (
            ctx.saved_tensors
        )
        # Without a gradient of the divergence the reference has no part in the backward pass.
        kind = ctx.plan.divergence if g_divergence is not None else None
        ref = LinearHead(ref_hidden, ref_weight, ref_bias) if kind is not None else None
        expected = half if kind == "jsd" else divergence
        k = coefficients(kind, lse, entropy, expected, ref_lse, g_logp, g_entropy, g_divergence, g_lse)
        with fp32_products(hidden.device):
            return *_gradients(LinearHead(hidden, weight, bias), ref, kind, k, ctx.plan, ctx.needs_input_grad), None


def coefficients(
    kind: Divergence | None,
    lse: Tensor,
    entropy: Tensor | None,
    expected: Tensor | None,
    ref_lse: Tensor | None,
    g_logp: Tensor | None,
    g_entropy: Tensor | None,
    g_divergence: Tensor | None,
    g_lse: Tensor | None,
) -> GradientCoefficients:
    """From the gradients of the outputs [T] to those of the logits.

    d logp / dz_j = [j chosen] - p_j; d lse / dz_j = p_j; dH / dz_j = -p_j (log p_j + H);
    d rkl / dz_j = p_j (log p_j - log q_j - rkl); d fkl / dz_j = p_j - q_j;
    d jsd / dz_j = p_j (½ log(p_j / mean_j) - ½ KL(p ‖ mean)). `expected` is the rkl, or that half for jsd.
    """
    g = torch.zeros_like(lse) if g_logp is None else g_logp.contiguous()
    a, b = -g, torch.zeros_like(lse)
    if g_lse is not None:
        a = a + g_lse
    if g_entropy is not None and entropy is not None:
        a, b = a - g_entropy * entropy, -g_entropy
    d = None
    if kind is not None and g_divergence is not None and expected is not None:
        d = g_divergence.contiguous()
        a = a + d if kind == "fkl" else a - d * expected
    return GradientCoefficients(lse=lse, ref_lse=ref_lse, a=a, b=b.contiguous(), g=g, d=d)


@dataclass(frozen=True)
class _Statistics:
    logp: Tensor
    lse: Tensor
    entropy: Tensor | None
    divergence: Tensor | None
    ref_logp: Tensor | None
    ref_lse: Tensor | None
    policy_half: Tensor | None
    """½ KL(p ‖ mean), for jsd."""


def _statistics(head: LinearHead, plan: _Plan) -> _Statistics:
    tokens, operations = plan.tokens, row_operations(plan.backend)
    sweep = _Sweep.of(head, plan.ref, plan)
    state = tokens.inverse_temperature.new_zeros(FIELDS, len(tokens.ids))
    state[0] = state[4] = -torch.inf
    for first, z, z_ref in sweep:
        operations.merge(state, z, z_ref, first, tokens, entropy=plan.entropy, divergence=plan.divergence)
    m, s, t, chosen, m_ref, s_ref, chosen_ref, d = state.unbind(0)
    log_s = s.log()
    lse = m + log_s
    entropy = log_s - t / s if plan.entropy else None
    if plan.ref is None:
        return _Statistics(chosen - lse, lse, entropy, None, None, None, None)
    ref_log_s = s_ref.log()
    ref_lse = m_ref + ref_log_s
    divergence, half = None, None
    if plan.divergence == "rkl":
        divergence = d / s - log_s + ref_log_s
    elif plan.divergence == "fkl":
        divergence = d / s_ref - ref_log_s + log_s
    elif plan.divergence == "jsd":
        sums = torch.zeros_like(state[:2])
        for _, z, z_ref in sweep:
            operations.merge_jsd(sums, z, z_ref, tokens, lse, ref_lse)
        divergence, half = sums[0] + sums[1], sums[0].clone()
    return _Statistics(chosen - lse, lse, entropy, divergence, chosen_ref - ref_lse, ref_lse, half)


def _gradients(
    head: LinearHead,
    ref: LinearHead | None,
    kind: Divergence | None,
    k: GradientCoefficients,
    plan: _Plan,
    needed: tuple[bool, ...],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    operations = row_operations(plan.backend)
    sweep = _Sweep.of(head, ref, plan)
    wide = k.lse.dtype
    main = plan.weight_grad_out
    d_hidden = torch.zeros_like(head.hidden, dtype=wide) if needed[0] else None
    d_weight = torch.empty_like(head.weight) if needed[1] and main is None else None
    d_bias = torch.empty_like(head.bias) if needed[2] and head.bias is not None else None
    # Where the gradient is not rounded it takes the logits' place.
    rounded = operations.rounds_gradient and plan.compute != wide
    memory = torch.empty_like(sweep.buffer, dtype=plan.compute) if rounded else sweep.buffer
    for first, z, z_ref in sweep:
        last = first + z.shape[1]
        dz = memory[:, : z.shape[1]]
        operations.gradient(dz, z, z_ref, first, plan.tokens, k, divergence=kind)
        if d_hidden is not None:
            add_product(d_hidden, dz, sweep.policy.columns(first, last))
        if main is not None:
            add_product(main[first:last], dz.t(), sweep.policy.hidden)
        if d_weight is not None:
            write_product(d_weight[first:last], dz.t(), sweep.policy.hidden)
        if d_bias is not None:
            d_bias[first:last] = dz.sum(0, dtype=wide)
    return None if d_hidden is None else d_hidden.to(head.hidden.dtype), d_weight, d_bias


class _Operands:
    """A head as its products take it: rounded to the dtype of the computation, and on a CPU widened again."""

    def __init__(self, head: LinearHead, plan: _Plan) -> None:
        self._head = head
        self._compute = plan.compute
        on_cpu = head.hidden.device.type == "cpu"
        self._operand = plan.tokens.inverse_temperature.dtype if on_cpu else plan.compute
        self.hidden = self._cast(head.hidden)

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._compute).to(self._operand)

    def columns(self, first: int, last: int) -> Tensor:
        """Rows first..last of the weight."""
        return self._cast(self._head.weight[first:last])

    def write_logits(self, out: Tensor, first: int, last: int) -> None:
        bias = self._head.bias
        offset = None if bias is None else bias[first:last]
        write_affine(out, self.hidden, self.columns(first, last).t(), offset)


@dataclass(frozen=True)
class _Sweep:
    """Visits the vocabulary; every slice's logits overwrite those of the slice before."""

    policy: _Operands
    ref: _Operands | None
    vocabulary: int
    buffer: Tensor
    ref_buffer: Tensor | None

    @classmethod
    def of(cls, head: LinearHead, ref: LinearHead | None, plan: _Plan) -> _Sweep:
        vocabulary = len(head.weight)
        heat = plan.tokens.inverse_temperature
        shape = (len(head.hidden), min(plan.vocab_block, vocabulary))
        return cls(
            policy=_Operands(head, plan),
            ref=None if ref is None else _Operands(ref, plan),
            vocabulary=vocabulary,
            buffer=heat.new_empty(shape),
            ref_buffer=None if ref is None else heat.new_empty(shape),
        )

    def __iter__(self) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """First column, logits [T, W], and the reference's."""
        step = max(self.buffer.shape[1], 1)
        for first in range(0, self.vocabulary, step):
            last = min(first + step, self.vocabulary)
            z = self.buffer[:, : last - first]
            self.policy.write_logits(z, first, last)
            z_ref = None
            if self.ref is not None and self.ref_buffer is not None:
                z_ref = self.ref_buffer[:, : last - first]
                self.ref.write_logits(z_ref, first, last)
            yield first, z, z_ref


def _slice_columns(tokens: int, hidden: Tensor, backend: str, two_heads: bool, wide: torch.dtype) -> int:
    """The largest power of two that fits the budget, at least 256."""
    lean = hidden.is_cuda and backend != "eager"
    budget = _GPU_SLICE_BYTES if lean else _CPU_SLICE_BYTES
    gradient_bytes = 2 if lean else 0
    columns = budget // (max(tokens, 1) * (wide.itemsize * (2 if two_heads else 1) + gradient_bytes))
    return 1 << max(columns.bit_length() - 1, 8)


def _compute_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    wider = torch.promote_types(hidden.dtype, weight.dtype)
    device = hidden.device.type
    if wider != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return wider


def _check(
    head: LinearHead,
    ref: LinearHead | None,
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
    if vocab_block is not None and vocab_block < 1:
        raise ValueError(f"vocab_block: expected at least 1 or None, but got {vocab_block}")
    heat = temperature if isinstance(temperature, Tensor) else None
    check_device(
        head.hidden.device,
        weight=head.weight,
        bias=head.bias,
        ids=ids,
        temperature=heat,
        mask=mask,
        weight_grad_out=weight_grad_out,
    )
    _check_reference(ref, divergence, tokens, vocabulary, head.hidden.device)
    if weight_grad_out is not None:
        check_matrix("weight_grad_out", weight_grad_out, f"[{vocabulary}, {width}]", vocabulary, width)
        if weight_grad_out.dtype not in (torch.float32, torch.float64) or weight_grad_out.requires_grad:
            raise ValueError(
                f"weight_grad_out: expected float32 without requires_grad, but got {describe(weight_grad_out)}"
            )


def _check_reference(
    ref: LinearHead | None, divergence: Divergence | None, tokens: int, vocabulary: int, device: torch.device
) -> None:
    if divergence is not None and divergence not in get_args(Divergence):
        raise ValueError(
            f"divergence: expected one of {', '.join(get_args(Divergence))} or None, but got {divergence!r}"
        )
    if ref is None:
        if divergence is not None:
            raise ValueError(f"ref: required for divergence {divergence!r}, but got None")
        return
    check_matrix("ref hidden", ref.hidden, f"[{tokens}, D_ref]", rows=tokens)
    width = ref.hidden.shape[1]
    check_matrix("ref weight", ref.weight, f"[{vocabulary}, {width}]", vocabulary, width)
    if ref.bias is not None:
        check_vector("ref bias", ref.bias, vocabulary)
    check_device(device, **{"ref hidden": ref.hidden, "ref weight": ref.weight, "ref bias": ref.bias})
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in ref):
        raise ValueError("ref: it is a constant here and gets no gradient; pass its hidden and weight detached")
