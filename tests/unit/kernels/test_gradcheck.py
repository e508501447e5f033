"""The plain torch backend's gradients in float64 against finite differences, with nothing else to believe in."""

import pytest
import torch
from torch.autograd import gradcheck

from exprl.kernels import linear_logprob, logprob_entropy, policy_token_loss
from tests.unit.kernels.naive import head_inputs

DOUBLE = torch.float64
TEMPERATURE = torch.tensor([0.5, 1.0, 1.7, 2.5], dtype=DOUBLE)
MASK = torch.tensor([True, False, True, True])


def inputs(with_bias=True):
    x = head_inputs(4, 7, 2, frozen_width=3).to(DOUBLE)
    return x, x.trained if with_bias else x.trained[:2]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.6},
        {"temperature": TEMPERATURE},
        {"softcap": 3.0},
        {"mask": MASK},
        {"temperature": TEMPERATURE, "softcap": 3.0, "mask": MASK},
    ],
    ids=["plain", "temperature", "temperatures", "softcap", "mask", "all"],
)
@pytest.mark.parametrize("divergence", [None, "rkl", "fkl", "jsd"])
def test_linear_logprob(divergence, options):
    x, leaves = inputs()

    def outputs(hidden, weight, bias):
        frozen = x.frozen if divergence else None
        got = linear_logprob(
            hidden,
            weight,
            x.ids,
            bias=bias,
            frozen=frozen,
            divergence=divergence,
            vocab_block=3,
            backend="eager",
            **options,
        )
        return tuple(y for y in (got.logp, got.entropy, got.divergence, got.lse) if y is not None)

    assert gradcheck(outputs, leaves)


@pytest.mark.parametrize("divergence", ["rkl", "fkl", "jsd"])
def test_the_divergence_alone_without_a_bias(divergence):
    x, leaves = inputs(with_bias=False)

    def between(hidden, weight):
        got = linear_logprob(
            hidden, weight, x.ids, frozen=x.frozen[:2], divergence=divergence, entropy=False, vocab_block=3
        )
        return got.divergence

    assert gradcheck(between, leaves)


@pytest.mark.parametrize("options", [{}, {"temperature": TEMPERATURE, "mask": MASK}], ids=["plain", "all"])
def test_logprob_entropy(options, monkeypatch):
    monkeypatch.setattr("exprl.kernels.logits._EAGER_COLUMNS", 3)
    x, _ = inputs()
    logits = (x.hidden @ x.weight.T).detach().requires_grad_()
    assert gradcheck(lambda z: logprob_entropy(z, x.ids, backend="eager", **options), (logits,))


@pytest.mark.parametrize("dual_clip", [None, 3.0])
@pytest.mark.parametrize("kl", ["k1", "k2", "k3"])
def test_policy_token_loss(kl, dual_clip):
    # Ratios exp(±0.1), exp(±0.5) and exp(1.5): inside, outside and beyond the clips 0.8, 1.28 and 3, and off each kink.
    difference = torch.tensor([0.1, -0.1, 0.5, -0.5, 1.5], dtype=DOUBLE).repeat(2)
    advantages = torch.tensor([1.3] * 5 + [-0.7] * 5, dtype=DOUBLE)
    old = torch.linspace(-3, -1, 10, dtype=DOUBLE)
    logp = (old + difference).requires_grad_()

    def loss(x):
        return policy_token_loss(
            x,
            old,
            advantages,
            torch.arange(10) != 4,
            dual_clip=dual_clip,
            is_weight=torch.linspace(0.5, 2.0, 10, dtype=DOUBLE),
            initial_logp=old - 0.3,
            kl_coef=0.2,
            kl=kl,
            backend="eager",
        ).loss

    assert gradcheck(loss, (logp,))
