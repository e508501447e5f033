"""Liger-Kernel 0.8.5, read in liger_kernel/ops and liger_kernel/chunked_loss."""

from __future__ import annotations

from functools import partial

from kernel_peers.base import Adapter, Forward, Outputs, Problem

JSD_BETA = {"fkl": 0.0, "rkl": 1.0, "jsd": 0.5}
"""ops/jsd.py: input X is the student, target Y the teacher; 0 gives KL(teacher ‖ student)."""


def _hopper() -> Forward:
    # ops/fused_linear_scaled_cross_entropy.py: apply(_input, weight, target, temperature, ignore_index,
    # m_tiles_per_cluster, return_entropy) -> nll fp32, entropy bf16; on compute capability 9.0 the CuteDSL kernels.
    import cutlass.cute  # noqa: F401 - the kernels need nvidia-cutlass-dsl>=4.6; missing, this peer is absent
    from liger_kernel.ops.fused_linear_scaled_cross_entropy import LigerFusedLinearScaledCrossEntropyFunction

    def forward(problem: Problem) -> Outputs:
        nll, entropy = LigerFusedLinearScaledCrossEntropyFunction.apply(
            *problem.inputs, problem.ids, 1.0, -100, 1, True
        )
        return Outputs(logp=-nll, entropy=entropy)

    return forward


def _without_hopper() -> Forward:
    # The same file's path for every other device: chunks of 512 tokens in plain torch, adapted from verl.
    from liger_kernel.ops.fused_linear_scaled_cross_entropy import _FusedLinearPPOFallbackFunction

    def forward(problem: Problem) -> Outputs:
        nll, entropy = _FusedLinearPPOFallbackFunction.apply(*problem.inputs, problem.ids, 1.0, -100, True)
        return Outputs(logp=-nll, entropy=entropy)

    return forward


def _fused_linear_cross_entropy() -> Forward:
    # transformers/functional.py: liger_fused_linear_cross_entropy(input, weight, target, ..., reduction); for "none"
    # it recomputes going backward. accum_dtype is left at its default, the weight's dtype.
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    def forward(problem: Problem) -> Outputs:
        return Outputs(logp=-liger_fused_linear_cross_entropy(*problem.inputs, problem.ids, reduction="none"))

    return forward


def _selective() -> Forward:
    # chunked_loss/fused_linear_ppo.py: apply(hidden, weight, targets, bias, temperature, vocab_chunk_size), which
    # LigerFusedLinearGRPOLoss uses with chunks of 4,096.
    from liger_kernel.chunked_loss.fused_linear_ppo import (
        _SELECTIVE_LOGPROB_VOCAB_CHUNK_SIZE,
        _ChunkedSelectiveLogProbFunction,
    )

    def forward(problem: Problem) -> Outputs:
        hidden, weight = problem.inputs
        return Outputs(
            logp=_ChunkedSelectiveLogProbFunction.apply(
                hidden, weight, problem.ids, None, 1.0, _SELECTIVE_LOGPROB_VOCAB_CHUNK_SIZE
            )
        )

    return forward


def _cross_entropy() -> Forward:
    # transformers/functional.py: liger_cross_entropy(input, target, ..., reduction). Its forward pass writes the
    # gradient over the logits; the loss has the logits' dtype.
    from liger_kernel.transformers.functional import liger_cross_entropy

    def forward(problem: Problem) -> Outputs:
        return Outputs(logp=-liger_cross_entropy(problem.inputs[0], problem.ids, reduction="none"))

    return forward


def _jsd(kind: str) -> Forward:
    # ops/fused_linear_jsd.py: apply(student_input, student_weight, teacher_input, teacher_weight, shift_labels,
    # jsd_beta) -> the mean over tokens, with gradients formed in the forward pass.
    from liger_kernel.ops.fused_linear_jsd import LigerFusedLinearJSDFunction

    def forward(problem: Problem) -> Outputs:
        assert problem.frozen is not None
        return Outputs(mean=LigerFusedLinearJSDFunction.apply(*problem.inputs, *problem.frozen, None, JSD_BETA[kind]))

    return forward


ADAPTERS = [
    Adapter(peer="Liger cross entropy", task="logits", load=_cross_entropy, note="no entropy", overwrites=True),
    Adapter(peer="Liger FLCE", task="linear", load=_fused_linear_cross_entropy, note="no entropy"),
    Adapter(peer="Liger selective", task="linear", load=_selective, on_cpu=True, note="no entropy"),
    Adapter(peer="Liger chunked", task="linear", load=_without_hopper, on_cpu=True, note="entropy in bf16"),
    Adapter(peer="Liger Hopper", task="linear", load=_hopper, note="entropy in bf16"),
    *(
        Adapter(peer="Liger JSD", task=kind, load=partial(_jsd, kind), note="mean only")
        for kind in ("rkl", "fkl", "jsd")
    ),
]
