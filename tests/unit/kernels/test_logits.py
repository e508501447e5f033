"""`logprob_entropy` of given logits: against torch.nn.functional, in every dtype, and into the logits' own memory."""

import pytest
import torch
from torch.distributions import Categorical
from torch.nn import functional

from exprl.kernels import logprob_entropy
from tests.unit.kernels import naive
from tests.unit.kernels.comparison import assert_same, gradient_penalty, mixes
from tests.unit.kernels.conftest import EAGER, TRITON, Place

INF = float("inf")
LOW = [torch.bfloat16, torch.float16]
PLACES = [*EAGER, *TRITON]
ALL = [
    *PLACES,
    *(Place("eager", p.device, dtype) for p in EAGER[1:] for dtype in LOW),
    *(Place("triton", p.device, torch.bfloat16) for p in TRITON),  # fp16 is left to plain torch
]


@pytest.fixture(autouse=True)
def several_slices(monkeypatch):
    """Plain torch walks in slices of 8,192; here the small vocabularies take several."""
    monkeypatch.setattr("exprl.kernels.logits._EAGER_COLUMNS", 256)


def random_logits(tokens, vocabulary, place, seed=0, scale=3.0):
    """Logits as `place` holds them, float64 ones of the same values, and ids with the first and last token."""
    g = torch.Generator().manual_seed(seed)
    z = (scale * torch.randn(tokens, vocabulary, generator=g, dtype=torch.float64)).to(place.dtype)
    ids = torch.randint(vocabulary, (tokens,), generator=g)
    ids[0], ids[-1] = 0, vocabulary - 1
    leaves = (x.clone().requires_grad_() for x in (z.to(place.device), z.double()))
    return *leaves, ids.to(place.device)


def gradient_of(outputs, weights, leaf):
    total = sum((o * w.to(o.device, o.dtype)).sum() for o, w in zip(outputs, weights, strict=True))
    return torch.autograd.grad(total, leaf, retain_graph=True)[0]


def bound_of(place):
    """One rounding of the gradient to the logits' dtype."""
    if place.dtype not in LOW:
        return place.close
    return {"rtol": place.bf16_error if place.dtype == torch.bfloat16 else 2**-11, "atol": 1e-6}


@pytest.mark.parametrize("place", ALL, ids=str)
@pytest.mark.parametrize(("tokens", "vocabulary"), [(1, 2053), (5, 517)])
def test_against_torch(place, tokens, vocabulary):
    ours, theirs, ids = random_logits(tokens, vocabulary, place)
    got = logprob_entropy(ours, ids, backend=place.backend)
    expected = (
        -functional.cross_entropy(theirs, ids.cpu(), reduction="none"),
        Categorical(logits=theirs).entropy(),
    )
    exact = 1e-10 if place.dtype == torch.float64 else 1e-5
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == torch.promote_types(place.dtype, torch.float32)
        assert_same(a, b, rtol=exact, atol=exact)
    weights = mixes(tokens, 2)
    for pick in (slice(0, 1), slice(1, 2), slice(0, 2)):
        a, b = gradient_of(got[pick], weights[pick], ours), gradient_of(expected[pick], weights[pick], theirs)
        assert a.dtype == place.dtype
        assert_same(a, b, **bound_of(place))


def test_by_hand(fp32):
    # Logits (log 1, log 3): p = 1/4, 3/4. At temperature 0.5 they double: p = 1/10, 9/10.
    logits = torch.tensor([[1.0, 3.0], [1.0, 3.0]], device=fp32.device).log()
    ids = torch.tensor([1, 0], device=fp32.device)
    temperatures = torch.tensor([1.0, 0.5], device=fp32.device)
    logp, entropy = logprob_entropy(logits, ids, temperature=temperatures, backend=fp32.backend)
    assert logp.exp().tolist() == pytest.approx([0.75, 0.1])
    assert entropy.tolist() == pytest.approx([0.5623351, 0.3250830])


@pytest.mark.parametrize("temperature", ["one", "each"])
@pytest.mark.parametrize("with_mask", [False, True])
def test_temperature_and_mask(place, temperature, with_mask):
    ours, theirs, ids = random_logits(4, 517, place)
    temperatures = 0.7 if temperature == "one" else torch.tensor([0.5, 1.0, 2.0, 0.1], dtype=torch.float64)
    on = temperatures.to(place.device) if temperature == "each" else temperatures
    mask = torch.tensor([True, False, True, True]) if with_mask else None
    if with_mask:
        ids[1] = -100
        with torch.no_grad():
            ours[1] = float("nan")
    got = logprob_entropy(
        ours, ids, temperature=on, mask=None if mask is None else mask.to(place.device), backend=place.backend
    )
    expected = naive.logprob_entropy(theirs, ids.cpu(), temperature=temperatures, mask=mask)
    weights = mixes(4, 2)
    for a, b in zip(got, expected, strict=True):
        assert_same(a, b, **place.close)
    gradient = gradient_of(got, weights, ours)
    assert_same(gradient, gradient_of(expected, weights, theirs), **place.close)
    if with_mask:
        assert not gradient[1].any()


def test_all_tokens_masked(place):
    ours, _, ids = random_logits(3, 517, place)
    got = logprob_entropy(
        ours, ids - 1000, mask=torch.zeros(3, dtype=torch.bool, device=place.device), backend=place.backend
    )
    assert [x.tolist() for x in got] == [[0.0] * 3] * 2
    assert not gradient_of(got, mixes(3, 2), ours).any()


def test_no_tokens(place):
    ours, _, ids = random_logits(1, 517, place)
    got = logprob_entropy(ours[:0], ids[:0], backend=place.backend)
    assert [x.shape for x in got] == [(0,), (0,)]


@pytest.mark.parametrize("out", [slice(0, 256), slice(256, 300), slice(400, 517)])
def test_tokens_that_are_ruled_out(place, out):
    ours, theirs, ids = random_logits(3, 517, place)
    ids.fill_(310)
    ids[0] = out.start  # itself ruled out
    with torch.no_grad():
        ours[:, out] = -INF
        theirs[:, out] = -INF
    got = logprob_entropy(ours, ids, backend=place.backend)
    expected = naive.logprob_entropy(theirs, ids.cpu())
    assert got[0][0].item() == -INF
    for a, b in zip(got, expected, strict=True):
        assert_same(a[1:], b[1:], **place.close)
    weights = mixes(3, 2)
    assert_same(gradient_of(got, weights, ours), gradient_of(expected, weights, theirs), **place.close)


def test_a_slice_of_the_smallest_numbers_leaves_the_entropy_finite(place):
    # What masks often hold in place of -inf. Its sums overflow, and weigh nothing once a larger logit has come.
    z = torch.randn(2, 900, generator=torch.Generator().manual_seed(0)).to(place.device, place.dtype)
    z[:, :512] = torch.finfo(place.dtype).min
    got = logprob_entropy(z, torch.tensor([600, 899], device=place.device), backend=place.backend)
    assert_same(got[1], Categorical(logits=z[:, 512:].double().cpu()).entropy(), **place.close)


@pytest.mark.parametrize("entropy", [False, True])
def test_a_token_without_any_logit_takes_no_part_where_its_result_does_not(place, entropy):
    z = torch.randn(2, 300).to(place.device, place.dtype)
    z[1] = -INF
    z.requires_grad_()
    got = logprob_entropy(z, torch.tensor([1, 1], device=place.device), backend=place.backend)
    (gradient,) = torch.autograd.grad((got[0][0] + got[1][0]) if entropy else got[0][0], z)
    assert not gradient[1].any()
    assert gradient[0].any()


@pytest.mark.parametrize("shift", [1e4, -1e4])
def test_shifted_rows(place, shift):
    ours, theirs, ids = random_logits(3, 517, place)
    with torch.no_grad():
        ours += shift
        theirs.copy_(ours)
    got = logprob_entropy(ours, ids, backend=place.backend)
    expected = naive.logprob_entropy(theirs, ids.cpu())
    bound = 1e-10 if place.dtype == torch.float64 else 2e-3  # fp32 holds 10,000 to 1e-3
    for a, b in zip(got, expected, strict=True):
        assert_same(a, b, rtol=0, atol=bound)


@pytest.mark.parametrize("kind", ["transposed", "columns", "rows", "ids"])
def test_strided_inputs(place, kind):
    ours, theirs, ids = random_logits(4, 517, place)
    seen, seen_ids = ours.detach(), ids
    if kind == "transposed":
        seen = seen.t().contiguous().t()
    elif kind == "columns":
        seen = torch.cat([seen, torch.full_like(seen, 99.0)], 1)[:, :517]
    elif kind == "rows":
        seen = torch.stack([seen, torch.full_like(seen, 99.0)], 1)[:, 0]
    else:
        seen_ids = torch.stack([ids, 516 - ids], 1)[:, 0]
    assert not (seen.is_contiguous() and seen_ids.is_contiguous())
    seen.requires_grad_()
    got = logprob_entropy(seen, seen_ids, backend=place.backend)
    expected = naive.logprob_entropy(theirs, ids.cpu())
    weights = mixes(4, 2)
    for a, b in zip(got, expected, strict=True):
        assert_same(a, b, **place.close)
    assert_same(gradient_of(got, weights, seen), gradient_of(expected, weights, theirs), **place.close)


def test_repeats_bitwise(fp32):
    ours, _, ids = random_logits(4, 517, fp32)
    runs = []
    for _ in range(2):
        got = logprob_entropy(ours, ids, temperature=0.7, backend=fp32.backend)
        runs.append([*got, gradient_of(got, mixes(4, 2), ours)])
    for a, b in zip(*runs, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("loss", ["sum", "square"])
def test_a_second_derivative_raises(fp32, loss):
    ours, _, ids = random_logits(2, 517, fp32)
    logp, _ = logprob_entropy(ours, ids, backend=fp32.backend)
    total = logp.sum() if loss == "sum" else logp.square().sum()
    with pytest.raises(RuntimeError):
        gradient_penalty(total, ours)


def test_changed_ids_are_noticed(fp32):
    ours, _, ids = random_logits(2, 517, fp32)
    logp, _ = logprob_entropy(ours, ids, backend=fp32.backend)
    ids.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        logp.sum().backward()


# ------------------------------------------------------------------ into the logits' memory


@pytest.mark.parametrize("place", ALL, ids=str)
@pytest.mark.parametrize("with_mask", [False, True])
def test_in_place_gives_the_same_gradient_in_the_logits_memory(place, with_mask):
    leaf, _, ids = random_logits(4, 517, place)
    mask = torch.tensor([True, False, True, True], device=place.device) if with_mask else None
    gradients = []
    for inplace in (False, True):
        logits = leaf * 2
        got = logprob_entropy(logits, ids, mask=mask, inplace_backward=inplace, backend=place.backend)
        weights = mixes(4, 2)
        gradients.append(gradient_of(got, weights, logits))
        assert (gradients[-1].data_ptr() == logits.data_ptr()) == inplace
    assert gradients[0].any()
    assert torch.equal(*gradients)


def test_in_place_reaches_the_leaf(fp32):
    leaf, theirs, ids = random_logits(4, 517, fp32)
    logp, entropy = logprob_entropy(leaf * 2, ids, inplace_backward=True, backend=fp32.backend)
    (logp - entropy).sum().backward()
    expected = naive.logprob_entropy(theirs * 2, ids.cpu())
    (expected[0] - expected[1]).sum().backward()
    assert_same(leaf.grad, theirs.grad, **fp32.close)


def test_in_place_goes_backward_once(fp32):
    leaf, _, ids = random_logits(2, 517, fp32)
    logp, _ = logprob_entropy(leaf * 1, ids, inplace_backward=True, backend=fp32.backend)
    logp.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match=r"inplace_backward: .* earlier backward pass"):
        logp.sum().backward()


def test_in_place_refuses_a_leaf(fp32):
    leaf, _, ids = random_logits(2, 517, fp32)
    with pytest.raises(ValueError, match="inplace_backward: logits are a leaf"):
        logprob_entropy(leaf, ids, inplace_backward=True, backend=fp32.backend)
    with torch.no_grad():  # nothing can go backward into these
        assert logprob_entropy(leaf.detach(), ids, inplace_backward=True, backend=fp32.backend)[0].isfinite().all()


def test_in_place_others_that_saved_the_logits_notice(fp32):
    leaf, _, ids = random_logits(2, 517, fp32)
    logits = leaf * 1
    other = logits.square().sum()  # saves the logits, and goes backward after what came later
    logp, _ = logprob_entropy(logits, ids, inplace_backward=True, backend=fp32.backend)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (other + logp.sum()).backward()


def test_in_place_a_producer_that_saved_its_result_notices(fp32):
    leaf, _, ids = random_logits(2, 517, fp32)
    logp, _ = logprob_entropy(leaf.tanh(), ids, inplace_backward=True, backend=fp32.backend)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        logp.sum().backward()


def test_changed_logits_are_noticed(fp32):
    leaf, _, ids = random_logits(2, 517, fp32)
    logits = leaf * 1
    logp, _ = logprob_entropy(logits, ids, backend=fp32.backend)
    with torch.no_grad():
        logits.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        logp.sum().backward()
