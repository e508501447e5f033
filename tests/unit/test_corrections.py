"""Corrections by hand, against TRL 1.16's and verl's formulas written out again, and through an objective."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from exprl.config import validate
from exprl.corrections import Correction, IcePop, NoCorrection, SequenceMask, TruncatedImportance
from exprl.errors import ConfigError
from exprl.kernels import by_token, mean_by_rollout, sum_by_rollout
from exprl.objectives import Clipped, Reinforce
from exprl.registry import CORRECTIONS

LENGTHS = (5, 1, 12, 7)


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def logprobs(seed: int = 0, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    """Of the trainer and of the sampler [N], four rollouts one after another."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(2, sum(LENGTHS), dtype=torch.float64, generator=generator)
    return -2 + noise[0], -2 + noise[0] + spread * noise[1]


def rows(flat: Tensor) -> Tensor:
    """[B, T] padded with 0, as peers hold them."""
    return torch.nn.utils.rnn.pad_sequence(list(flat.split(LENGTHS)), batch_first=True)


def flat(padded: Tensor) -> Tensor:
    return torch.cat([row[:length] for row, length in zip(padded, LENGTHS, strict=True)])


# ------------------------------------------------------------------ by hand


def test_weights_by_hand() -> None:
    # π_old / π_sampler = 0.5 / 0.4 = 1.25; 0.5 / 0.05 = 10; 0.1 / 0.5 = 0.2
    old, sampler = tensor(0.5, 0.5, 0.1).log(), tensor(0.4, 0.05, 0.5).log()
    cases: list[tuple[Correction, list[float], list[float]]] = [
        (NoCorrection(), [1, 1, 1], [0, 0, 0]),
        (TruncatedImportance(), [1.25, 2, 0.2], [0, 1, 0]),
        (TruncatedImportance(low=0.5, high=None), [1.25, 10, 0.5], [0, 0, 1]),
        (IcePop(), [1.25, 0, 0], [0, 1, 1]),
        (IcePop(low=None, high=20.0), [1.25, 10, 0.2], [0, 0, 0]),
    ]
    for correction, weights, outside in cases:
        found = correction.weights(old, sampler)
        assert found.weight.tolist() == pytest.approx(weights), correction
        assert found.outside.tolist() == outside, correction
        assert correction.weights(old, None).weight.tolist() == [1, 1, 1]


def test_whole_rollouts_by_hand() -> None:
    # rollout 1: ratios 2 and 2, product 4, geometric mean 2; rollout 2: ratio 1.5; rollout 3 has no token
    old, sampler = tensor(0.4, 0.4, 0.6).log(), tensor(0.2, 0.2, 0.4).log()
    for correction, weights in [
        (SequenceMask(), [0, 0, 1.5]),
        (SequenceMask(high=5.0), [4, 4, 1.5]),
        (SequenceMask(ratio="geometric"), [1, 1, 1]),
        (SequenceMask(ratio="geometric", low=1.6), [1, 1, 0]),
        (TruncatedImportance(level="sequence"), [2, 2, 1.5]),
    ]:
        assert correction.weights(old, sampler, (2, 1, 0)).weight.tolist() == pytest.approx(weights), correction


def test_a_rollout_s_weight_is_its_own_alone() -> None:
    """Whatever lies beside it: so micro-batches, packing and ranks change nothing."""
    old, sampler = logprobs()
    for correction in (SequenceMask(), SequenceMask(ratio="geometric", low=0.9, high=1.1)):
        alone = [
            correction.weights(o, s, [len(o)]).weight
            for o, s in zip(old.split(LENGTHS), sampler.split(LENGTHS), strict=True)
        ]
        assert torch.equal(correction.weights(old, sampler, LENGTHS).weight, torch.cat(alone))


# ------------------------------------------------------------------ the peers' formulas


def trl_ratio(mode: str, old: Tensor, sampler: Tensor, mask: Tensor, low: float | None, high: float | None) -> Tensor:
    """trl/trainer/grpo_trainer.py 1.16, GRPOTrainer._generate_and_score_completions, as [B, T]."""
    difference = (old - sampler) * mask
    if mode.startswith("sequence"):
        difference = difference.sum(-1, keepdim=True)
    ratio = difference.exp()
    if mode.endswith("truncate"):
        return ratio.clamp(min=low, max=high).expand_as(mask)
    outside = (ratio < (-math.inf if low is None else low)) | (ratio > (math.inf if high is None else high))
    return ratio.masked_fill(outside, 0.0).expand_as(mask)


@pytest.mark.parametrize("bounds", [(None, 3.0), (0.5, 5.0), (0.8, None)])
@pytest.mark.parametrize(
    ("mode", "make"),
    [
        ("token_truncate", lambda **b: TruncatedImportance(**b)),
        ("sequence_truncate", lambda **b: TruncatedImportance(level="sequence", **b)),
        ("token_mask", lambda **b: IcePop(**b)),
        ("sequence_mask", lambda **b: SequenceMask(**b)),
    ],
)
def test_agrees_with_trl(mode: str, make: Any, bounds: tuple[float | None, float | None]) -> None:
    for seed in range(5):
        old, sampler = logprobs(seed)
        ours = make(low=bounds[0], high=bounds[1]).weights(old, sampler, LENGTHS)
        theirs = trl_ratio(mode, rows(old), rows(sampler), rows(torch.ones_like(old)), *bounds)
        torch.testing.assert_close(ours.weight, flat(theirs))


def verl_geometric_mask(old: Tensor, sampler: Tensor, mask: Tensor, low: float, high: float) -> Tensor:
    """verl/trainer/ppo/rollout_corr_helper.py, rejection sampling of level `geometric`: the mask that is left."""
    mean = ((old - sampler) * mask).sum(-1) / mask.sum(-1)
    ratio = mean.clamp(-20, 20).exp()[:, None]
    return mask * ((ratio >= low) & (ratio <= high))


def test_the_geometric_mask_is_verls() -> None:
    kept = set()
    for seed in range(5):
        old, sampler = logprobs(seed, spread=0.2)
        ours = SequenceMask(ratio="geometric", low=0.95, high=1.05).weights(old, sampler, LENGTHS)
        theirs = verl_geometric_mask(rows(old), rows(sampler), rows(torch.ones_like(old)), 0.95, 1.05)
        assert torch.equal(ours.weight, flat(theirs))
        kept |= set(ours.weight.tolist())
    assert kept == {0.0, 1.0}


# ------------------------------------------------------------------ in a loss


def test_masked_tokens_have_no_policy_gradient_but_their_kl_term() -> None:
    old, sampler = tensor(-1.0, -1.0), tensor(-1.0, -5.0)
    for objective in (Reinforce(correction=IcePop(), kl_coef=0.1, kl="k2"), Clipped(correction=IcePop())):
        logp = old.clone().requires_grad_()
        result = objective.token_loss(
            logp, old, tensor(1.0, 1.0), sampler_logp=sampler, initial_logp=tensor(-1.0, -2.0)
        )
        result.loss.sum().backward()
        assert logp.grad is not None
        # k2: the gradient of Δ²/2 is -Δ = 1, at the second token
        assert logp.grad.tolist() == pytest.approx([-1.0, 0.1 if objective.kl_coef else 0.0])
        assert result.stats["is_outside"].tolist() == [0.0, 1.0]
        assert result.stats["is_weight"].tolist() == [1.0, 0.0]


def test_a_nan_is_neither_inside_nor_outside_and_shows_in_the_loss() -> None:
    old, nan = tensor(-1.0), tensor(math.nan)
    for name in ("tis", "icepop", "sequence_mask"):
        correction = CORRECTIONS.get(name)()
        assert correction.weights(old, nan, [1]).weight.isnan().all(), name
        loss = Clipped(correction=correction).token_loss(old, old, old, sampler_logp=nan, lengths=[1]).loss
        assert loss.isnan().all(), name
    assert SequenceMask(ratio="geometric").weights(old, nan, [1]).weight.isnan().all()


def test_huge_differences_stay_finite() -> None:
    old, sampler = torch.zeros(1000), torch.full((1000,), -500.0)
    for correction in (TruncatedImportance(high=None), TruncatedImportance(level="sequence", high=None)):
        assert correction.weights(old, sampler, [1000]).weight.isfinite().all()


def test_lengths_that_are_missing_or_wrong_are_told() -> None:
    old, sampler = logprobs()
    for correction in (SequenceMask(), SequenceMask(ratio="geometric"), TruncatedImportance(level="sequence")):
        with pytest.raises(ValueError, match=r"^lengths: required to correct whole rollouts"):
            correction.weights(old, sampler)
        with pytest.raises(ValueError, match=r"^lengths: expected the tokens of each rollout, 25 together.*\(7 "):
            correction.weights(old, sampler, (5, 2))


@pytest.mark.parametrize("options", [{"low": 2.0, "high": 2.0}, {"low": 3.0}])
def test_bounds_must_be_in_order(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"^low: must be below high \(2\), but got"):
        validate(TruncatedImportance.Config, options)


def test_the_documented_defaults() -> None:
    assert CORRECTIONS.names() == ["icepop", "none", "sequence_mask", "tis"]
    assert Clipped().correction.config == TruncatedImportance(low=None, high=2.0, level="token").config
    assert IcePop().config == IcePop.Config(low=0.5, high=5.0)
    assert SequenceMask().config == SequenceMask.Config(ratio="product", low=None, high=3.0)


def test_who_sets_the_old_cap_is_told_what_to_write() -> None:
    message = r"unknown option.*correction: \{name: tis, high: 2\.0\}.*null write correction: \{name: none\}"
    with pytest.raises(TypeError, match=message):
        Clipped(is_cap=3.0)  # type: ignore[call-arg]


# ------------------------------------------------------------------ sums over rollouts


def test_sums_and_means_by_rollout() -> None:
    values = torch.arange(6.0, dtype=torch.float64, requires_grad=True)
    assert sum_by_rollout(values, [3, 0, 2, 1]).tolist() == [3.0, 0.0, 7.0, 5.0]
    assert mean_by_rollout(values, [3, 0, 2, 1]).tolist() == [1.0, 0.0, 3.5, 5.0]
    assert by_token(tensor(1, 2, 3, 4), [3, 0, 2, 1]).tolist() == [1, 1, 1, 3, 3, 4]
    assert torch.autograd.gradcheck(lambda x: mean_by_rollout(x, [3, 0, 2, 1]), values)
    assert sum_by_rollout(torch.zeros(0), []).tolist() == []
