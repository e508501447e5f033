"""`linear_logprob` inside autograd: who gets a gradient, once, what misuse raises, and the same bits every time."""

import pytest
import torch

from exprl.kernels import linear_logprob
from tests.unit.kernels.comparison import assert_same, both, gradient_penalty, gradients, mixes
from tests.unit.kernels.naive import head_inputs

DIVERGENCES = ["rkl", "fkl", "jsd"]


def run(place, x, **options):
    options = {"frozen": x.frozen, "divergence": "rkl", "vocab_block": 256, "backend": place.backend, **options}
    return linear_logprob(x.hidden, x.weight, x.ids, bias=x.bias, **options)


def total(got):
    """A scalar that every output is part of, with unequal weights."""
    return sum((i + 1) * x.sum() for i, x in enumerate((got.logp, got.entropy, got.divergence, got.lse)))


# ------------------------------------------------------------------ who gets a gradient


def test_the_weight_gradient_is_added_to_a_main_gradient(fp32):
    x = head_inputs(2, 300, 48).to(fp32.dtype, fp32.device)
    expected = torch.autograd.grad(total(run(fp32, x)), x.trained)
    main = torch.full_like(x.weight, 0.5, requires_grad=False)
    for times in (1, 2):
        total(run(fp32, x, weight_grad_out=main)).backward()
        torch.testing.assert_close(main, 0.5 + times * expected[1], rtol=1e-6, atol=1e-6)
    assert x.weight.grad is None
    torch.testing.assert_close(x.hidden.grad, 2 * expected[0])
    torch.testing.assert_close(x.bias.grad, 2 * expected[2])


def test_a_main_gradient_of_a_bf16_weight_is_not_rounded(fp32):
    x = head_inputs(2, 300, 48).to(torch.bfloat16, fp32.device)
    main = torch.zeros(300, 48, device=fp32.device)
    exact = x.to(torch.float64)
    run(fp32, x, weight_grad_out=main).logp.sum().backward()
    (expected,) = torch.autograd.grad(run(fp32, exact, backend="eager").logp.sum(), exact.weight)
    assert main.dtype == torch.float32
    assert (main != main.to(torch.bfloat16)).any()
    # Triton rounds the gradient of the logits, at most 1, to bf16, as tensor cores want it.
    terms = exact.hidden.abs().sum(0).max().item()
    bound = fp32.bf16_error * terms if fp32.backend == "triton" else 1e-5
    assert_same(main, expected.cpu(), rtol=0, atol=bound)


@pytest.mark.parametrize("frozen", ["hidden", "weight", "bias"])
@pytest.mark.parametrize("divergence", [None, *DIVERGENCES])
def test_what_is_frozen_gets_no_gradient(fp32, frozen, divergence):
    x = head_inputs(2, 300, 48).to(fp32.dtype, fp32.device)
    names = ["hidden", "weight", "bias"]

    def loss():
        got = run(fp32, x, divergence=divergence)
        return got.logp.sum() + 2 * (got.entropy if divergence is None else got.divergence).sum()

    expected = dict(zip(names, torch.autograd.grad(loss(), x.trained), strict=True))
    getattr(x, frozen).requires_grad_(False)
    loss().backward()
    assert getattr(x, frozen).grad is None
    for name in names:
        if name != frozen:
            assert expected[name].abs().max() > 0
            assert torch.equal(getattr(x, name).grad, expected[name])


def test_the_frozen_head_and_ids_keep_their_values_and_get_no_gradient(fp32):
    x = head_inputs(2, 300, 48).to(fp32.dtype, fp32.device)
    before = [t.detach().clone() for t in x]
    total(run(fp32, x, divergence="jsd")).backward()
    for t, b in zip(x, before, strict=True):
        assert torch.equal(t.detach(), b)
    assert all(t.grad is None for t in x.frozen)


def test_without_gradient_the_values_are_the_same(fp32):
    x = head_inputs(2, 300, 48).to(fp32.dtype, fp32.device)
    with torch.no_grad():
        frozen = run(fp32, x)
    for a, b in zip(frozen, run(fp32, x), strict=True):
        assert not a.requires_grad
        assert torch.equal(a, b)


def test_outputs_that_share_a_graph(fp32):
    # Two losses of one call, backward one after the other, accumulate as one.
    x = head_inputs(2, 300, 48).to(fp32.dtype, fp32.device)
    got = run(fp32, x)
    got.logp.sum().backward(retain_graph=True)
    got.divergence.sum().backward()
    again = run(fp32, x)
    expected = torch.autograd.grad(again.logp.sum() + again.divergence.sum(), x.trained)
    for leaf, e in zip(x.trained, expected, strict=True):
        torch.testing.assert_close(leaf.grad, e, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------ misuse


@pytest.mark.parametrize("loss", ["sum", "square"])
def test_a_second_derivative_raises(fp32, loss):
    # A gradient penalty. Left to itself, autograd would leave out what it cannot differentiate and train on the rest.
    x = head_inputs(2, 300, 48).to(fp32.dtype, fp32.device)
    got = run(fp32, x).logp
    first = got.sum() if loss == "sum" else got.square().sum()
    with pytest.raises(RuntimeError):
        gradient_penalty(first, x.hidden)


@pytest.mark.parametrize("name", ["hidden", "weight", "bias", "frozen_hidden", "frozen_weight", "ids"])
def test_a_change_between_forward_and_backward_raises(fp32, name):
    x = head_inputs(2, 300, 48).to(fp32.dtype, fp32.device)
    loss = total(run(fp32, x))
    with torch.no_grad():
        getattr(x, name).add_(1).clamp_(max=299)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_second_backward_needs_the_graph_kept(fp32):
    x = head_inputs(2, 300, 48).to(fp32.dtype, fp32.device)
    loss = total(run(fp32, x))
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


# ------------------------------------------------------------------ the same bits


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_repeats_bitwise(fp32, divergence, dtype):
    mask = torch.tensor([True, True, False, True], device=fp32.device)
    x = head_inputs(4, 300, 48, frozen_width=40).to(dtype, fp32.device)
    runs = []
    for _ in range(2):
        got = run(fp32, x, divergence=divergence, mask=mask, softcap=10.0)
        runs.append([*got, *torch.autograd.grad(total(got), x.trained)])
    for a, b in zip(*runs, strict=True):
        assert torch.equal(a, b)


def test_deterministic_mode_changes_nothing(fp32):
    x = head_inputs(4, 300, 48).to(fp32.dtype, fp32.device)
    mask = torch.tensor([True, True, False, True], device=fp32.device)
    plain = torch.autograd.grad(total(run(fp32, x, mask=mask)), x.trained)
    # On a GPU cuBLAS would want a variable set before the process starts.
    torch.use_deterministic_algorithms(True, warn_only=fp32.device == "cuda")
    try:
        strict = torch.autograd.grad(total(run(fp32, x, mask=mask)), x.trained)
    finally:
        torch.use_deterministic_algorithms(False)
    for a, b in zip(plain, strict, strict=True):
        assert torch.equal(a, b)


def test_tokens_do_not_touch_each_other(place):
    # The gradient of one token's outputs stays in its row, to the bit the one it has alone.
    inputs = head_inputs(3, 517, 48)
    ours, got, *_ = both(place, inputs, divergence="rkl", vocab_block=256)
    weights = mixes(3, 2) * torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    hidden, weight, _ = gradients(ours, [got.entropy, got.divergence], weights)
    assert not hidden[0].any()
    assert not hidden[2].any()
    row = inputs._replace(hidden=inputs.hidden[1:2], frozen_hidden=inputs.frozen_hidden[1:2], ids=inputs.ids[1:2])
    alone, one, *_ = both(place, row, divergence="rkl", vocab_block=256)
    single = gradients(alone, [one.entropy, one.divergence], weights[:, 1:2])
    torch.testing.assert_close(hidden[1:2], single[0], **place.close)
    torch.testing.assert_close(weight, single[1], **place.close)
