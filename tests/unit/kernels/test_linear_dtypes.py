"""`linear_logprob` in low precision: fp32 logits and sums, autocast, and errors against plain PyTorch's."""

import pytest
import torch

from exprl.kernels import linear_logprob
from tests.unit.kernels.comparison import DIFFERENTIABLE, assert_same
from tests.unit.kernels.naive import head_inputs, linear_statistics

BF16 = torch.bfloat16
ROUNDING = 2**-8  # of a bf16 number, relative, at most


def loss_of(got, weights=(1.0, 0.5, 2.0)):
    return sum(w * x.sum() for w, x in zip(weights, (got.logp, got.entropy, got.divergence), strict=True))


def run(place, x, **options):
    options = {"frozen": x.frozen, "divergence": "rkl", "vocab_block": 256, "backend": place.backend, **options}
    return linear_logprob(x.hidden, x.weight, x.ids, bias=x.bias, **options)


def worst(a, b):
    return (a.detach().cpu().double() - b.detach().cpu().double()).abs().max().item()


@pytest.mark.parametrize("divergence", ["rkl", "fkl", "jsd"])
def test_bf16_errs_less_than_twice_as_much_as_plain_bf16(fp32, divergence):
    inputs = head_inputs(8, 517, 64, frozen_width=48, scale=4.0)
    ours = inputs.to(BF16, fp32.device)
    plain = inputs.to(BF16)
    exact = inputs.to(BF16).to(torch.float64)
    got = run(fp32, ours, divergence=divergence)
    # What training code does: a bf16 linear layer, then fp32 on its rounded logits.
    logits, frozen_logits = (torch.nn.functional.linear(h, w, b).float() for h, w, b in (plain.trained, plain.frozen))
    identity, zero = torch.eye(517), torch.zeros(517)
    theirs = linear_statistics(
        logits, identity, plain.ids, bias=zero, frozen=(frozen_logits, identity, zero), divergence=divergence
    )
    expected = linear_statistics(
        exact.hidden, exact.weight, exact.ids, bias=exact.bias, frozen=exact.frozen, divergence=divergence
    )
    for name in DIFFERENTIABLE:
        assert worst(getattr(got, name), getattr(expected, name)) < 2 * worst(
            getattr(theirs, name), getattr(expected, name)
        ), name
    gradients = [
        torch.autograd.grad(loss_of(s), x.trained) for s, x in ((got, ours), (theirs, plain), (expected, exact))
    ]
    for name, a, b, c in zip(("hidden", "weight", "bias"), *gradients, strict=True):
        assert a.dtype == BF16
        assert worst(a, c) < 2 * worst(b, c), name


def test_bf16_logits_are_kept_in_fp32(fp32):
    # From the same bf16 inputs, values are those of float64 to fp32's precision: nothing was rounded on the way.
    inputs = head_inputs(8, 517, 64, scale=4.0)
    got = run(fp32, inputs.to(BF16, fp32.device), divergence="jsd")
    exact = inputs.to(BF16).to(torch.float64)
    expected = linear_statistics(
        exact.hidden, exact.weight, exact.ids, bias=exact.bias, frozen=exact.frozen, divergence="jsd"
    )
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == torch.float32
        assert_same(a, b, rtol=1e-5, atol=1e-5)


def test_the_weight_gradient_of_many_slices_is_rounded_once(fp32):
    # Slices of 16 columns: every row of the gradient is one sum over all tokens, rounded at the end.
    inputs = head_inputs(8, 100, 48)
    x = inputs.to(BF16, fp32.device)
    exact = inputs.to(BF16).to(torch.float64)
    got = linear_logprob(x.hidden, x.weight, x.ids, bias=x.bias, vocab_block=16, backend=fp32.backend)
    ours = torch.autograd.grad(got.logp.sum(), (x.weight, x.hidden))
    theirs = linear_statistics(exact.hidden, exact.weight, exact.ids, bias=exact.bias)
    expected = torch.autograd.grad(theirs.logp.sum(), (exact.weight, exact.hidden))
    # Triton also rounds each logit's gradient, at most 1 for the chosen token.
    atol = 2 * fp32.bf16_error if fp32.backend == "triton" else 1e-5
    for a, b in zip(ours, expected, strict=True):
        assert_same(a, b, rtol=ROUNDING, atol=atol)


def test_a_bf16_hidden_with_an_fp32_weight_is_computed_in_fp32(fp32):
    x = head_inputs(4, 517, 48).to(torch.float32, fp32.device)
    low = x._replace(hidden=x.hidden.detach().to(BF16).requires_grad_())
    got = run(fp32, low)
    same = x._replace(hidden=low.hidden.detach().float().requires_grad_())
    expected = run(fp32, same)
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)
    ours = torch.autograd.grad(loss_of(got), low.trained)
    theirs = torch.autograd.grad(loss_of(expected), same.trained)
    assert [g.dtype for g in ours] == [BF16, torch.float32, torch.float32]
    assert torch.equal(ours[0], theirs[0].to(BF16))
    assert torch.equal(ours[1], theirs[1])
    assert (ours[1] != ours[1].to(BF16)).any()


def test_autocast_rounds_hidden_and_weight_but_not_the_logits_nor_the_gradient(fp32):
    inputs = head_inputs(4, 517, 48)
    x = inputs.to(torch.float32, fp32.device)
    with torch.autocast(fp32.device, dtype=BF16):
        got = run(fp32, x, divergence="fkl")
        ours = torch.autograd.grad(loss_of(got), x.trained)

    def rounded(t):
        return t.detach().to(BF16).double().cpu()

    exact = inputs.to(torch.float64)
    hidden, weight = rounded(x.hidden).requires_grad_(), rounded(x.weight).requires_grad_()
    bias = x.bias.detach().double().cpu().requires_grad_()
    frozen = (rounded(x.frozen_hidden), rounded(x.frozen_weight), x.frozen_bias.double().cpu())
    expected = linear_statistics(hidden, weight, exact.ids, bias=bias, frozen=frozen, divergence="fkl")
    for a, b in zip(got, expected, strict=True):
        assert_same(a, b, rtol=1e-5, atol=1e-5)
    theirs = torch.autograd.grad(loss_of(expected), (hidden, weight, bias))
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == torch.float32
        bound = fp32.bf16_error * b.abs().max().item() if fp32.backend == "triton" else 1e-5
        assert_same(a, b, rtol=0, atol=bound)
    assert (ours[1] != ours[1].to(BF16)).any()


def test_autocast_changes_nothing_for_a_bf16_head(fp32):
    # Not the products inside either, forward or backward.
    x = head_inputs(4, 300, 48).to(BF16, fp32.device)
    runs = []
    for enabled in (False, True):
        with torch.autocast(fp32.device, dtype=BF16, enabled=enabled):
            got = run(fp32, x)
            runs.append([*got, *torch.autograd.grad(loss_of(got), x.trained)])
    for a, b in zip(*runs, strict=True):
        assert torch.equal(a, b)


def test_autocast_leaves_float64_alone():
    x = head_inputs(3, 517, 48).to(torch.float64)
    with torch.autocast("cpu", dtype=BF16):
        got = linear_logprob(x.hidden, x.weight, x.ids, bias=x.bias)
    plain = linear_logprob(x.hidden, x.weight, x.ids, bias=x.bias)
    assert got.logp.dtype == torch.float64
    assert torch.equal(got.logp, plain.logp)


def test_fp16_in_plain_torch():
    inputs = head_inputs(4, 517, 48)
    x = inputs.to(torch.float16)
    exact = inputs.to(torch.float16).to(torch.float64)
    got = linear_logprob(x.hidden, x.weight, x.ids, bias=x.bias)
    expected = linear_statistics(exact.hidden, exact.weight, exact.ids, bias=exact.bias)
    assert got.logp.dtype == torch.float32
    assert_same(got.logp, expected.logp, rtol=1e-5, atol=1e-5)
    # Gradients the size of 1 / (16K tokens), below fp16's smallest normal number: summed in fp32, rounded once.
    scale = 2.0**-14
    ours = torch.autograd.grad((got.logp * scale).sum(), x.trained)
    theirs = torch.autograd.grad((expected.logp * scale).sum(), exact.trained)
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == torch.float16
        assert_same(a, b, rtol=2**-11, atol=2.0**-25)


@pytest.mark.parametrize("divergence", ["rkl", "fkl", "jsd"])
@pytest.mark.parametrize(("policy", "frozen"), [(BF16, torch.float32), (torch.float32, torch.float64), (BF16, BF16)])
def test_a_frozen_head_is_computed_in_its_own_dtype(fp32, divergence, policy, frozen):
    # The policy is the frozen head, rounded: the divergence is that of the rounding, in both directions.
    inputs = head_inputs(8, 517, 64, scale=4.0)
    x, original = inputs.to(policy, fp32.device), inputs.to(frozen, fp32.device)
    original = original._replace(
        frozen_hidden=original.hidden, frozen_weight=original.weight, frozen_bias=original.bias
    )
    head = tuple(t.detach() for t in original.frozen)
    got = run(fp32, x, frozen=head, divergence=divergence)
    exact = inputs.to(policy).to(torch.float64)
    expected = linear_statistics(
        exact.hidden,
        exact.weight,
        exact.ids,
        bias=exact.bias,
        frozen=tuple(t.cpu().double() for t in head),
        divergence=divergence,
    )
    assert_same(got.frozen_logp, expected.frozen_logp, rtol=1e-5, atol=1e-5)
    assert_same(got.divergence, expected.divergence, rtol=1e-3, atol=2e-6)
    assert (got.divergence.abs().max() > 1e-5) == (policy == BF16 and frozen != BF16)
    for a, b in zip(
        torch.autograd.grad(got.divergence.sum(), x.trained),
        torch.autograd.grad(expected.divergence.sum(), exact.trained),
        strict=True,
    ):
        scale = 1 if fp32.backend == "eager" else 4
        assert_same(a, b, rtol=0, atol=scale * max(ROUNDING * b.abs().max().item(), 1e-5))


def test_autocast_rounds_the_frozen_head_too(fp32):
    x = head_inputs(4, 300, 48).to(BF16, fp32.device)
    head = tuple(t.detach().float() * 1.01 for t in x.frozen)
    rounded = tuple(t.to(BF16) for t in head[:2])
    with torch.autocast(fp32.device, dtype=BF16):
        got = run(fp32, x, frozen=head)
    expected = run(fp32, x, frozen=(*rounded, head[2]))
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)
