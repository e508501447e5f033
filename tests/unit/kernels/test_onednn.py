"""Products by oneDNN against torch's own in float64, and when they are taken."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import linear

from exprl.kernels import linear_logprob, onednn

pytestmark = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")),
    reason="this torch has no oneDNN",
)


def operands(*shape: int, bias: bool, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    *batch, k, n = shape
    tensors = [torch.randn(*batch, k, generator=generator), torch.randn(n, k, generator=generator)]
    return [*tensors, torch.randn(n, generator=generator)] if bias else tensors


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(5, 24, 40), (2, 3, 24, 40), (1, 1, 24, 40), (64, 200, 31)])
def test_results_and_gradients_are_those_of_float64(shape, bias):
    own = [x.requires_grad_() for x in operands(*shape, bias=bias)]
    exact = [x.detach().double().requires_grad_() for x in own]
    result, expected = onednn.linear(*own), linear(*exact)
    torch.testing.assert_close(result.double(), expected, atol=1e-4, rtol=1e-5)
    upstream = torch.randn(result.shape, generator=torch.Generator().manual_seed(1))
    for got, wanted in zip(
        torch.autograd.grad(result, own, upstream), torch.autograd.grad(expected, exact, upstream.double()), strict=True
    ):
        torch.testing.assert_close(got.double(), wanted, atol=1e-4, rtol=1e-5)


def test_what_needs_no_gradient_gets_none():
    left, weight = operands(6, 24, 40, bias=False)
    weight.requires_grad_()
    onednn.linear(left, weight).sum().backward()
    assert left.grad is None
    torch.testing.assert_close(weight.grad, left.sum(0).expand(40, 24))
    with torch.no_grad():
        assert not onednn.linear(left, weight).requires_grad


def test_a_second_derivative_raises():
    left, weight = (x.requires_grad_() for x in operands(6, 24, 40, bias=False))
    [gradient] = torch.autograd.grad(onednn.linear(left, weight).square().sum(), left, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        gradient.sum().backward()


@pytest.mark.parametrize("rows", [1, 16, 200])
def test_a_packed_weight_gives_the_same_for_any_number_of_rows(rows):
    left, weight = operands(rows, 64, 96, bias=False)
    torch.testing.assert_close(onednn.product(left, onednn.packed(weight, 16)), linear(left, weight), atol=1e-4, rtol=0)


def test_it_is_taken_for_large_plain_float32_operands_on_a_cpu(monkeypatch):
    monkeypatch.setattr(onednn, "machine_gains", lambda: True)
    left, weight = torch.randn(4, 512), torch.randn(256, 512)
    assert onednn.gains(left, weight)
    assert onednn.gains(left, torch.nn.Parameter(weight))
    assert not onednn.gains(left, weight[:127]), "too small"
    assert not onednn.gains(left.double(), weight)
    assert not onednn.gains(left.bfloat16(), weight.bfloat16())
    assert not onednn.gains(left.to("meta"), weight)
    assert not onednn.gains(left, weight.as_subclass(type("Sharded", (torch.Tensor,), {})))
    with torch.autocast("cpu", torch.bfloat16):
        assert not onednn.gains(left, weight)
    with torch.backends.mkldnn.flags(enabled=False):
        assert not onednn.gains(left, weight)
    monkeypatch.setattr(onednn, "machine_gains", lambda: False)
    assert not onednn.gains(left, weight)


def test_the_machine_is_asked_once_and_gains_with_amds_avx512_alone(monkeypatch):
    for capability, vendor, gains in (
        ("AVX512", "AuthenticAMD", True),
        ("AVX512", "GenuineIntel", False),
        ("AVX2", "AuthenticAMD", False),
    ):
        onednn.machine_gains.cache_clear()
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda c=capability: c)
        monkeypatch.setattr(onednn.Path, "read_text", lambda _, v=vendor: f"processor\t: 0\nvendor_id\t: {v}\n")
        assert onednn.machine_gains() is gains
    onednn.machine_gains.cache_clear()


@pytest.mark.parametrize("divergence", [None, "rkl", "jsd"])
def test_log_probs_of_a_large_head_are_the_same_by_either_library(monkeypatch, divergence):
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias, other = (
        torch.randn(*shape, generator=generator) / 8 for shape in ((70, 64), (3000, 64), (3000,), (70, 64))
    )
    ids = torch.randint(0, 3000, (70,), generator=generator)

    def computed(gains: bool) -> list[torch.Tensor]:
        monkeypatch.setattr(onednn, "machine_gains", lambda: gains)
        inputs = [x.detach().requires_grad_() for x in (hidden, weight, bias)]
        frozen = None if divergence is None else (other.detach(), weight.detach())
        result = linear_logprob(
            *inputs[:2], ids, bias=inputs[2], frozen=frozen, divergence=divergence, vocab_block=1024, backend="eager"
        )
        parts = [x for x in result if x is not None]
        total = sum((n + 1) * x.sum() for n, x in enumerate(parts) if x.requires_grad)
        return [*parts, *torch.autograd.grad(total, inputs)]

    for fast, plain in zip(computed(True), computed(False), strict=True):
        torch.testing.assert_close(fast, plain, atol=2e-5, rtol=1e-4)
