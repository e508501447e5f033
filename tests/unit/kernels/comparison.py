"""Run `linear_logprob` and the naive computation on the same inputs, and compare values and gradients."""

from __future__ import annotations

import torch

from exprl.kernels import linear_logprob
from tests.unit.kernels.naive import HeadInputs, linear_statistics

DIFFERENTIABLE = ("logp", "entropy", "divergence", "lse")


def both(place, inputs, *, bias=True, frozen=True, mask=None, vocab_block=None, **options):
    """Our statistics and the naive one's in float64 from the same rounded inputs, with the leaves of each."""
    ours = inputs.to(place.dtype, place.device)
    theirs = inputs.to(place.dtype).to(torch.float64)
    results = []
    for x, extra in ((ours, {"backend": place.backend, "vocab_block": vocab_block}), (theirs, {})):
        on = {k: v.to(x.hidden.device) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
        function = linear_logprob if x is ours else linear_statistics
        results.append(
            function(
                x.hidden,
                x.weight,
                x.ids,
                bias=x.bias if bias else None,
                frozen=(x.frozen if bias else x.frozen[:2]) if frozen else None,
                mask=None if mask is None else mask.to(x.hidden.device),
                **on,
                **extra,
            )
        )
    return ours, results[0], theirs, results[1]


def assert_same(ours, theirs, **tolerance):
    """Equal up to the tolerance, on whatever device and in whatever dtype ours is."""
    torch.testing.assert_close(ours.detach().cpu().double(), theirs.detach(), **tolerance)


def mixes(tokens, count, seed=7):
    return torch.randn(count, tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradients(inputs: HeadInputs, outputs, weights, *, bias=True):
    """Of Σ outputs · weights, for hidden, weight and bias."""
    total = sum((o * w.to(o.device, o.dtype)).sum() for o, w in zip(outputs, weights, strict=True))
    return torch.autograd.grad(total, inputs.trained if bias else inputs.trained[:2], retain_graph=True)


def check(place, inputs, *, alone=False, bias=True, bound=None, **options):
    """Values, the gradient of a mixture of all outputs, and with `alone` each output's own; `bound` is for fp32."""
    close = place.close if bound is None or place.dtype == torch.float64 else {"rtol": bound, "atol": bound}
    ours, got, theirs, expected = both(place, inputs, bias=bias, **options)
    for name in got._fields:
        a, b = getattr(got, name), getattr(expected, name)
        assert (a is None) == (b is None), name
        if a is not None:
            assert a.dtype == torch.promote_types(place.dtype, torch.float32)
            assert_same(a, b, **close)
    names = [n for n in DIFFERENTIABLE if getattr(got, n) is not None]
    weights = mixes(len(inputs.ids), len(names))
    groups = [names, *([[n] for n in names] if alone else [])]
    for group in groups:
        w = [weights[names.index(n)] for n in group]
        ours_grad = gradients(ours, [getattr(got, n) for n in group], w, bias=bias)
        their_grad = gradients(theirs, [getattr(expected, n) for n in group], w, bias=bias)
        for of, a, b in zip(("hidden", "weight", "bias"), ours_grad, their_grad, strict=False):
            assert b.abs().max() > 0, f"{group} {of}: the naive gradient shows nothing"
            assert_same(a, b, **close)


def gradient_penalty(total, leaf):
    """Backward through the square of a gradient, and through something else that would go on without it."""
    (gradient,) = torch.autograd.grad(total, leaf, create_graph=True)
    (gradient.square().sum() + leaf.sum()).backward()
