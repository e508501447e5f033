"""exprl, through the public functions and their defaults."""

from __future__ import annotations

from functools import partial

from kernel_peers.base import DUAL_CLIP, KL_COEF, Adapter, Forward, Outputs, Problem, Task


def _logits(backend: str) -> Forward:
    from exprl.kernels import logprob_entropy

    def forward(problem: Problem) -> Outputs:
        logp, entropy = logprob_entropy(problem.inputs[0], problem.ids, backend=backend)
        return Outputs(logp=logp, entropy=entropy)

    return forward


def _linear(backend: str, *, entropy: bool = True) -> Forward:
    from exprl.kernels import linear_logprob

    def forward(problem: Problem) -> Outputs:
        result = linear_logprob(*problem.inputs, problem.ids, entropy=entropy, backend=backend)
        return Outputs(logp=result.logp, entropy=result.entropy)

    return forward


def _divergence(kind: str, backend: str) -> Forward:
    from exprl.kernels import linear_logprob

    def forward(problem: Problem) -> Outputs:
        result = linear_logprob(
            *problem.inputs, problem.ids, frozen=problem.frozen, divergence=kind, entropy=False, backend=backend
        )
        return Outputs(divergence=result.divergence)

    return forward


def _everything(backend: str) -> Forward:
    from exprl.kernels import linear_logprob

    def forward(problem: Problem) -> Outputs:
        result = linear_logprob(*problem.inputs, problem.ids, frozen=problem.frozen, divergence="rkl", backend=backend)
        return Outputs(logp=result.logp, entropy=result.entropy, divergence=result.divergence)

    return forward


def _policy(backend: str) -> Forward:
    from exprl.kernels import policy_token_loss

    def forward(problem: Problem) -> Outputs:
        p = problem.policy
        assert p is not None
        result = policy_token_loss(
            problem.inputs[0],
            p.old_logp,
            p.advantages,
            p.mask,
            dual_clip=DUAL_CLIP,
            is_weight=p.is_weight,
            initial_logp=p.initial_logp,
            kl_coef=KL_COEF,
            backend=backend,
        )
        return Outputs(loss=result.loss)

    return forward


def _variants(peer: str, backend: str) -> list[Adapter]:
    divergences: list[Task] = ["rkl", "fkl", "jsd"]
    return [
        Adapter(peer=peer, task="logits", load=partial(_logits, backend), on_cpu=True),
        Adapter(peer=peer, task="linear", load=partial(_linear, backend), on_cpu=True),
        *(Adapter(peer=peer, task=x, load=partial(_divergence, x, backend), on_cpu=True) for x in divergences),
        Adapter(peer=peer, task="policy", load=partial(_policy, backend), on_cpu=True),
    ]


ADAPTERS = [
    *_variants("exprl", "auto"),
    Adapter(
        peer="exprl (logp only)",
        task="linear",
        load=partial(_linear, "auto", entropy=False),
        on_cpu=True,
        note="no entropy",
    ),
    Adapter(
        peer="exprl (all in one)",
        task="rkl",
        load=partial(_everything, "auto"),
        on_cpu=True,
        note="with log-prob and entropy",
    ),
    *_variants("exprl compile", "compile"),
]
