"""What a training loop under torch.compile calls: the values and gradients of eager, and no flag of torch's changed."""

import subprocess
import sys
import threading

import pytest
import torch
import torch._dynamo

from exprl.kernels import (
    binary_divergence,
    by_token,
    clipped_surrogate,
    kl_estimate,
    linear_logprob,
    logprob_entropy,
    mean_by_rollout,
    policy_token_loss,
    ratio_of,
    sum_by_rollout,
)
from exprl.kernels.products import fp32_products
from exprl.objectives import CISPO, DPPO, GSPO, Clipped, Reinforce
from tests.unit.kernels.naive import head_inputs, policy_inputs
from tests.waiting import LONG

TOKENS = 6
LENGTHS = [2, 4]
on_a_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="Triton's kernels are compiled, and tensors on the CPU")
X = head_inputs(TOKENS, 40, 8, frozen_width=12).to(torch.float32)
OTHER = [x.detach()[:TOKENS] for x in policy_inputs(torch.float32)[1:]]
MASK = torch.arange(TOKENS) % 3 != 1


def linear(backend, **options):
    def all_results(h, w):
        got = linear_logprob(h * 1, w, X.ids, backend=backend, **options)
        total = got.logp + 2 * got.entropy
        return total if got.divergence is None else total + got.divergence

    return all_results


def logits(backend, **options):
    def both(h, w):
        logp, entropy = logprob_entropy(h @ w.t(), X.ids, backend=backend, **options)
        return logp + 2 * entropy

    return both


def logp_of(h):
    return -h.square().sum(1)


def policy(**options):
    return lambda h, _: policy_token_loss(logp_of(h), *OTHER[:2], initial_logp=OTHER[3], kl_coef=0.1, **options).loss


def objective(of):
    def loss(h, _):
        logp = logp_of(h)
        others = {"sampler_logp": OTHER[3], "initial_logp": OTHER[3], "lengths": LENGTHS, "entropy": -logp}
        return of.token_loss(logp, *OTHER[:2], **others).loss

    return loss


def surrogate(h, _):
    loss, _ = clipped_surrogate(ratio_of(logp_of(h), OTHER[0]), OTHER[1], clip_low=0.2, clip_high=0.2, dual_clip=3.0)
    return loss + kl_estimate(logp_of(h), OTHER[3], "k3") * binary_divergence(logp_of(h), OTHER[3], "kl")


def over_rollouts(h, _):
    logp = logp_of(h)
    return by_token(sum_by_rollout(logp, LENGTHS) * mean_by_rollout(logp, LENGTHS), LENGTHS)


FUNCTIONS = {
    **{f"linear_{b}": linear(b) for b in ("eager", "triton")},
    **{f"linear_{b}_jsd": linear(b, frozen=X.frozen, divergence="jsd", mask=MASK) for b in ("eager", "triton")},
    **{f"logits_{b}": logits(b) for b in ("eager", "triton")},
    "logits_in_place": logits("eager", inplace_backward=True, mask=MASK),
    **{f"policy_{b}": policy(backend=b, mask=MASK, dual_clip=3.0) for b in ("eager", "triton", "compile")},
    "surrogate": surrogate,
    "over_rollouts": over_rollouts,
    "clipped": objective(Clipped(kl_coef=0.1, entropy_coef=0.1)),
    "cispo": objective(CISPO(kl_coef=0.1)),
    "gspo": objective(GSPO()),
    "dppo": objective(DPPO(divergence="kl")),
    "reinforce": objective(Reinforce()),
}
WITHOUT_A_BREAK = ("policy_eager", "policy_compile", "surrogate", *list(FUNCTIONS)[-6:])


@pytest.fixture(autouse=True)
def matmul():
    """The flag that products set, True before and after; and nothing compiled by another test."""
    torch._dynamo.reset()
    settings = torch.backends.cuda.matmul
    settings.allow_bf16_reduced_precision_reduction = True
    yield settings
    settings.allow_bf16_reduced_precision_reduction = True
    torch._dynamo.reset()


def values_and_gradients(function):
    h, w = (x.detach().clone().requires_grad_() for x in X.trained[:2])
    result = function(h, w)
    found = torch.autograd.grad((result * torch.arange(1, TOKENS + 1)).sum(), (h, w), allow_unused=True)
    return [result.detach(), *(g for g in found if g is not None)]


@pytest.mark.filterwarnings("error:Dynamo")
@on_a_cpu
@pytest.mark.parametrize(("name", "allowed"), [*((name, True) for name in FUNCTIONS), ("linear_eager", False)])
def test_a_compiled_caller_gets_what_eager_gives(name, allowed, matmul):
    matmul.allow_bf16_reduced_precision_reduction = allowed
    compiled = torch.compile(FUNCTIONS[name], backend="eager", fullgraph=name in WITHOUT_A_BREAK)
    # Inside of a compiled function backend="compile" compiles nothing of its own.
    expected = values_and_gradients(FUNCTIONS[name.replace("compile", "eager")])
    for a, b in zip(values_and_gradients(compiled), expected, strict=True):
        assert torch.equal(a, b)
    assert matmul.allow_bf16_reduced_precision_reduction is allowed


@on_a_cpu
@pytest.mark.parametrize("name", ["linear_triton_jsd", "policy_triton"])
def test_a_compiled_backward_pass(name, matmul):
    expected = values_and_gradients(FUNCTIONS[name])
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
        got = values_and_gradients(FUNCTIONS[name])
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert matmul.allow_bf16_reduced_precision_reduction


@torch._dynamo.config.patch(recompile_limit=1)
def test_a_caller_that_the_compiler_gave_up(matmul):
    # It runs as it is then, and what it calls is still looked at.
    compiled = torch.compile(lambda h, w, ids: linear_logprob(h * 1, w, ids).logp, backend="eager", dynamic=False)
    for tokens in (2, 3, 4, 5):
        h, ids = X.hidden.detach()[:tokens], X.ids[:tokens]
        assert torch.equal(compiled(h, X.weight, ids), linear_logprob(h, X.weight, ids).logp)
    assert matmul.allow_bf16_reduced_precision_reduction


def test_autocast_and_no_grad_around_the_call_hold():
    def inside(h, w):
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
            return linear_logprob(h * 1, w, X.ids).logp * 2

    got, expected = torch.compile(inside, backend="eager")(*X.trained[:2]), inside(*X.trained[:2])
    assert torch.equal(got, expected)
    assert not got.requires_grad


def test_the_compiler_is_not_loaded_for_it():
    code = """
import sys, torch
from exprl.kernels import linear_logprob, logprob_entropy
x, ids = torch.zeros(2, 3, requires_grad=True), torch.zeros(2, dtype=torch.int64)
linear_logprob(x, torch.zeros(4, 3), ids).logp.sum().backward()
logprob_entropy(x, ids)[0].sum().backward()
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "False\n", done.stderr[-500:]


def test_threads_that_overlap_restore_the_flag(matmul):
    entered, left = threading.Event(), threading.Event()
    seen = []

    def other():
        with fp32_products(torch.device("cpu")):
            entered.set()
            left.wait(LONG)
            seen.append(matmul.allow_bf16_reduced_precision_reduction)

    thread = threading.Thread(target=other)
    with fp32_products(torch.device("cpu")):
        thread.start()
        assert entered.wait(LONG)
    left.set()
    thread.join()
    assert seen == [False]  # not until the last has left
    assert matmul.allow_bf16_reduced_precision_reduction is True
