"""Objectives and aggregations against TRL 1.16's own loss function and the formulas of verl 0.9, written out again."""

from __future__ import annotations

import importlib.util
import math
from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from exprl.corrections import SequenceMask, TruncatedImportance
from exprl.errors import ConfigError
from exprl.experiment import UpdateConfig
from exprl.objectives import CISPO, DPPO, GSPO, Clipped, Objective
from exprl.training.update import PolicyUpdate, Update

LENGTHS = (5, 1, 12, 7)
N = sum(LENGTHS)
LIMIT = 16


class Batch:
    """N random tokens of four rollouts; `logp` has gradient, the rollouts' advantages are the same at each token."""

    def __init__(self, seed: int, spread: float = 0.3) -> None:
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(5, N, dtype=torch.float64, generator=generator)
        logp = -(0.5 + 2 * torch.rand(N, dtype=torch.float64, generator=generator))
        self.logp = logp.clone().requires_grad_()
        self.old = (logp + spread * noise[0]).clamp(max=-1e-3)
        self.sampler, self.initial = self.old + 0.2 * noise[1], logp + 0.5 * noise[2]
        self.entropy = noise[3].abs().requires_grad_()
        self.of_rollouts = torch.randn(len(LENGTHS), dtype=torch.float64, generator=generator)
        self.advantages = self.of_rollouts.repeat_interleave(torch.tensor(LENGTHS))
        self.of_tokens = noise[4]

    def gradient(self, loss: Tensor) -> Tensor:
        (result,) = torch.autograd.grad(loss.sum(), self.logp)
        return result


def rows(flat: Tensor) -> Tensor:
    """[B, T] padded with 0, as peers hold them."""
    return torch.nn.utils.rnn.pad_sequence(list(flat.split(LENGTHS)), batch_first=True)


def flat(padded: Tensor) -> Tensor:
    return torch.cat([row[:length] for row, length in zip(padded, LENGTHS, strict=True)])


def assert_agree(batch: Batch, objective: Objective, advantages: Tensor, theirs: Tensor) -> Tensor:
    """Loss and gradient of each token; returns which are clipped."""
    ours = objective.token_loss(batch.logp, batch.old, advantages, lengths=LENGTHS)
    torch.testing.assert_close(ours.loss, theirs)
    torch.testing.assert_close(batch.gradient(ours.loss), batch.gradient(theirs))
    return ours.stats["clipped"]


# ------------------------------------------------------------------ by hand


def test_gspo_by_hand() -> None:
    """Ratios 1.2 and 0.9 of two tokens: s = exp((log 1.2 + log 0.9) / 2) = sqrt(1.08), beyond the paper's bounds."""
    old = torch.tensor([0.5, 0.5], dtype=torch.float64).log()
    logp = torch.tensor([0.6, 0.45], dtype=torch.float64).log().requires_grad_()
    advantages = torch.tensor([2.0, 2.0], dtype=torch.float64)
    wide = GSPO(sequence_clip_low=0.2, sequence_clip_high=0.2)
    result = wide.token_loss(logp, old, advantages, lengths=[2])
    assert result.loss.tolist() == pytest.approx([-2 * math.sqrt(1.08)] * 2)
    (gradient,) = torch.autograd.grad(result.loss.sum(), logp)
    assert gradient.tolist() == pytest.approx([-2 * math.sqrt(1.08)] * 2)
    clipped = GSPO().token_loss(logp, old, advantages, lengths=[2])
    assert clipped.stats["clipped"].tolist() == [1.0, 1.0]
    assert clipped.loss.tolist() == pytest.approx([-2 * 1.0004] * 2)


def test_dppo_by_hand() -> None:
    """From 0.001 to 0.002 the ratio doubles and nothing is far; from 0.5 to 0.7 it is 1.4, and 0.2 is too far."""
    old, logp = (torch.tensor(p, dtype=torch.float64).log() for p in ([0.001, 0.5, 0.5], [0.002, 0.7, 0.7]))
    result = DPPO().token_loss(logp, old, torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64))
    assert result.stats["clipped"].tolist() == [0.0, 1.0, 0.0], "a step that leads back is free"
    assert result.loss.tolist() == pytest.approx([-2 * math.log(0.002), 0.0, 1.4 * math.log(0.7)])


def test_gspo_needs_lengths_and_bounds_are_checked() -> None:
    batch = Batch(0)
    with pytest.raises(ValueError, match=r"^lengths: required by gspo"):
        GSPO().token_loss(batch.logp, batch.old, batch.advantages)
    with pytest.raises(ValueError, match=r"^lengths: expected the tokens of each rollout, 25 together"):
        GSPO().token_loss(batch.logp, batch.old, batch.advantages, lengths=[25, 1])
    with pytest.raises(ConfigError, match=r"^ratio_low: must be below ratio_high \(5\), but got 6"):
        CISPO(ratio_low=6.0)
    with pytest.raises(ValueError, match=r"^entropy: required with entropy_coef 0\.1"):
        Clipped(entropy_coef=0.1).token_loss(batch.logp, batch.old, batch.advantages)


# ------------------------------------------------------------------ verl's formulas


def verl_gspo(batch: Batch, advantages: Tensor, low: float, high: float) -> Tensor:
    """verl/trainer/ppo/core_algos.py, compute_policy_loss_gspo, before its aggregation."""
    logp, old, mask = rows(batch.logp), rows(batch.old), rows(torch.ones(N, dtype=torch.float64))
    mean = ((logp - old) * mask).sum(-1) / mask.sum(-1)
    ratio = (logp - logp.detach() + mean.detach()[:, None]).clamp(max=10.0).exp()
    given = rows(advantages)
    return flat(torch.maximum(-given * ratio, -given * ratio.clamp(1 - low, 1 + high)))


def verl_cispo(batch: Batch, advantages: Tensor, low: float, high: float) -> Tensor:
    """compute_policy_loss_cispo, with the bounds of the ratio."""
    ratio = (batch.logp - batch.old).clamp(-20, 20).exp()
    return -ratio.clamp(low, high).detach() * advantages * batch.logp


def verl_dppo(batch: Batch, advantages: Tensor, kind: str, low: float, high: float) -> Tensor:
    """compute_policy_loss_dppo_tv and compute_policy_loss_dppo_kl."""
    p, q = batch.logp.detach().exp(), batch.old.exp()
    ratio = (batch.logp - batch.old).clamp(-20, 20).exp().clamp(max=20.0).detach()
    if kind == "tv":
        up, down = (p - q) <= high, (p - q) >= -low
    else:
        kl = q * (batch.old - batch.logp.detach()) + (1 - q) * ((1 - q + 1e-8) / (1 - p + 1e-8)).log()
        up, down = (kl <= high) | (p <= q), (kl <= low) | (p >= q)
    valid = torch.where(advantages > 0, up, down).double()
    return -advantages * ratio * batch.logp * valid


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_verl(seed: int) -> None:
    batch, clipped = Batch(seed), dict[str, Tensor]()
    for advantages in (batch.advantages, batch.of_tokens):
        gspo = GSPO(sequence_clip_low=0.03, sequence_clip_high=0.04)
        clipped["gspo"] = assert_agree(batch, gspo, advantages, verl_gspo(batch, advantages, 0.03, 0.04))
        cispo = CISPO(ratio_low=0.8, ratio_high=1.28)
        clipped["cispo"] = assert_agree(batch, cispo, advantages, verl_cispo(batch, advantages, 0.8, 1.28))
        for kind, low, high in (("tv", 0.02, 0.03), ("kl", 0.002, 0.003)):
            dppo = DPPO(divergence=kind, delta_low=low, delta_high=high)
            theirs = verl_dppo(batch, advantages, kind, low, high)
            clipped[kind] = assert_agree(batch, dppo, advantages, theirs)
    for name, found in clipped.items():
        assert name == "gspo" or 0 < found.sum() < N, name


# ------------------------------------------------------------------ TRL's own function


def trl_loss(batch: Batch, **options: Any) -> Tensor:
    """`GRPOTrainer._compute_loss` on this batch, as one micro-batch of the update.

    The trainer is an object with the attributes that the function reads, and the model's log-probs are the batch's.
    """
    from trl.trainer.grpo_trainer import GRPOTrainer

    mask = rows(torch.ones(N))
    chosen = {
        "loss_type": "grpo",
        "importance_sampling_level": "token",
        "epsilon_low": 0.2,
        "epsilon_high": 0.2,
        "beta": 0.0,
        "entropy_coef": 0.0,
        "_entropy_bonus_enabled": bool(options.get("entropy_coef")),
        "max_completion_length": LIMIT,
        **options,
    }
    given = SimpleNamespace(
        **chosen,
        _get_per_token_logps_and_entropies=lambda *_, **__: (rows(batch.logp), rows(batch.entropy), None),
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm="ratio" in options,
        vllm_importance_sampling_correction=True,
        use_adaptive_entropy=False,
        aux_loss_enabled=False,
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        accelerator=SimpleNamespace(
            num_processes=1, sync_gradients=False, gather=lambda x: x, reduce=lambda x, reduction: x
        ),
        _metrics=defaultdict(lambda: defaultdict(list)),
    )
    inputs = {
        "prompt_ids": torch.zeros(len(LENGTHS), 1, dtype=torch.long),
        "prompt_mask": torch.ones(len(LENGTHS), 1, dtype=torch.long),
        "completion_ids": mask.long(),
        "completion_mask": mask.long(),
        "advantages": batch.of_rollouts,
        "old_per_token_logps": rows(batch.old),
        "ref_per_token_logps": rows(batch.initial),
        "importance_sampling_ratio": options.get("ratio"),
        "num_items_in_batch": mask.sum(),
    }
    loss: Tensor = GRPOTrainer._compute_loss(given, None, inputs)
    return loss


def our_loss(batch: Batch, objective: Objective, *, sampler: bool = False, **options: Any) -> Tensor:
    """The objective's loss aggregated by the update's own rule."""
    loss = objective.token_loss(
        batch.logp,
        batch.old,
        batch.advantages,
        sampler_logp=batch.sampler if sampler else None,
        initial_logp=batch.initial,
        lengths=LENGTHS,
        entropy=batch.entropy,
    ).loss
    rule = SimpleNamespace(options=UpdateConfig(**options), aggregated_length=LIMIT)
    update = Update(micro_batches=(), tokens=N, rollouts=len(LENGTHS))
    return PolicyUpdate.aggregated(rule, loss, LENGTHS, update).sum() / N  # type: ignore[arg-type]


CASES: list[tuple[Callable[[], Objective], dict[str, Any], dict[str, Any]]] = [
    (lambda: Clipped(clip_high=0.28), {"aggregation": "token"}, {"loss_type": "dapo", "epsilon_high": 0.28}),
    (lambda: Clipped(clip_high=0.2), {"aggregation": "sequence"}, {"loss_type": "grpo"}),
    (lambda: Clipped(clip_high=0.2, kl_coef=0.04), {"aggregation": "sequence"}, {"loss_type": "grpo", "beta": 0.04}),
    (lambda: Clipped(clip_high=0.2), {"aggregation": "constant"}, {"loss_type": "dr_grpo"}),
    (lambda: CISPO(ratio_high=1.2), {"aggregation": "token"}, {"loss_type": "cispo", "epsilon_high": 1.2}),
    (
        lambda: GSPO(sequence_clip_low=0.03, sequence_clip_high=0.04),
        {"aggregation": "sequence"},
        {
            "loss_type": "grpo",
            "importance_sampling_level": "sequence",
            "epsilon_low": 0.03,
            "epsilon_high": 0.04,
        },
    ),
    (lambda: Clipped(clip_high=0.2, entropy_coef=0.01), {}, {"loss_type": "dapo", "entropy_coef": 0.01}),
]


@pytest.mark.slow  # importing TRL takes ten seconds
@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL is not installed")
@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(map(str, case[2].values())))
def test_agrees_with_trls_own_loss_of_a_batch(case: Any) -> None:
    make, aggregation, options = case
    for seed in range(3):
        batch = Batch(seed)
        ours, theirs = our_loss(batch, make(), **aggregation), trl_loss(batch, **options)
        torch.testing.assert_close(ours, theirs)
        wanted = [batch.logp, batch.entropy] if options.get("entropy_coef") else [batch.logp]
        for own, other in zip(torch.autograd.grad(ours, wanted), torch.autograd.grad(theirs, wanted), strict=True):
            torch.testing.assert_close(own, other)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL is not installed")
def test_weights_multiply_the_loss_as_in_trl() -> None:
    batch = Batch(5)
    difference = rows(batch.old - batch.sampler)
    for correction, ratio in (
        (TruncatedImportance(high=1.1), difference.exp().clamp(max=1.1)),
        (SequenceMask(high=1.5), (r := difference.sum(-1, keepdim=True).exp()).masked_fill(r > 1.5, 0.0)),
    ):
        objective = Clipped(clip_high=0.2, kl_coef=0.04, correction=correction)
        ours = our_loss(batch, objective, sampler=True, aggregation="sequence")
        theirs = trl_loss(batch, beta=0.04, ratio=ratio)
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(batch.gradient(ours), batch.gradient(theirs))
