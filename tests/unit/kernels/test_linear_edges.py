"""`linear_logprob` where arithmetic is delicate: shifts, ruled out tokens, masks, strided views."""

import pytest
import torch

from exprl.kernels import linear_logprob
from tests.unit.kernels.comparison import assert_same, both, check, gradients, mixes
from tests.unit.kernels.naive import head_inputs

INF = float("inf")
DIVERGENCES = ["rkl", "fkl", "jsd"]


def ruled_out(inputs, policy=(), frozen=()):
    """The heads' biases with -inf at the given slices of the vocabulary; the ids are moved to token 300."""
    bias, frozen_bias = inputs.bias.clone(), inputs.frozen_bias.clone()
    for part in policy:
        bias[part] = -INF
    for part in frozen:
        frozen_bias[part] = -INF
    return inputs._replace(bias=bias, frozen_bias=frozen_bias, ids=torch.full_like(inputs.ids, 300))


# ------------------------------------------------------------------ shifts


@pytest.mark.parametrize(("shift", "frozen_shift"), [(1e3, 1e3), (-1e3, -1e3), (1e3, -1e3)])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_shifted_rows(place, shift, frozen_shift, divergence):
    # A running maximum that starts at 0, or logits of 0 past the end of a row, would drown the rows at -1000.
    inputs = head_inputs(3, 517, 48)
    shifted = inputs._replace(bias=inputs.bias + shift, frozen_bias=inputs.frozen_bias + frozen_shift)
    # fp32 holds numbers about 1000 to 6e-5.
    check(place, shifted, divergence=divergence, vocab_block=256, bound=2e-4)


@pytest.mark.parametrize("size", [500, -500])
def test_slices_of_very_different_size(place, size):
    inputs = head_inputs(3, 517, 48, frozen_width=40)
    bias, frozen_bias = inputs.bias.clone(), inputs.frozen_bias.clone()
    bias[:256] += size
    frozen_bias[256:300] += size
    inputs = inputs._replace(bias=bias, frozen_bias=frozen_bias)
    check(place, inputs, divergence="jsd", vocab_block=128, bound=2e-4)


# ------------------------------------------------------------------ tokens that are ruled out

FIRST, MIDDLE, LAST, SOME = slice(0, 256), slice(256, 290), slice(512, 517), slice(400, 500)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("out", [(FIRST,), (MIDDLE, LAST), (FIRST, SOME, LAST)])
def test_both_heads_rule_out_the_same(place, divergence, out):
    # Whole slices of 128, whole blocks of 256, and parts.
    check(place, ruled_out(head_inputs(2, 517, 48), out, out), divergence=divergence, vocab_block=128)


@pytest.mark.parametrize(
    ("divergence", "policy", "frozen"),
    [
        ("rkl", (FIRST, SOME), (SOME,)),
        ("fkl", (SOME,), (FIRST, SOME)),
        ("jsd", (FIRST,), (LAST, SOME)),
        ("jsd", (LAST, SOME), (FIRST,)),
    ],
)
def test_one_head_rules_out_more(place, divergence, policy, frozen):
    check(place, ruled_out(head_inputs(2, 517, 48), policy, frozen), divergence=divergence, vocab_block=128)


@pytest.mark.parametrize("part", [FIRST, SOME, LAST])
def test_forward_kl_is_infinite_where_the_policy_rules_out_what_the_frozen_head_allows(place, part):
    ours, got, theirs, expected = both(
        place, ruled_out(head_inputs(2, 517, 48), policy=(part,)), divergence="fkl", vocab_block=128
    )
    assert got.divergence.tolist() == expected.divergence.tolist() == [INF, INF]
    assert_same(got.entropy, expected.entropy, **place.close)
    # d KL(q ‖ p) / dz = p - q stays finite.
    p = (theirs.hidden @ theirs.weight.T + theirs.bias).softmax(-1)
    q = (theirs.frozen_hidden @ theirs.frozen_weight.T + theirs.frozen_bias).softmax(-1)
    weights = mixes(2, 1)
    assert_same(
        gradients(ours, [got.divergence], weights)[2], (weights[0, :, None] * (p - q).detach()).sum(0), **place.close
    )


@pytest.mark.parametrize("part", [FIRST, SOME, LAST])
def test_reverse_kl_is_infinite_where_the_frozen_head_rules_out_what_the_policy_allows(place, part):
    _, got, _, expected = both(
        place, ruled_out(head_inputs(2, 517, 48), frozen=(part,)), divergence="rkl", vocab_block=128
    )
    assert got.divergence.tolist() == expected.divergence.tolist() == [INF, INF]
    assert_same(got.logp, expected.logp, **place.close)


@pytest.mark.parametrize("divergence", ["rkl", "fkl"])
def test_slices_change_nothing_where_probability_underflows(place, divergence):
    # One head rules out a token of the first slice to which the other gives e^-2000: 0 in any precision.
    inputs = head_inputs(2, 517, 48)
    policy, frozen = inputs.bias.clone(), inputs.frozen_bias.clone()
    silent, sure = (frozen, policy) if divergence == "rkl" else (policy, frozen)
    silent[3], sure[400] = -INF, 2000.0
    inputs = inputs._replace(bias=policy, frozen_bias=frozen)
    whole, sliced = (both(place, inputs, divergence=divergence, vocab_block=b)[1] for b in (None, 128))
    assert whole.divergence.isfinite().all()
    torch.testing.assert_close(sliced.divergence, whole.divergence, rtol=1e-5, atol=1e-5)


def test_a_chosen_token_that_is_ruled_out(place):
    inputs = ruled_out(head_inputs(2, 517, 48), policy=(FIRST,))._replace(ids=torch.tensor([3, 300]))
    ours, got, theirs, expected = both(place, inputs, frozen=False, vocab_block=128)
    assert got.logp[0].item() == -INF
    assert_same(got.logp[1:], expected.logp[1:], **place.close)
    for a, b in zip(
        gradients(ours, [got.logp], mixes(2, 1)), gradients(theirs, [expected.logp], mixes(2, 1)), strict=True
    ):
        assert_same(a, b, **place.close)


# ------------------------------------------------------------------ masks


def masked(inputs, mask):
    """NaN and ids out of range where the mask is false."""
    out = torch.where(torch.arange(len(mask)) % 2 == 0, -100, 10**9)
    nan = float("nan")
    return inputs._replace(
        hidden=inputs.hidden.masked_fill(~mask[:, None], nan),
        frozen_hidden=inputs.frozen_hidden.masked_fill(~mask[:, None], nan),
        ids=torch.where(mask, inputs.ids, out),
    )


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_masked_tokens_leave_no_trace(place, divergence):
    mask = torch.tensor([True, False, True, False, False, True])
    temperatures = torch.tensor([0.5, float("nan"), 1.0, -1.0, 0.0, 2.0], dtype=torch.float64)
    inputs = masked(head_inputs(6, 517, 48, frozen_width=40), mask)
    options = {"divergence": divergence, "mask": mask, "temperature": temperatures, "vocab_block": 256}
    check(place, inputs, **options)
    ours, got, *_ = both(place, inputs, **options)
    on_mask = mask.to(place.device)
    for x in got:
        assert not x[~on_mask].any()
    # Gradients of masked results reach nothing.
    weights = mixes(6, 2)
    kept = gradients(ours, [got.logp, got.divergence], weights * mask)
    for a, b in zip(gradients(ours, [got.logp, got.divergence], weights), kept, strict=True):
        assert torch.equal(a, b)
    assert not kept[0][~on_mask].any()


def test_all_tokens_masked(place):
    mask = torch.zeros(3, dtype=torch.bool)
    ours, got, *_ = both(place, masked(head_inputs(3, 517, 48), mask), divergence="rkl", mask=mask)
    assert [x.tolist() for x in got] == [[0.0, 0.0, 0.0]] * 5
    for gradient, of in zip(gradients(ours, [got.logp, got.divergence], mixes(3, 2)), ours.trained, strict=True):
        assert gradient.shape == of.shape
        assert not gradient.any()


def test_no_token_masked_is_no_mask(place):
    inputs = head_inputs(3, 517, 48)
    runs = []
    for mask in (None, torch.ones(3, dtype=torch.bool)):
        ours, got, *_ = both(place, inputs, divergence="jsd", mask=mask)
        runs.append([*got, *gradients(ours, [got.logp, got.divergence], mixes(3, 2))])
    for a, b in zip(*runs, strict=True):
        assert torch.equal(a, b)


# ------------------------------------------------------------------ strided views


def strided(x):
    """The same values as every second column of a wider tensor (of the last dimension)."""
    wide = torch.empty(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype, device=x.device)
    wide[..., 1::2] = 77
    view = wide[..., ::2]
    return view.copy_(x)


def transposed(x):
    return x.t().contiguous().t()


@pytest.mark.parametrize(
    ("name", "view"),
    [
        ("hidden", strided),
        ("hidden", transposed),
        ("weight", strided),
        ("weight", transposed),
        ("bias", strided),
        ("ids", strided),
        ("frozen_hidden", strided),
        ("frozen_weight", transposed),
        ("frozen_bias", strided),
    ],
)
def test_strided_inputs(place, name, view):
    inputs = head_inputs(3, 517, 48)
    x = inputs.to(place.dtype, place.device)
    leaf = getattr(x, name)
    seen = view(leaf.detach()).requires_grad_(leaf.requires_grad)
    assert not seen.is_contiguous()
    y = x._replace(**{name: seen})
    runs = []
    for z in (x, y):
        got = linear_logprob(
            z.hidden,
            z.weight,
            z.ids,
            bias=z.bias,
            frozen=z.frozen,
            divergence="rkl",
            vocab_block=256,
            backend=place.backend,
        )
        runs.append([*got, *gradients(z, [got.logp, got.entropy, got.divergence], mixes(3, 3))])
    for a, b in zip(*runs, strict=True):
        torch.testing.assert_close(b, a, **place.close)


@pytest.mark.parametrize("spaced", ["mask", "temperature", "both"])
def test_strided_mask_and_temperature(place, spaced):
    x = head_inputs(4, 517, 48).to(place.dtype, place.device)
    mask = torch.tensor([True, False, True, True], device=place.device)
    temperatures = torch.tensor([0.5, 1.0, 1.5, 2.0], dtype=place.dtype, device=place.device)
    runs = []
    for view in (lambda y: y, strided):
        m = view(mask) if spaced != "temperature" else mask
        t = view(temperatures) if spaced != "mask" else temperatures
        got = linear_logprob(x.hidden, x.weight, x.ids, mask=m, temperature=t, backend=place.backend)
        runs.append([*got[:2], *torch.autograd.grad((got.logp + got.entropy).sum(), x.trained[:2])])
    for a, b in zip(*runs, strict=True):
        assert torch.equal(a, b)


def test_a_temperature_that_is_expanded(place):
    x = head_inputs(4, 517, 48).to(place.dtype, place.device)
    temperatures = torch.tensor([0.5], dtype=place.dtype, device=place.device).expand(4)
    got = linear_logprob(x.hidden, x.weight, x.ids, temperature=temperatures, backend=place.backend)
    same = linear_logprob(x.hidden, x.weight, x.ids, temperature=0.5, backend=place.backend)
    assert torch.equal(got.logp, same.logp)
    assert torch.equal(got.entropy, same.entropy)
