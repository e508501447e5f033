"""Which backend runs where, and that the compiled one computes the same."""

import os
import shutil
import subprocess
import sys

import pytest
import torch
import torch._dynamo

from exprl.kernels import backends, linear_logprob, policy_token_loss
from exprl.kernels.backends import choose
from tests.unit.kernels.comparison import assert_same, both, gradients, mixes
from tests.unit.kernels.conftest import Place
from tests.unit.kernels.naive import head_inputs, policy_inputs

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("backend", "device", "dtype", "tokens", "chosen"),
    [
        ("auto", CPU, torch.float32, 8, "eager"),  # in the interpreter only when asked for by name
        ("auto", CUDA, torch.float32, 8, "triton"),
        ("auto", CUDA, torch.bfloat16, 8, "triton"),
        ("auto", CUDA, torch.float16, 8, "eager"),
        ("auto", CUDA, torch.float64, 8, "eager"),
        ("auto", CUDA, torch.bfloat16, 0, "eager"),
        ("triton", CPU, torch.float32, 8, "triton"),
        ("triton", CUDA, torch.bfloat16, 8, "triton"),
        ("triton", CUDA, torch.float32, 0, "eager"),
        *(("eager", d, t, n, "eager") for d in (CPU, CUDA) for t in (torch.float64, torch.bfloat16) for n in (0, 8)),
        *(("compile", d, t, 8, "compile") for d in (CPU, CUDA) for t in (torch.float64, torch.bfloat16)),
    ],
)
def test_the_backend_that_runs(monkeypatch, backend, device, dtype, tokens, chosen):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose(backend, device, dtype, tokens) == chosen


@pytest.mark.parametrize(
    ("device", "dtype", "interpret", "message"),
    [
        (CPU, torch.float32, None, "tensors are on cpu and TRITON_INTERPRET=1 is not set"),
        (CPU, torch.float32, "0", "tensors are on cpu and TRITON_INTERPRET=1 is not set"),
        (CPU, torch.float16, "1", "here that would be float16"),
        (CUDA, torch.float16, None, "here that would be float16"),
        (CUDA, torch.float64, None, "here that would be float64"),
    ],
)
def test_triton_that_cannot_run_says_why(monkeypatch, device, dtype, interpret, message):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    if interpret is not None:
        monkeypatch.setenv("TRITON_INTERPRET", interpret)
    with pytest.raises(ValueError, match=f"backend: triton cannot run here: .*{message}"):
        choose("triton", device, dtype, 8)
    assert choose("auto", device, dtype, 8) == "eager"


def test_without_triton(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert choose("auto", CUDA, torch.bfloat16, 8) == "eager"
    with pytest.raises(ValueError, match="the package triton is not installed"):
        choose("triton", CUDA, torch.bfloat16, 8)


def test_importing_the_kernels_does_not_import_triton():
    # Nor what else is heavy; and plain torch works where Triton cannot be imported.
    code = """
import sys
sys.modules["triton"] = None
import torch
from exprl.kernels import linear_logprob, logprob_entropy, policy_token_loss
ids = torch.zeros(2, dtype=torch.int64)
print(linear_logprob(torch.zeros(2, 3), torch.zeros(4, 3), ids).logp.exp().tolist())
print(logprob_entropy(torch.zeros(2, 4), ids)[0].exp().tolist())
print([m for m in sys.modules if m.startswith(("triton.", "exprl.kernels.fused", "transformers", "lightning"))])
"""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["[0.25, 0.25]", "[0.25, 0.25]", "[]"], done.stderr[-500:]


@pytest.fixture
def compiler():
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "c++", "clang++")):
        pytest.skip("backend='compile' on a CPU needs a C++ compiler, and there is none on the PATH")


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_compiled_agrees_with_eager():
    inputs = head_inputs(3, 256, 16)
    runs = []
    for backend in ("eager", "compile"):
        ours, got, *_ = both(Place(backend, "cpu", torch.float32), inputs, divergence="rkl", vocab_block=256)
        outputs = [got.logp, got.entropy, got.divergence]
        runs.append([*got, *gradients(ours, outputs, mixes(3, 3))])
    for a, b in zip(*runs, strict=True):
        assert_same(b, a.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_the_compiled_policy_loss_agrees_with_eager():
    runs = []
    for backend in ("eager", "compile"):
        x = policy_inputs(torch.float32)
        got = policy_token_loss(*x[:3], is_weight=x[3], initial_logp=x[4], kl_coef=0.1, dual_clip=3.0, backend=backend)
        runs.append([got.loss, got.stats["clipped"], got.stats["kl"], *torch.autograd.grad(got.loss.sum(), x.logp)])
    for a, b in zip(*runs, strict=True):
        assert_same(b, a.detach().double(), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_one_compilation_for_every_number_of_tokens(monkeypatch):
    # Dynamo's and AOTAutograd's part of it, where the sizes are fixed or left open; nothing is lowered.
    plain = torch.compile
    monkeypatch.setattr("torch.compile", lambda f, **options: plain(f, **{**options, "backend": "aot_eager"}))
    torch._dynamo.reset()
    backends._compiled.cache_clear()
    graphs = []
    try:
        for tokens in (3, 5, 9):
            x = head_inputs(tokens, 64, 8).to(torch.float32)
            torch._dynamo.utils.counters.clear()
            linear_logprob(x.hidden, x.weight, x.ids, backend="compile").logp.sum().backward()
            graphs.append(torch._dynamo.utils.counters["stats"].get("unique_graphs", 0))
    finally:
        torch._dynamo.reset()
        backends._compiled.cache_clear()
    assert graphs == [2, 0, 0]  # merge and gradient, once


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: counts what was compiled for it")
def test_one_compiled_variant_for_every_number_of_tokens():
    from exprl.kernels.fused.gradient import gradient_kernel
    from exprl.kernels.fused.merge import merge_kernel

    def variants():
        return [sum(len(cache[0]) for cache in k.device_caches.values()) for k in (merge_kernel, gradient_kernel)]

    heads = head_inputs(1, 8192, 64).to(torch.bfloat16, "cuda")
    counts = []
    for tokens in (1, 2, 15, 16, 17, 1000, 1024, 16_384, 32_768):
        hidden = heads.hidden.detach().expand(tokens, -1).contiguous().requires_grad_()
        ids = torch.arange(tokens, device="cuda") % 8192
        linear_logprob(hidden, heads.weight, ids, backend="triton").logp.sum().backward()
        counts.append(variants())
    assert counts[-1] == counts[0], counts
