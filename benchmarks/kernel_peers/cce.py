"""Cut cross entropy 25.1.1, read in cut_cross_entropy/linear_cross_entropy.py and cce.py."""

from __future__ import annotations

from functools import partial

from kernel_peers.base import Adapter, Forward, Outputs, Problem


def _cut_cross_entropy(filter_eps: str | None) -> Forward:
    # linear_cross_entropy(e [T, D], c [V, D], targets [T], *, reduction, filter_eps): "high" is its default and skips
    # blocks of the gradient whose entries are all below 2^-12; None computes all of it.
    from cut_cross_entropy import linear_cross_entropy

    def forward(problem: Problem) -> Outputs:
        nll = linear_cross_entropy(*problem.inputs, problem.ids, reduction="none", filter_eps=filter_eps)
        return Outputs(logp=-nll)

    return forward


ADAPTERS = [
    Adapter(
        peer="CCE", task="linear", load=partial(_cut_cross_entropy, "high"), note="no entropy, drops small gradients"
    ),
    Adapter(peer="CCE exact", task="linear", load=partial(_cut_cross_entropy, None), note="no entropy"),
]
