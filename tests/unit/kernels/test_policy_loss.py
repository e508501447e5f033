"""The policy loss: its formulas by hand, then both backends against autograd of a naive composition."""

import math

import pytest
import torch

from exprl.kernels import policy_token_loss
from exprl.kernels.policy import clipped_surrogate, kl_estimate, ratio_of
from tests.unit.kernels import naive
from tests.unit.kernels.comparison import assert_same
from tests.unit.kernels.naive import policy_inputs


def tensor(*values, grad=False):
    return torch.tensor(values, dtype=torch.float64, requires_grad=grad)


def gradient(loss, logp):
    return torch.autograd.grad(loss.sum(), logp, retain_graph=True)[0]


# ------------------------------------------------------------------ the formulas by hand


def test_clipped_surrogate_by_hand():
    # clip_low 0.2, clip_high 0.28, c = 3:
    #   rho 1.5, A +1: min(1.5, 1.28) = 1.28, clipped   | rho 0.5, A +1: min(0.5, 0.8) = 0.5
    #   rho 0.5, A -1: min(-0.5, -0.8) = -0.8, clipped  | rho 1.5, A -1: min(-1.5, -1.28) = -1.5
    #   rho 4.0, A -2: -8, held at c A = -6, clipped    | rho 1.0, A 0: 0
    ratio = tensor(1.5, 0.5, 0.5, 1.5, 4.0, 1.0, grad=True)
    advantages = tensor(1.0, 1.0, -1.0, -1.0, -2.0, 0.0)
    loss, clipped = clipped_surrogate(ratio, advantages, clip_low=0.2, clip_high=0.28, dual_clip=3.0)
    assert loss.tolist() == pytest.approx([-1.28, -0.5, 0.8, 1.5, 6.0, 0.0])
    assert clipped.tolist() == [True, False, True, False, True, False]
    assert gradient(loss, ratio).tolist() == pytest.approx([0.0, -1.0, 0.0, 1.0, 0.0, 0.0])
    loss, clipped = clipped_surrogate(ratio, advantages, clip_low=0.2, clip_high=0.28, dual_clip=None)
    assert (loss[4].item(), clipped[4].item()) == (8.0, False)


def test_kl_estimates_by_hand():
    # log pi = log 0.5, log pi_initial = log 0.25: delta = -log 2
    logp, initial = tensor(math.log(0.5), grad=True), tensor(math.log(0.25))
    log2 = math.log(2)
    k1, k2, k3 = (kl_estimate(logp, initial, kind) for kind in ("k1", "k2", "k3"))
    assert [k.item() for k in (k1, k2, k3)] == pytest.approx([log2, log2**2 / 2, 0.5 + log2 - 1])
    # d/dlogp: k1: 1; k2: -delta; k3: 1 - exp(delta)
    assert [gradient(k, logp).item() for k in (k1, k2, k3)] == pytest.approx([1.0, log2, 0.5])


def test_kl_gradients_in_expectation():
    # Over a whole distribution: sum of pi(x) times the gradient of each estimate.
    logits = tensor(0.3, -0.8, 1.1, grad=True)
    initial = torch.log_softmax(tensor(-0.5, 0.4, 0.2), -1)

    def expected(kind):
        logp = torch.log_softmax(logits, -1)
        return torch.autograd.grad((logp.exp().detach() * kl_estimate(logp, initial, kind)).sum(), logits)[0]

    logp = torch.log_softmax(logits, -1)
    reverse = torch.autograd.grad((logp.exp() * (logp - initial)).sum(), logits)[0]
    forward = torch.autograd.grad((initial.exp() * (initial - torch.log_softmax(logits, -1))).sum(), logits)[0]
    torch.testing.assert_close(expected("k1"), torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(expected("k2"), reverse)
    torch.testing.assert_close(expected("k3"), forward)


def test_huge_differences_stay_finite():
    assert ratio_of(tensor(0.0, -500.0), tensor(-500.0, 0.0)).tolist() == pytest.approx([math.exp(20), math.exp(-20)])
    assert kl_estimate(tensor(-500.0), tensor(0.0), "k3").item() == pytest.approx(math.exp(20) - 21)


def test_by_hand(fp32):
    # Ratio 0.6 / 0.5 = 1.2 (not clipped), A = 2, weight 1.25, pi_initial = 0.3: delta = -log 2, k3 = 0.5 + log 2 - 1.
    #   loss = -1.2 * 2 * 1.25 + 0.1 k3; d loss / d logp = -1.2 * 2 * 1.25 + 0.1 (1 - 0.5).
    def log(x):
        return torch.tensor([x], device=fp32.device).log()

    logp, k3 = log(0.6).requires_grad_(), 0.5 + math.log(2) - 1
    result = policy_token_loss(
        logp,
        log(0.5),
        torch.tensor([2.0], device=fp32.device),
        is_weight=torch.tensor([1.25], device=fp32.device),
        initial_logp=log(0.3),
        kl_coef=0.1,
        backend=fp32.backend,
    )
    assert result.loss.item() == pytest.approx(-3.0 + 0.1 * k3)
    assert gradient(result.loss, logp).item() == pytest.approx(-3.0 + 0.05)
    stats = {name: value.item() for name, value in result.stats.items()}
    assert stats == pytest.approx({"ratio": 1.2, "clipped": 0.0, "is_weight": 1.25, "kl": k3})
    assert not any(value.requires_grad for value in result.stats.values())


# ------------------------------------------------------------------ every branch, against a naive composition


def compare(place, options, mask=None, weight=True, initial=True):
    """Loss and gradient of ours and of the naive one in float64, from the same rounded inputs."""
    sides = []
    for x, function, extra in (
        (policy_inputs(place.dtype, place.device), policy_token_loss, {"backend": place.backend}),
        ([x.detach().double() for x in policy_inputs(place.dtype)], naive.policy_loss, {}),
    ):
        logp, old, advantages, weights, initial_logp = x
        logp.requires_grad_()
        result = function(
            logp,
            old,
            advantages,
            None if mask is None else mask.to(logp.device),
            is_weight=weights if weight else None,
            initial_logp=initial_logp if initial else None,
            **options,
            **extra,
        )
        sides.append((result, result.loss if function is policy_token_loss else result, logp))
    (result, ours, our_logp), (_, theirs, their_logp) = sides
    mix = torch.linspace(-1, 2, len(theirs), dtype=torch.float64)
    assert_same(ours, theirs, **place.close)
    assert_same(gradient(ours * mix.to(ours), our_logp), gradient(theirs * mix, their_logp), **place.close)
    return result


@pytest.mark.parametrize("dual_clip", [None, 3.0])
@pytest.mark.parametrize("kl", [None, "k1", "k2", "k3"])
@pytest.mark.parametrize("weight", [False, True])
def test_against_a_naive_composition(place, dual_clip, kl, weight):
    options = {"dual_clip": dual_clip, "kl_coef": 0.0 if kl is None else 0.3, "kl": kl or "k3"}
    compare(place, options, weight=weight, initial=kl is not None)


@pytest.mark.parametrize(("clip_low", "clip_high"), [(0.0, 0.0), (0.2, 0.2), (0.6, 1.0), (1.0, math.inf)])
def test_clips(place, clip_low, clip_high):
    compare(place, {"clip_low": clip_low, "clip_high": clip_high})


def test_whole_numbers_as_options(fp32):
    compare(fp32, {"clip_low": 0, "clip_high": 1, "dual_clip": 3, "kl_coef": 1})


def test_statistics(place):
    logp, old, advantages, weights, initial = (x.detach().double().cpu() for x in policy_inputs(place.dtype))
    stats = compare(place, {"dual_clip": 3.0, "kl_coef": 0.1}).stats
    ratio = (logp - old).clamp(-20, 20).exp()
    assert_same(stats["ratio"], ratio, **place.close)
    held = (advantages > 0) & (ratio > 1.28) | (advantages < 0) & ((ratio < 0.8) | (ratio > 3))
    assert stats["clipped"].cpu().tolist() == held.double().tolist()
    assert 0 < held.sum() < len(held)
    assert_same(stats["is_weight"], weights, **place.close)
    gap = (initial - logp).clamp(-20, 20)
    assert_same(stats["kl"], gap.exp() - gap - 1, **place.close)
    assert not any(x.requires_grad for x in stats.values())


def test_the_statistic_kl_needs_no_coefficient(fp32):
    with_initial = compare(fp32, {"kl_coef": 0.0})
    without = compare(fp32, {"kl_coef": 0.0}, initial=False)
    assert torch.equal(with_initial.loss, without.loss)
    assert with_initial.stats["kl"].max() > 1
    assert "kl" not in without.stats


def test_more_tokens_than_a_block(fp32):
    g = torch.Generator().manual_seed(0)
    logp, old, advantages = (torch.randn(3, 2051, generator=g, dtype=torch.float64).float() + 0.0).unbind(0)
    logp.requires_grad_()
    got = policy_token_loss(*(x.to(fp32.device) for x in (logp, old, advantages)), backend=fp32.backend)
    expected = naive.policy_loss(logp.detach().double(), old.double(), advantages.double())
    assert_same(got.loss, expected, rtol=1e-5, atol=1e-5)
