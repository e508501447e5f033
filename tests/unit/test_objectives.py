"""Objectives by hand, and against the formulas of TRL 1.16 and verl 0.9, written out again here."""

import math

import pytest
import torch

from exprl.component import Choice
from exprl.config import validate
from exprl.corrections import TruncatedImportance
from exprl.errors import ConfigError
from exprl.experiment import OptimizerConfig
from exprl.objectives import CISPO, DPPO, GSPO, Clipped, Reinforce
from exprl.registry import CORRECTIONS, OBJECTIVES


def tensor(*values, grad=False):
    return torch.tensor(values, dtype=torch.float64, requires_grad=grad)


def random_batch(n=200, seed=0):
    """logp with gradient, old, advantages, sampler, reference."""
    g = torch.Generator().manual_seed(seed)

    def normal(scale):
        return scale * torch.randn(n, dtype=torch.float64, generator=g)

    logp = -2 + normal(1.0)
    return (
        logp.clone().requires_grad_(),
        logp + normal(0.5),
        normal(1.0),
        logp + normal(0.7),
        logp + normal(0.5),
    )


def gradient(loss, logp):
    (result,) = torch.autograd.grad(loss.sum(), logp)
    return result


# ------------------------------------------------------------------ by hand


def test_on_policy_the_gradient_is_that_of_reinforce():
    logp = tensor(-1.0, -2.0, grad=True)
    advantages = tensor(0.5, -1.5)
    for objective in (Clipped(), Reinforce()):
        loss = objective.token_loss(logp, logp.detach(), advantages).loss
        assert gradient(loss, logp).tolist() == pytest.approx([-0.5, 1.5])


def test_token_loss_puts_the_parts_together():
    # ratio 0.6/0.5 = 1.2 (not clipped), A = 2, weight 0.5/0.4 = 1.25, pi_initial = 0.3: delta = -log 2,
    # k3 = 0.5 + log 2 - 1. loss = -1.2 * 2 * 1.25 + 0.1 k3.
    k3 = 0.5 + math.log(2) - 1
    objective = Clipped(kl_coef=0.1)
    result = objective.token_loss(
        tensor(0.6).log().requires_grad_(),
        tensor(0.5).log(),
        tensor(2.0),
        sampler_logp=tensor(0.4).log(),
        initial_logp=tensor(0.3).log(),
    )
    assert result.loss.item() == pytest.approx(-3.0 + 0.1 * k3)
    stats = {name: value.item() for name, value in result.stats.items()}
    assert stats == pytest.approx({"ratio": 1.2, "clipped": 0.0, "is_weight": 1.25, "is_outside": 0.0, "kl": k3})
    assert not any(value.requires_grad for value in result.stats.values())


def test_reinforce_by_hand():
    logp = tensor(-1.5, grad=True)
    result = Reinforce().token_loss(logp, tensor(-1.0), tensor(2.0), sampler_logp=tensor(-1.0 - math.log(4)))
    assert result.loss.item() == pytest.approx(-2.0 * -1.5 * 2.0)
    assert gradient(result.loss, logp).item() == pytest.approx(-4.0)
    assert result.stats["clipped"].item() == 0.0
    assert result.stats["ratio"].item() == pytest.approx(math.exp(-0.5))
    assert "kl" not in result.stats


# ------------------------------------------------------------------ the peers' formulas


def verl_policy_loss(logp, old, advantages, low, high, c, weights):
    """verl/trainer/ppo/core_algos.py, compute_policy_loss_vanilla, before its aggregation."""
    ratio = (logp - old).clamp(-20, 20).exp()
    one = -advantages * ratio
    two = -advantages * ratio.clamp(1 - low, 1 + high)
    upper = torch.maximum(one, two)
    lower = torch.min(-advantages * c, upper)
    return torch.where(advantages < 0, lower, upper) * weights


def verl_kl(logp, initial, kind):
    """verl/trainer/ppo/core_algos.py, kl_penalty_forward (`low_var_kl` is k3; it also holds the result below 10)."""
    if kind == "k1":
        return logp - initial
    if kind == "k2":
        return 0.5 * (logp - initial).square()
    difference = (initial - logp).clamp(-20, 20)
    return (difference.exp() - difference - 1).clamp(-10, 10)


def trl_per_token_loss(logp, old, advantages, low, high, delta, beta, initial, weights):
    """trl/trainer/grpo_trainer.py, GRPOTrainer._compute_loss, loss types grpo/dapo/dr_grpo, token level."""
    coef_1 = torch.exp(logp - old)
    coef_2 = coef_1.clamp(1 - low, 1 + high)
    if delta is not None:
        coef_1 = coef_1.clamp(max=delta)
    loss = -torch.min(coef_1 * advantages, coef_2 * advantages) * weights
    return loss + beta * (torch.exp(initial - logp) - (initial - logp) - 1)


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_verl(seed):
    logp, old, advantages, sampler, initial = random_batch(seed=seed)
    old = old + torch.where(torch.arange(len(old)) % 10 == 0, -2.0, 0.0)  # some ratios beyond c
    weights = (old - sampler).clamp(-20, 20).exp().clamp(max=2.0)  # rollout correction, token level, threshold 2
    for kind in ("k1", "k2", "k3"):
        objective = Clipped(dual_clip=3.0, kl_coef=0.05, kl=kind)
        ours = objective.token_loss(logp, old, advantages, sampler_logp=sampler, initial_logp=initial)
        theirs = verl_policy_loss(logp, old, advantages, 0.2, 0.28, 3.0, weights) + 0.05 * verl_kl(logp, initial, kind)
        torch.testing.assert_close(ours.loss, theirs)
        torch.testing.assert_close(gradient(ours.loss, logp), gradient(theirs, logp))
    assert (ours.stats["ratio"] > 3).any()


@pytest.mark.parametrize("delta", [None, 3.0])
def test_agrees_with_trl(delta):
    logp, old, advantages, sampler, initial = random_batch(seed=7)
    weights = (old - sampler).exp().clamp(max=3.0)
    objective = Clipped(clip_high=0.2, dual_clip=delta, kl_coef=0.04, correction=TruncatedImportance(high=3.0))
    ours = objective.token_loss(logp, old, advantages, sampler_logp=sampler, initial_logp=initial).loss
    theirs = trl_per_token_loss(logp, old, advantages, 0.2, 0.2, delta, 0.04, initial, weights)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradient(ours, logp), gradient(theirs, logp))


# ------------------------------------------------------------------ guards


@pytest.mark.parametrize("objective", [Clipped(kl_coef=0.1), Reinforce(kl_coef=0.1)])
def test_gradient_flows_through_the_current_policy_only(objective):
    inputs = [x.detach().requires_grad_() for x in random_batch()]
    logp, old, advantages, sampler, initial = inputs
    result = objective.token_loss(logp, old, advantages, sampler_logp=sampler, initial_logp=initial)
    result.loss.sum().backward()
    assert logp.grad is not None
    assert [x.grad for x in (old, advantages, sampler, initial)] == [None] * 4


def test_needs_initial_policy():
    assert not Clipped().needs_initial_policy
    objective = Reinforce(kl_coef=0.001)
    assert objective.needs_initial_policy
    with pytest.raises(ValueError, match=r"initial_logp: required with kl_coef 0\.001"):
        objective.token_loss(tensor(-1.0), tensor(-1.0), tensor(1.0))


def test_shapes_are_checked_by_name():
    with pytest.raises(ValueError, match=r"advantages: expected floating point \[2\], but got float64 \[1\]"):
        Clipped().token_loss(tensor(-1.0, -1.0), tensor(-1.0, -1.0), tensor(1.0))
    with pytest.raises(ValueError, match=r"logp: expected floating point \[T\], but got float32 \[1, 2\]"):
        Clipped().token_loss(torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1, 2))


@pytest.mark.parametrize("objective", [Clipped(), Reinforce(), CISPO(), DPPO(), GSPO()], ids=lambda o: type(o).__name__)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logp": [0.0, 1.0]}, r"logp: expected floating point \[T\], but got list \[0\.0, 1\.0\]"),
        *(
            ({name: value}, rf"^{name}: expected floating point \[2\], but got {got}")
            for name in ("old_logp", "advantages", "sampler_logp", "initial_logp", "entropy")
            for value, got in (
                ([0.0, 1.0], r"list \[0\.0, 1\.0\]"),
                (torch.zeros(2, 1), r"float32 \[2, 1\]"),
                (torch.zeros(2, dtype=torch.int64), "int64"),
            )
        ),
        ({"advantages": torch.zeros(2, device="meta")}, "advantages: expected a tensor on cpu"),
        ({"lengths": [1, 2]}, r"lengths: expected the tokens of each rollout, 2 together, but got \[1, 2\]"),
        ({"lengths": [1.0, 1.0]}, r"lengths: expected the tokens of each rollout, but got list \[1\.0, 1\.0\]"),
    ],
)
def test_every_wrong_argument_is_named(objective, change, message):
    right = {name: tensor(-1.0, -1.0) for name in ("logp", "old_logp", "advantages")} | {"lengths": [1, 1]}
    with pytest.raises(ValueError, match=message):
        objective.token_loss(**{**right, **change})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip_low": 1.5}, r"^clip_low: must be in \[0, 1\], but got 1\.5"),
        ({"clip_high": -0.1}, r"^clip_high: must be in \[0, 1000000\]"),
        ({"dual_clip": 1.1}, r"^dual_clip: must exceed 1 \+ clip_high"),
        ({"kl_coef": -1.0}, r"^kl_coef: must be in \[0, 1000\]"),
        ({"correction": {"high": 0.0}}, r"^correction.high: must be in \[1e-18, 1000000\]"),
        ({"is_cap": 3.0}, "is_cap: unknown option"),
        ({"kl": "k4"}, "k3"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        validate(Clipped.Config, options)


def test_registered_with_the_documented_defaults():
    assert OBJECTIVES.names() == ["cispo", "clipped", "dppo", "gspo", "reinforce"]
    assert validate(Clipped.Config, {}) == Clipped.Config(
        clip_low=0.2,
        clip_high=0.28,
        dual_clip=None,
        kl_coef=0.0,
        kl="k3",
        correction=Choice.of(CORRECTIONS, "tis", high=2.0),
    )


@pytest.mark.parametrize("key", ["lr", "max_grad_norm"])
@pytest.mark.parametrize("value", [1e-320, 1e-300, 1e-45, 0.0])
def test_numbers_that_float32_cannot_hold_are_refused(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"^{key}: must be in \[1e-18, "):
        OptimizerConfig(**{key: value})


def test_values_that_are_no_numbers_show_in_their_tokens_loss_alone() -> None:
    loss = Clipped().token_loss(tensor(-1, -math.inf, -1), tensor(-1, -math.inf, -1), tensor(math.nan, 1, 1)).loss
    assert loss.isnan().tolist() == [True, True, False]
