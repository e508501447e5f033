"""The sweep over the vocabulary that both directions of `linear_logprob` make.

The vocabulary is visited in slices of all T tokens. Forward: the slice's logits, one product with an fp32 result, are
merged into running numbers a token. Backward: the slice's logits, computed again unless all are few enough to have been
kept, are turned into their gradient, and two products add that to the gradient of the hidden states (fp32) and write
the slice's rows of the weight's gradient, each once. Sums run in one fixed order, so the same input gives the same
bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from exprl.kernels.backends import row_operations
from exprl.kernels.names import Divergence
from exprl.kernels.products import add_product, affine, write_product
from exprl.kernels.rows import FIELDS, GradientCoefficients, Tokens

_GPU_SLICE_BYTES = 384 * 2**20
"""Memory of one slice's logits and their gradient. At 16,384 tokens: 4,096 columns of one head, 2,048 of two."""

_CPU_SLICE_BYTES = 16 * 2**20
"""Plain torch holds six to eight times this: each step of its arithmetic makes a copy. glibc gives copies of 32 MiB or
more back to the system each time, and fetching them again took longer than the arithmetic."""


_KEPT_BYTES = 256 * 2**20
"""Logits that a CPU keeps for the backward pass rather than compute them again: a quarter of what the head costs. GPUs
compute faster and hold more tokens at a time."""


class LinearHead(NamedTuple):
    """Logits hidden @ weight.T + bias: `hidden` [T, D], `weight` [V, D], `bias` [V] or None."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True)
class Plan:
    """What a call does, apart from the tensors with a gradient."""

    tokens: Tokens
    frozen: LinearHead | None
    divergence: Divergence | None
    entropy: bool
    compute: torch.dtype
    frozen_compute: torch.dtype | None
    """What the frozen head's operands are rounded to, whatever the policy's are."""
    backend: str
    vocab_block: int
    weight_grad_out: Tensor | None
    keeps_logits: bool


@dataclass(frozen=True)
class Statistics:
    """Each [T]; what was not asked for is None."""

    logp: Tensor
    lse: Tensor
    entropy: Tensor | None
    divergence: Tensor | None
    frozen_logp: Tensor | None
    frozen_lse: Tensor | None
    policy_half: Tensor | None
    """½ KL(p ‖ mean), for jsd."""
    slices: tuple[Tensor, ...]
    """The policy's logits, where the plan keeps them; else none."""


def statistics(head: LinearHead, plan: Plan) -> Statistics:
    """The forward sweep; jsd takes a second one, since its mean needs both normalisers."""
    tokens, operations = plan.tokens, row_operations(plan.backend)
    sweep = _Sweep.of(head, plan.frozen, plan)
    state = tokens.inverse_temperature.new_zeros(FIELDS, len(tokens.ids))
    state[0] = state[4] = -torch.inf
    slices: list[Tensor] = []
    for first, z, z_frozen in sweep:
        if plan.keeps_logits:
            slices.append(z)
        operations.merge(state, z, z_frozen, first, tokens, entropy=plan.entropy, divergence=plan.divergence)
    m, s, t, chosen, m_frozen, s_frozen, chosen_frozen, d = state.unbind(0)
    log_s = s.log()
    lse = m + log_s
    entropy = log_s - t / s if plan.entropy else None
    kept = tuple(slices)
    if plan.frozen is None:
        return Statistics(chosen - m - log_s, lse, entropy, None, None, None, None, kept)
    frozen_log_s = s_frozen.log()
    frozen_lse = m_frozen + frozen_log_s
    divergence, half = None, None
    if plan.divergence == "rkl":
        divergence = d / s - log_s + frozen_log_s
    elif plan.divergence == "fkl":
        divergence = d / s_frozen - frozen_log_s + log_s
    elif plan.divergence == "jsd":
        sums = torch.zeros_like(state[:2])
        for _, z, z_frozen in replace(sweep, kept=kept):
            operations.merge_jsd(sums, z, z_frozen, tokens, lse, frozen_lse)
        divergence, half = sums[0] + sums[1], sums[0].clone()
    # Subtracted one after the other: large logits cancel before anything small is added.
    logp, frozen_logp = chosen - m - log_s, chosen_frozen - m_frozen - frozen_log_s
    return Statistics(logp, lse, entropy, divergence, frozen_logp, frozen_lse, half, kept)


def gradients(
    head: LinearHead,
    frozen: LinearHead | None,
    kind: Divergence | None,
    k: GradientCoefficients,
    plan: Plan,
    needed: tuple[bool, ...],
    slices: tuple[Tensor, ...],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The backward sweep: gradients of hidden, weight and bias, each None where it is not needed.

    `slices` are the logits, where the forward sweep kept them.
    """
    operations = row_operations(plan.backend)
    sweep = _Sweep.of(head, frozen, plan, slices)
    wide = k.lse.dtype
    main = plan.weight_grad_out
    d_hidden = torch.zeros_like(head.hidden, dtype=wide) if needed[0] else None
    d_weight = torch.empty_like(head.weight) if needed[1] and main is None else None
    d_bias = torch.empty_like(head.bias) if needed[2] and head.bias is not None else None
    # Where the gradient is not rounded it takes the logits' place.
    rounded = operations.rounds_gradient and plan.compute != wide
    memory = torch.empty_like(sweep.buffer, dtype=plan.compute) if rounded else sweep.buffer
    for first, z, z_frozen in sweep:
        last = first + z.shape[1]
        dz = memory[:, : z.shape[1]]
        operations.gradient(dz, z, z_frozen, first, plan.tokens, k, divergence=kind)
        if d_hidden is not None:
            add_product(d_hidden, dz, sweep.policy.columns(first, last))
        if main is not None:
            add_product(main[first:last], dz.t(), sweep.policy.hidden)
        if d_weight is not None:
            write_product(d_weight[first:last], dz.t(), sweep.policy.hidden)
        if d_bias is not None:
            d_bias[first:last] = dz.sum(0, dtype=wide)
    return None if d_hidden is None else d_hidden.to(head.hidden.dtype), d_weight, d_bias


def coefficients(
    kind: Divergence | None,
    lse: Tensor,
    entropy: Tensor | None,
    expected: Tensor | None,
    frozen_lse: Tensor | None,
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
    a, b = -g, None
    if g_lse is not None:
        a = a + g_lse
    if g_entropy is not None and entropy is not None:
        a, b = a - g_entropy * entropy, -g_entropy.contiguous()
    d = None
    if kind is not None and g_divergence is not None and expected is not None:
        d = g_divergence.contiguous()
        a = a + d if kind == "fkl" else a - d * expected
    return GradientCoefficients(lse=lse, frozen_lse=frozen_lse, a=a, b=b, g=g, d=d)


class _Operands:
    """A head as its products take it: rounded to the head's own dtype, and on a CPU widened again.

    The frozen head's is not the policy's: a policy in bf16 may be held to an original in fp32.
    """

    def __init__(self, head: LinearHead, compute: torch.dtype, wide: torch.dtype) -> None:
        self._head = head
        self._compute = compute
        self._operand = wide if head.hidden.device.type == "cpu" else compute
        self.hidden = self._cast(head.hidden)

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._compute).to(self._operand)

    def columns(self, first: int, last: int) -> Tensor:
        """Rows first..last of the weight."""
        return self._cast(self._head.weight[first:last])

    def logits(self, out: Tensor, first: int, last: int) -> Tensor:
        """Those of columns first..last, in `out` or beside it."""
        bias = self._head.bias
        offset = None if bias is None else bias[first:last]
        return affine(out, self.hidden, self.columns(first, last).t(), offset)


@dataclass(frozen=True)
class _Sweep:
    """Visits the vocabulary; a slice's logits may overwrite those of the slice before, unless they are to be kept."""

    policy: _Operands
    frozen: _Operands | None
    vocabulary: int
    buffer: Tensor
    frozen_buffer: Tensor | None
    keeps: bool
    kept: tuple[Tensor, ...]

    @classmethod
    def of(cls, head: LinearHead, frozen: LinearHead | None, plan: Plan, kept: tuple[Tensor, ...] = ()) -> _Sweep:
        vocabulary = len(head.weight)
        like = plan.tokens.inverse_temperature
        # Rows begin at multiples of 16, so that Triton compiles once for every vocabulary and length.
        shape = (len(head.hidden), -(-min(plan.vocab_block, vocabulary) // 16) * 16)
        operands, memory = None, None
        if frozen is not None and plan.frozen_compute is not None:
            wide = torch.promote_types(plan.frozen_compute, like.dtype)
            operands, memory = _Operands(frozen, plan.frozen_compute, wide), like.new_empty(shape, dtype=wide)
        return cls(
            policy=_Operands(head, plan.compute, like.dtype),
            frozen=operands,
            vocabulary=vocabulary,
            buffer=like.new_empty(shape),
            frozen_buffer=memory,
            keeps=plan.keeps_logits,
            kept=kept,
        )

    def __iter__(self) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """First column, logits [T, W], and the frozen head's."""
        step = max(self.buffer.shape[1], 1)
        for first in range(0, self.vocabulary, step):
            last = min(first + step, self.vocabulary)
            z = self.kept[first // step] if self.kept else self._logits(first, last)
            z_frozen = None
            if self.frozen is not None and self.frozen_buffer is not None:
                z_frozen = self.frozen.logits(self.frozen_buffer[:, : last - first], first, last)
            yield first, z, z_frozen

    def _logits(self, first: int, last: int) -> Tensor:
        buffer = torch.empty_like(self.buffer) if self.keeps else self.buffer
        return self.policy.logits(buffer[:, : last - first], first, last)


def keeps_logits(tokens: int, vocabulary: int, device: torch.device, backend: str, wide: torch.dtype) -> bool:
    """Whether logits of a sweep that will be differentiated are kept.

    Plain torch alone: compiled row operations of torch 2.13 gave garbage on a CPU where the gradient of fp32 logits is
    not written over them (`test_compiled_agrees_with_eager` finds it).
    """
    return device.type == "cpu" and backend == "eager" and tokens * vocabulary * wide.itemsize <= _KEPT_BYTES


def slice_columns(tokens: int, hidden: Tensor, backend: str, logit_bytes: int) -> int:
    """The largest power of two that fits the budget, at least 256; `logit_bytes` are those of all heads together."""
    lean = hidden.is_cuda and backend != "eager"
    budget = _GPU_SLICE_BYTES if lean else _CPU_SLICE_BYTES
    gradient_bytes = 2 if lean else 0
    columns = budget // (max(tokens, 1) * (logit_bytes + gradient_bytes))
    return 1 << max(columns.bit_length() - 1, 8)
