"""`linear_logprob` against materialised logits: values, and every output's gradient alone and mixed."""

import pytest
import torch

from exprl.kernels import LinearHead, linear_logprob
from tests.unit.kernels.comparison import DIFFERENTIABLE, assert_same, both, check, gradients, mixes
from tests.unit.kernels.naive import head_inputs


@pytest.mark.parametrize(
    ("tokens", "vocabulary", "width"), [(1, 517, 48), (1, 2053, 64), (33, 517, 64), (33, 2053, 48)]
)
def test_values_and_mixed_gradients(place, tokens, vocabulary, width):
    check(place, head_inputs(tokens, vocabulary, width, frozen_width=40), divergence="rkl", vocab_block=512)


@pytest.mark.parametrize(("tokens", "vocabulary", "width"), [(1, 2053, 64), (3, 517, 48)])
def test_one_head(place, tokens, vocabulary, width):
    check(place, head_inputs(tokens, vocabulary, width), frozen=False, alone=True, vocab_block=512)


@pytest.mark.parametrize("divergence", ["rkl", "fkl", "jsd"])
def test_every_gradient_alone(place, divergence):
    # D_frozen is smaller than D for one, larger for the others.
    inputs = head_inputs(3, 517, 48, frozen_width=40 if divergence == "rkl" else 64)
    check(place, inputs, alone=True, divergence=divergence, vocab_block=256)


@pytest.mark.parametrize("divergence", ["rkl", "fkl", "jsd"])
def test_softcap_and_a_temperature_for_each_token(place, divergence):
    inputs = head_inputs(3, 517, 48, frozen_width=40, scale=8.0)
    temperatures = torch.tensor([0.4, 1.0, 2.5], dtype=torch.float64)
    check(place, inputs, divergence=divergence, temperature=temperatures, softcap=5.0, vocab_block=256)


def test_one_temperature_and_no_bias(place):
    check(place, head_inputs(3, 517, 48), bias=False, temperature=0.6, divergence="jsd", vocab_block=256)


def test_a_frozen_head_without_divergence(place):
    ours, got, _, expected = both(place, head_inputs(3, 517, 48, frozen_width=40), vocab_block=256)
    assert got.divergence is None
    assert_same(got.frozen_logp, expected.frozen_logp, **place.close)
    assert not got.frozen_logp.requires_grad
    assert gradients(ours, [got.entropy], mixes(3, 1))[0].abs().max() > 0


def test_without_entropy(place):
    inputs = head_inputs(3, 517, 48)
    x = inputs.to(place.dtype, place.device)
    got = linear_logprob(x.hidden, x.weight, x.ids, entropy=False, backend=place.backend)
    assert got.entropy is None
    whole = linear_logprob(x.hidden, x.weight, x.ids, backend=place.backend)
    assert torch.equal(got.logp, whole.logp)
    for a, b in zip(
        torch.autograd.grad(got.logp.sum(), (x.hidden, x.weight)),
        torch.autograd.grad(whole.logp.sum(), (x.hidden, x.weight)),
        strict=True,
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("vocabulary", "vocab_block"), [(517, 128), (517, 256), (517, 512), (517, None), (2053, 512), (2053, None)]
)
def test_targets_in_every_part_of_a_slice(place, vocab_block, vocabulary):
    # The first and last id of a slice, of the last and partial slice, and of the interpreter's blocks of 256.
    edges = [0, 127, 128, 255, 256, 511, 512, 515, 516] if vocabulary == 517 else [0, 511, 2047, 2048, 2052]
    inputs = head_inputs(len(edges), vocabulary, 48)._replace(ids=torch.tensor(edges))
    ours, got, theirs, expected = both(place, inputs, frozen=False, vocab_block=vocab_block)
    assert_same(got.logp, expected.logp, **place.close)
    weights = mixes(len(inputs.ids), 1)
    (at_bias,) = torch.autograd.grad((got.logp * weights[0].to(got.logp)).sum(), ours.bias)
    (at_theirs,) = torch.autograd.grad((expected.logp * weights[0]).sum(), theirs.bias)
    assert_same(at_bias, at_theirs, **place.close)


@pytest.mark.parametrize("divergence", ["rkl", "fkl", "jsd"])
def test_slices_change_nothing(place, divergence):
    inputs = head_inputs(2, 517, 48, frozen_width=40)
    blocks = [None, 10_000, 512, 128, *([7] if place.backend == "eager" else [])]
    runs = []
    for vocab_block in blocks:
        ours, got, *_ = both(place, inputs, divergence=divergence, vocab_block=vocab_block)
        outputs = [getattr(got, n) for n in DIFFERENTIABLE]
        runs.append([*got, *gradients(ours, outputs, mixes(2, 4))])
    bound = 1e-13 if place.dtype == torch.float64 else 4e-6
    for run in runs[1:]:
        for a, b in zip(run, runs[0], strict=True):
            torch.testing.assert_close(a, b, rtol=bound, atol=bound)


@pytest.mark.parametrize("divergence", ["rkl", "fkl", "jsd"])
def test_a_head_does_not_diverge_from_itself(place, divergence):
    inputs = head_inputs(3, 517, 48)
    same = inputs._replace(frozen_hidden=inputs.hidden, frozen_weight=inputs.weight, frozen_bias=inputs.bias)
    ours, got, *_ = both(place, same, divergence=divergence, vocab_block=256)
    bound = 1e-15 if place.dtype == torch.float64 else 3e-7
    assert got.divergence.abs().max() <= bound
    assert torch.equal(got.frozen_logp, got.logp.detach())
    for gradient in gradients(ours, [got.divergence], mixes(3, 1)):
        assert gradient.abs().max() <= bound


def test_no_tokens(place):
    inputs = head_inputs(0, 517, 48)
    ours, got, *_ = both(place, inputs, divergence="jsd")
    assert [x.shape for x in got] == [(0,)] * 5
    hidden, weight, bias = gradients(ours, [got.logp, got.divergence], mixes(0, 2))
    assert hidden.shape == (0, 48)
    assert weight.shape == (517, 48)
    assert not weight.any()
    assert not bias.any()


def test_a_head_given_as_a_pair_or_by_name(fp32):
    x = head_inputs(2, 517, 48).to(fp32.dtype, fp32.device)
    by_pair = linear_logprob(*x.trained[:2], x.ids, frozen=x.frozen[:2], divergence="rkl", backend=fp32.backend)
    named = LinearHead(hidden=x.frozen_hidden, weight=x.frozen_weight)
    by_name = linear_logprob(*x.trained[:2], x.ids, frozen=named, divergence="rkl", backend=fp32.backend)
    assert torch.equal(by_pair.divergence, by_name.divergence)
    assert by_pair.divergence.min() > 0.1
