"""The policy loss where it is delicate: masked tokens, views, low precision, the kinks, and inside autograd."""

import math

import pytest
import torch

from exprl.kernels import policy_token_loss
from tests.unit.kernels import naive
from tests.unit.kernels.comparison import assert_same
from tests.unit.kernels.naive import policy_inputs

NAN = float("nan")


def gradient(loss, logp):
    return torch.autograd.grad(loss.sum(), logp, retain_graph=True)[0]


# ------------------------------------------------------------------ masks and views


@pytest.mark.parametrize("kl", ["k1", "k2", "k3"])
def test_masked_tokens_leave_no_trace(place, kl):
    mask = torch.arange(len(policy_inputs(place.dtype).logp)) % 3 != 1
    options = {"kl_coef": 0.3, "kl": kl, "dual_clip": 3.0, "backend": place.backend}
    logp, *others = policy_inputs(place.dtype, place.device)
    on = mask.to(place.device)
    full = policy_token_loss(logp, *others[:2], is_weight=others[2], initial_logp=others[3], **options)
    poisoned = [x.detach().masked_fill(~on, NAN) for x in (logp, *others)]
    poisoned[0].requires_grad_()
    got = policy_token_loss(*poisoned[:3], on, is_weight=poisoned[3], initial_logp=poisoned[4], **options)
    assert torch.equal(got.loss, full.loss.detach() * on)
    assert torch.equal(gradient(got.loss, poisoned[0]), gradient(full.loss, logp) * on)
    for name in ("ratio", "clipped", "kl"):
        assert torch.equal(got.stats[name], full.stats[name] * on), name


@pytest.mark.parametrize("given", [True, False])
def test_the_weight_of_a_masked_token_is_0_too(fp32, given):
    x = torch.zeros(3, device=fp32.device)
    mask = torch.tensor([True, False, True], device=fp32.device)
    weight = torch.tensor([1.0, NAN, 2.0], device=fp32.device) if given else None
    stats = policy_token_loss(x, x, x, mask, is_weight=weight, backend=fp32.backend).stats
    assert stats["is_weight"].tolist() == ([1.0, 0.0, 2.0] if given else [1.0, 0.0, 1.0])


def test_all_or_no_tokens(fp32):
    x = torch.ones(3, device=fp32.device, requires_grad=True)
    nothing = torch.zeros(3, dtype=torch.bool, device=fp32.device)
    got = policy_token_loss(x, x.detach(), x.detach(), nothing, backend=fp32.backend)
    assert got.loss.tolist() == [0.0, 0.0, 0.0]
    assert gradient(got.loss, x).tolist() == [0.0, 0.0, 0.0]
    assert policy_token_loss(x[:0], x[:0], x[:0], backend=fp32.backend).loss.shape == (0,)


def test_strided_inputs(fp32):
    logp, *others = (x.detach() for x in policy_inputs(fp32.dtype, fp32.device))
    mask = torch.arange(len(logp), device=fp32.device) % 2 == 0

    def strided(x):
        return torch.stack([x, x.roll(1)], 1)[:, 0]

    runs = []
    for view in (lambda x: x, strided):
        x, (old, advantages, weights, initial) = view(logp).requires_grad_(), [view(y) for y in others]
        got = policy_token_loss(
            x, old, advantages, view(mask), is_weight=weights, initial_logp=initial, kl_coef=0.1, backend=fp32.backend
        )
        runs.append((got.loss, got.stats["ratio"], got.stats["kl"], gradient(got.loss, x)))
    for a, b in zip(*runs, strict=True):
        assert torch.equal(a, b)


def test_bf16_log_probs_are_computed_in_fp32(fp32):
    logp, old, advantages, weights, initial = (x.detach() for x in policy_inputs(torch.bfloat16, fp32.device))
    options = {"is_weight": weights, "initial_logp": initial, "kl_coef": 0.1, "backend": fp32.backend}
    got = policy_token_loss(logp, old, advantages, **options)
    wide = [x.double().cpu() for x in (logp, old, advantages, weights, initial)]
    expected = naive.policy_loss(*wide[:3], is_weight=wide[3], initial_logp=wide[4], kl_coef=0.1)
    assert got.loss.dtype == torch.float32
    assert_same(got.loss, expected, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------ kinks


def at(place, log_ratio, advantage, **options):
    """Loss, gradient and `clipped` of one token."""
    logp = torch.tensor([log_ratio], dtype=place.dtype, device=place.device, requires_grad=True)
    zero = torch.zeros_like(logp.detach())
    got = policy_token_loss(logp, zero, zero + advantage, backend=place.backend, **options)
    return got.loss.item(), gradient(got.loss, logp).item(), got.stats["clipped"].item()


def ratio_at(place, log_ratio):
    """To the bit as the backend computes it, whose exp need not be another's."""
    x = torch.tensor([log_ratio], dtype=place.dtype, device=place.device)
    return policy_token_loss(x, 0 * x, x, backend=place.backend).stats["ratio"].item()


@pytest.mark.parametrize(("log_ratio", "advantage"), [(0.25, 2.0), (-0.25, -2.0)])
def test_at_the_clips_the_gradient_still_flows(place, log_ratio, advantage):
    # 1 + (ratio - 1) is exact for ratios in [0.5, 2]: the bound is the ratio to the bit.
    ratio = ratio_at(place, log_ratio)
    bounds = {"clip_high": ratio - 1} if log_ratio > 0 else {"clip_low": 1 - ratio}
    assert at(place, log_ratio, advantage, **bounds) == pytest.approx((-ratio * advantage, -ratio * advantage, 0))
    beyond = at(place, log_ratio * 1.001, advantage, **bounds)
    assert beyond == (pytest.approx(-ratio * advantage), 0, 1)


def test_clips_of_no_width(place):
    assert at(place, 0.0, 2.0, clip_low=0.0, clip_high=0.0) == (-2.0, -2.0, 0.0)


def test_at_the_dual_clip_the_gradient_still_flows(place):
    ratio = ratio_at(place, 1.5)
    assert at(place, 1.5, -2.0, dual_clip=ratio) == pytest.approx((2 * ratio, 2 * ratio, 0))
    assert at(place, 1.501, -2.0, dual_clip=ratio) == (pytest.approx(2 * ratio), 0, 1)


@pytest.mark.parametrize("sign", [1, -1])
def test_at_the_bound_of_20_the_gradient_still_flows_and_beyond_it_is_0(place, sign):
    ratio = math.exp(20 * sign)
    loss, slope, _ = at(place, 20.0 * sign, -1.0, clip_low=1.0)
    assert (loss, slope) == (pytest.approx(ratio, rel=1e-5), pytest.approx(ratio, rel=1e-5))
    loss, slope, _ = at(place, 20.001 * sign, -1.0, clip_low=1.0)
    assert (loss, slope) == (pytest.approx(ratio, rel=1e-5), 0.0)


# ------------------------------------------------------------------ autograd


def test_only_the_current_policy_gets_a_gradient(fp32):
    x = [t.detach().requires_grad_() for t in policy_inputs(fp32.dtype, fp32.device)]
    loss = policy_token_loss(*x[:3], is_weight=x[3], initial_logp=x[4], kl_coef=0.1, backend=fp32.backend).loss
    loss.sum().backward()
    assert x[0].grad.any()
    assert [t.grad for t in x[1:]] == [None] * 4


@pytest.mark.parametrize("square", [False, True])
def test_a_second_derivative_is_right_or_raises(place, square):
    # The loss is -exp(x): its second derivative is that too. Plain torch gives it, Triton must not leave it out.
    x = torch.tensor([0.1], dtype=place.dtype, device=place.device, requires_grad=True)
    one = torch.ones_like(x.detach())
    loss = policy_token_loss(x, 0 * one, one, backend=place.backend).loss

    def backward_twice():
        (slope,) = torch.autograd.grad((loss.square() if square else loss).sum(), x, create_graph=True)
        (slope.sum() + x.sum()).backward()

    if place.backend == "triton":
        with pytest.raises(RuntimeError):
            backward_twice()
    else:
        backward_twice()
        assert x.grad.item() == pytest.approx(1 + (4 * math.exp(0.2) if square else -math.exp(0.1)), rel=1e-5)
