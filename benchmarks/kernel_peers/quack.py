"""quack-kernels 0.6.5, read in quack/linear_cross_entropy.py and quack/cross_entropy.py. Needs nvidia-cutlass-dsl."""

from __future__ import annotations

from kernel_peers.base import Adapter, Forward, Outputs, Problem


def _cross_entropy() -> Forward:
    # cross_entropy.py: cross_entropy(x, target, *, reduction) -> loss [T] fp32.
    from quack.cross_entropy import cross_entropy

    return lambda problem: Outputs(logp=-cross_entropy(problem.inputs[0], problem.ids, reduction="none"))


def _chunked() -> Forward:
    # linear_cross_entropy.py: chunked_linear_cross_entropy(x, weight, target, chunk_size, ignore_index, reduction);
    # mean or sum alone, with gradients formed in the forward pass; on Hopper its scaled-exp kernels.
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    def forward(problem: Problem) -> Outputs:
        return Outputs(mean=chunked_linear_cross_entropy(*problem.inputs, problem.ids, reduction="mean", tuned=False))

    return forward


def _materialised() -> Forward:
    # linear_cross_entropy.py: linear_cross_entropy_func(x, weight, bias, target, ignore_index, reduction), the only one
    # that can weight tokens: bf16 logits [T, V] and the kernel of cross_entropy.
    from quack.linear_cross_entropy import linear_cross_entropy_func

    def forward(problem: Problem) -> Outputs:
        hidden, weight = problem.inputs
        return Outputs(logp=-linear_cross_entropy_func(hidden, weight, None, problem.ids, reduction="none"))

    return forward


ADAPTERS = [
    Adapter(peer="quack", task="logits", load=_cross_entropy, note="no entropy"),
    Adapter(peer="quack chunked", task="linear", load=_chunked, note="mean only, no entropy"),
    Adapter(peer="quack", task="linear", load=_materialised, note="no entropy"),
]
