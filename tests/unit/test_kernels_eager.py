"""The eager log-prob against torch.nn.functional, its gradients, and the memory it promises."""

import pytest
import torch
from torch.nn import functional

from exprl.kernels import linear_logprob, logprob_entropy


def inputs(n=33, d=48, v=517, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, d, generator=g, dtype=torch.float64).to(dtype)
    weight = torch.randn(v, d, generator=g, dtype=torch.float64).to(dtype) / d**0.5
    bias = torch.randn(v, generator=g, dtype=torch.float64).to(dtype)
    ids = torch.randint(v, (n,), generator=g)
    ids[0], ids[-1] = 0, v - 1
    return hidden.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), ids


def reference(logits, ids, temperature):
    """From torch's own cross entropy and Categorical."""
    logits = logits / temperature
    return -functional.cross_entropy(logits, ids, reduction="none"), torch.distributions.Categorical(
        logits=logits
    ).entropy()


def test_by_hand():
    # logits (log 1, log 3): p = 1/4, 3/4. At temperature 0.5 they double: p = 1/10, 9/10.
    logits = torch.tensor([[1.0, 3.0]], dtype=torch.float64).log()
    logp, entropy = logprob_entropy(logits, torch.tensor([1]))
    p = torch.tensor([0.25, 0.75], dtype=torch.float64)
    torch.testing.assert_close(logp, p[1:].log())
    torch.testing.assert_close(entropy, -(p * p.log()).sum()[None])
    torch.testing.assert_close(
        logprob_entropy(logits, torch.tensor([0]), temperature=0.5)[0], torch.tensor([0.1], dtype=torch.float64).log()
    )


@pytest.mark.parametrize("chunk_tokens", [1, 8, 33, 1024])
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("with_bias", [False, True])
def test_values_and_gradients_against_torch(chunk_tokens, softcap, with_bias):
    hidden, weight, bias, ids = inputs()
    offset = bias if with_bias else None
    wrt = [hidden, weight, *([bias] if with_bias else [])]
    logits = functional.linear(hidden, weight, offset)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    expected = reference(logits, ids, 0.8)
    got = linear_logprob(hidden, weight, ids, temperature=0.8, bias=offset, softcap=softcap, chunk_tokens=chunk_tokens)
    g = torch.Generator().manual_seed(1)
    mixes = torch.randn(2, len(ids), generator=g, dtype=torch.float64)
    for ours, theirs, mix in zip(got, expected, mixes, strict=True):
        torch.testing.assert_close(ours, theirs)
        for a, b in zip(
            torch.autograd.grad((ours * mix).sum(), wrt, retain_graph=True),
            torch.autograd.grad((theirs * mix).sum(), wrt, retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(a, b)


def test_gradcheck():
    hidden, weight, bias, ids = inputs(n=5, d=3, v=7)

    def run(h, w, b):
        return linear_logprob(h, w, ids, temperature=0.7, bias=b, softcap=4.0, chunk_tokens=2)

    assert torch.autograd.gradcheck(run, (hidden, weight, bias))
    logits = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: logprob_entropy(z, ids[:4] % 6, temperature=1.3), (logits,))


def test_without_gradient_the_values_are_the_same():
    hidden, weight, _, ids = inputs()
    with torch.no_grad():
        frozen = linear_logprob(hidden, weight, ids, chunk_tokens=8)
    assert not frozen[0].requires_grad
    for a, b in zip(frozen, linear_logprob(hidden, weight, ids, chunk_tokens=8), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("dtype", "result"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_computes_in_fp32_at_least(dtype, result):
    hidden, weight, _, ids = inputs(dtype=dtype)
    logp, entropy = linear_logprob(hidden, weight, ids)
    assert logp.dtype == entropy.dtype == result
    exact = linear_logprob(hidden.detach().double(), weight.detach().double(), ids)
    torch.testing.assert_close(logp.double(), exact[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(entropy.double(), exact[1], atol=1e-5, rtol=0)


def test_autocast_does_not_round_the_logits():
    hidden, weight, _, ids = inputs(dtype=torch.float32)
    plain = linear_logprob(hidden, weight, ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = linear_logprob(hidden, weight, ids)
    assert torch.equal(plain[0], cast[0])
    for a, b in zip(
        torch.autograd.grad(plain[0].sum(), (hidden, weight)),
        torch.autograd.grad(cast[0].sum(), (hidden, weight)),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_the_weight_gradient_is_added_up_in_fp32():
    # 64 chunks whose gradients are rounded once: within one bf16 rounding (2^-8) of the exact sum.
    hidden, weight, _, ids = inputs(n=64, dtype=torch.bfloat16)
    (ours,) = torch.autograd.grad(linear_logprob(hidden, weight, ids, chunk_tokens=1)[0].sum(), weight)
    exact_weight = weight.detach().double().requires_grad_()
    (exact,) = torch.autograd.grad(linear_logprob(hidden.detach().double(), exact_weight, ids)[0].sum(), exact_weight)
    torch.testing.assert_close(ours.double(), exact, rtol=2**-8, atol=1e-5)


def test_no_logits_of_all_tokens_are_kept():
    hidden, weight, _, ids = inputs(n=64, v=517)
    largest = 0

    def pack(saved):
        nonlocal largest
        if saved.shape[-1:] == (517,):
            largest = max(largest, saved.numel())
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        logp, entropy = linear_logprob(hidden, weight, ids, chunk_tokens=8)
    assert largest == 0, "the chunks' logits must be computed again, not kept"
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        (logp.sum() + entropy.sum()).backward()
    assert largest <= 8 * 517


def test_a_token_that_is_ruled_out_adds_no_entropy():
    logits = torch.tensor([[0.0, 0.0, -torch.inf]], dtype=torch.float64, requires_grad=True)
    logp, entropy = logprob_entropy(logits, torch.tensor([0]))
    torch.testing.assert_close(entropy, torch.tensor([2.0], dtype=torch.float64).log())
    (grad,) = torch.autograd.grad((logp + entropy).sum(), logits)
    assert grad.isfinite().all()


def test_shifted_rows_and_no_rows():
    logits = torch.randn(3, 9, generator=torch.Generator().manual_seed(0))
    for shift in (-1e4, 1e4):
        moved = logprob_entropy(logits + shift, torch.arange(3))
        torch.testing.assert_close(moved[1], logprob_entropy((logits + shift).double(), torch.arange(3))[1].float())
    hidden, weight, _, ids = inputs()
    assert [t.shape for t in linear_logprob(hidden[:0], weight, ids[:0])] == [(0,), (0,)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": torch.zeros(2, 2, 3)}, r"hidden: expected floating point \[N, D\], but got float32 \[2, 2, 3\]"),
        ({"hidden": torch.zeros(2, 3, dtype=torch.long)}, r"hidden: .* int64 \[2, 3\]"),
        ({"weight": torch.zeros(5, 4)}, r"weight: expected floating point \[V, 3\], but got float32 \[5, 4\]"),
        ({"bias": torch.zeros(4)}, r"bias: expected \[5\]"),
        ({"ids": torch.zeros(3, dtype=torch.long)}, r"ids: expected int64 \[2\], but got int64 \[3\]"),
        ({"ids": torch.zeros(2)}, r"ids: expected int64 \[2\], but got float32"),
        ({"ids": torch.tensor([0, 5])}, r"ids: expected values in 0..4, but got 0..5"),
        ({"ids": torch.tensor([-100, 1])}, r"ids: expected values in 0..4, but got -100..1"),
        ({"temperature": 0.0}, r"temperature must be above 0, but got 0\.0"),
        ({"softcap": -1.0}, r"softcap must be above 0 or None"),
        ({"chunk_tokens": 0}, r"chunk_tokens must be at least 1, but got 0"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    arguments = {"hidden": torch.zeros(2, 3), "weight": torch.zeros(5, 3), "ids": torch.zeros(2, dtype=torch.long)}
    with pytest.raises(ValueError, match=message):
        linear_logprob(**{**arguments, **change})


def test_logits_are_checked():
    with pytest.raises(ValueError, match=r"logits: expected floating point \[N, V\]"):
        logprob_entropy(torch.zeros(3), torch.zeros(3, dtype=torch.long))
