"""Agreement with code by others that computes the same: torch.nn.functional, TRL and Liger; values and gradients."""

import pytest
import torch
from torch.distributions import Categorical
from torch.nn import functional

from exprl.kernels import linear_logprob, logprob_entropy, policy_token_loss
from tests.unit.kernels.comparison import assert_same
from tests.unit.kernels.naive import head_inputs, head_logits

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs, of packages that are not there and the like

TEMPERATURE, SOFTCAP = 0.7, 6.0
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
BETA = {"fkl": 0.0, "jsd": 0.5, "rkl": 1.0}  # of the generalised Jensen-Shannon divergence in TRL and Liger


@pytest.fixture
def x():
    """Fp32 heads; theirs run on a CPU, where both of ours do too."""
    return head_inputs(6, 300, 32, frozen_width=24).to(torch.float32)


def mix(tokens=6):
    return torch.linspace(-1, 2, tokens)


def ours(x, backend, **options):
    options = {"temperature": TEMPERATURE, "vocab_block": 256, "backend": backend, **options}
    if backend == "triton" and torch.cuda.is_available():
        return ours_on_gpu(x, **options)
    return linear_logprob(x.hidden, x.weight, x.ids, bias=x.bias, **options)


def ours_on_gpu(x, frozen=None, **options):
    frozen = None if frozen is None else tuple(t.cuda() for t in frozen)
    got = linear_logprob(x.hidden.cuda(), x.weight.cuda(), x.ids.cuda(), bias=x.bias.cuda(), frozen=frozen, **options)
    return type(got)._make(None if t is None else t.cpu() for t in got)


def agree(got, expected, leaves, **close):
    """Two [T] tensors and their gradients in the leaves."""
    assert_same(got, expected.double(), **(close or CLOSE))
    mine = torch.autograd.grad((got * mix(len(got))).sum(), leaves, retain_graph=True)
    theirs = torch.autograd.grad((expected * mix(len(got))).sum(), leaves, retain_graph=True)
    for a, b in zip(mine, theirs, strict=True):
        assert b.abs().max() > 1e-3
        assert_same(a, b.double(), **(close or CLOSE))


@pytest.fixture(params=["eager", "triton"])
def backend(request):
    return request.param


# ------------------------------------------------------------------ torch


@pytest.mark.parametrize("divergence", ["rkl", "fkl"])
def test_torch_functional(x, backend, divergence):
    logits = head_logits(*x.trained, temperature=TEMPERATURE)
    log_p, log_q = logits.log_softmax(-1), head_logits(*x.frozen, temperature=TEMPERATURE).log_softmax(-1)
    got = ours(x, backend, frozen=x.frozen, divergence=divergence)
    # torch's kl_div(a, b) is KL(b ‖ a).
    pair = (log_q, log_p) if divergence == "rkl" else (log_p, log_q)
    agree(got.divergence, functional.kl_div(*pair, log_target=True, reduction="none").sum(-1), x.trained)
    agree(got.logp, -functional.cross_entropy(logits, x.ids, reduction="none"), x.trained)
    agree(got.entropy, Categorical(logits=logits).entropy(), x.trained)
    agree(got.lse, logits.logsumexp(-1), x.trained)
    assert_same(got.frozen_logp, log_q.gather(1, x.ids[:, None])[:, 0].double(), **CLOSE)


def test_torch_linear_cross_entropy(x, backend):
    if not hasattr(functional, "linear_cross_entropy"):
        pytest.skip(f"torch {torch.__version__} has no linear_cross_entropy")
    loss = functional.linear_cross_entropy(x.hidden, x.weight, x.ids, linear_bias=x.bias, reduction="none")
    agree(ours(x, backend, temperature=1.0).logp, -loss, x.trained)


# ------------------------------------------------------------------ TRL


def test_trl_log_softmax_and_entropy(x, fp32):
    utils = pytest.importorskip("trl.trainer.utils", reason="trl is not installed")
    logits = head_logits(*x.trained).detach().requires_grad_()
    on = logits.to(fp32.device)
    got = logprob_entropy(on, x.ids.to(fp32.device), temperature=TEMPERATURE, backend=fp32.backend)
    logp = utils.selective_log_softmax(logits, x.ids, temperature=TEMPERATURE)
    agree(got[0].cpu(), logp, [logits])
    agree(got[1].cpu(), utils.entropy_from_logits(logits / TEMPERATURE), [logits])


@pytest.mark.parametrize("softcap", [None, SOFTCAP])
def test_trl_chunked_logprob(x, backend, softcap):
    trl = pytest.importorskip("trl.kernels.chunked_logprob", reason="trl is not installed")
    logp, entropy, *_ = trl.ChunkedLogProbFunction.apply(
        *x.trained, x.ids, TEMPERATURE, 128, softcap, 1.0, ("entropy",)
    )
    got = ours(x, backend, softcap=softcap)
    agree(got.logp, logp, x.trained)
    agree(got.entropy, entropy, x.trained)


@pytest.mark.parametrize("softcap", [None, SOFTCAP])
@pytest.mark.parametrize("divergence", ["rkl", "fkl", "jsd"])
def test_trl_chunked_divergence(x, backend, divergence, softcap):
    trl = pytest.importorskip("trl.kernels.chunked_divergence", reason="trl is not installed")
    theirs, entropy = trl.ChunkedDivergenceFunction.apply(
        *x.trained, *x.frozen, BETA[divergence], TEMPERATURE, 1.0, softcap, 1.0, softcap
    )
    got = ours(x, backend, frozen=x.frozen, divergence=divergence, softcap=softcap)
    agree(got.divergence, theirs, x.trained)
    assert_same(got.entropy, entropy.double(), **CLOSE)


# ------------------------------------------------------------------ Liger


def test_liger_chunked_logprob(x, backend):
    liger = pytest.importorskip("liger_kernel.chunked_loss.fused_linear_ppo", reason="liger-kernel is not installed")
    theirs = liger._ChunkedSelectiveLogProbFunction.apply(x.hidden, x.weight, x.ids, x.bias, TEMPERATURE, 128)
    agree(ours(x, backend).logp, theirs, x.trained)


def test_liger_fused_linear_jsd(x, backend):
    liger = pytest.importorskip("liger_kernel.chunked_loss", reason="liger-kernel is not installed")
    loss = liger.LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.5, temperature=TEMPERATURE, compiled=False
    )
    theirs = loss(x.hidden, x.weight, x.frozen_hidden, x.frozen_weight, x.ids, x.bias, x.frozen_bias)
    got = ours(x, backend, frozen=x.frozen, divergence="jsd").divergence.mean()
    agree(got[None], theirs[None], x.trained)


@pytest.mark.parametrize("divergence", ["rkl", "fkl", "jsd"])
def test_liger_triton_jsd(x, fp32, divergence):
    # A row of theirs at a time: they give the sum over rows.
    liger = pytest.importorskip("liger_kernel.ops.jsd", reason="liger-kernel is not installed")
    log_p = head_logits(*x.trained, temperature=TEMPERATURE).log_softmax(-1).to(fp32.device)
    log_q = head_logits(*x.frozen, temperature=TEMPERATURE).log_softmax(-1).to(fp32.device)
    theirs = torch.stack(
        [
            liger.LigerJSDFunction.apply(p[None], q[None], None, BETA[divergence])
            for p, q in zip(log_p, log_q, strict=True)
        ]
    ).cpu()
    agree(ours(x, fp32.backend, frozen=x.frozen, divergence=divergence).divergence, theirs, x.trained)


# Two sequences of three tokens; the last token of the second is masked.
SEQUENCES = (2, 3)


def rollouts(x):
    """Old and initial log-probs [2, 3] about the current ones, the sequences' advantages [2], and a mask [2, 3]."""
    now = linear_logprob(x.hidden, x.weight, x.ids, bias=x.bias, temperature=TEMPERATURE).logp.detach()
    old = now + torch.tensor([0.1, -0.4, 0.6, -0.1, 0.5, 0.3])
    frozen = now + torch.tensor([-0.3, 0.2, 0.5, 0.1, -0.6, 0.4])
    mask = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    return old.view(SEQUENCES), frozen.view(SEQUENCES), torch.tensor([1.5, -0.8]), mask


def policy_loss(logp, old, frozen, advantages, mask, backend, **options):
    flat = [t.reshape(-1) for t in (old, advantages[:, None].expand(SEQUENCES), mask.bool())]
    on = "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"
    return policy_token_loss(
        logp.to(on), *(t.to(on) for t in flat), initial_logp=frozen.reshape(-1).to(on), backend=backend, **options
    )


def test_liger_fused_linear_grpo(x, backend):
    liger = pytest.importorskip("liger_kernel.chunked_loss", reason="liger-kernel is not installed")
    old, frozen, advantages, mask = rollouts(x)
    loss = liger.LigerFusedLinearGRPOLoss(
        beta=0.04, compiled=False, epsilon_low=0.2, epsilon_high=0.28, loss_type="dapo", temperature=TEMPERATURE
    )
    theirs, (kl, clipped) = loss(
        x.hidden.view(*SEQUENCES, -1),
        x.weight,
        x.ids.view(SEQUENCES),
        mask,
        advantages,
        bias=x.bias,
        ref_per_token_logps=frozen,
        old_per_token_logps=old,
    )
    got = policy_loss(ours(x, backend).logp, old, frozen, advantages, mask, backend, kl_coef=0.04)
    agree((got.loss.sum() / mask.sum())[None].cpu(), theirs[None], x.trained)
    assert got.stats["kl"].sum().item() / 5 == pytest.approx(kl.item(), rel=1e-5)
    assert got.stats["clipped"].sum().item() / 5 == pytest.approx(clipped.item()) == pytest.approx(0.4)


def test_liger_triton_grpo(x, fp32):
    liger = pytest.importorskip("liger_kernel.ops.grpo_loss", reason="liger-kernel is not installed")
    old, frozen, advantages, mask = rollouts(x)
    logits = head_logits(*x.trained).detach().requires_grad_()
    padded = torch.cat([logits.view(*SEQUENCES, -1), torch.zeros(2, 1, 300)], 1)  # they want one position more
    on = fp32.device if fp32.backend == "triton" else ("cuda" if torch.cuda.is_available() else "cpu")
    theirs, *_ = liger.GrpoLossFunction.apply(
        padded.contiguous().to(on),
        old.to(on),
        frozen.to(on),
        x.ids.view(SEQUENCES).to(on),
        advantages.to(on),
        mask.to(on),
        TEMPERATURE,
        0.04,
        0.2,
        0.28,
        False,
        "grpo",
        None,
        False,
    )
    logp, _ = logprob_entropy(
        logits.to(fp32.device), x.ids.to(fp32.device), temperature=TEMPERATURE, backend=fp32.backend
    )
    got = policy_loss(logp, old, frozen, advantages, mask, fp32.backend, kl_coef=0.04)
    agree(got.loss.cpu(), theirs.reshape(-1).cpu(), [logits])
