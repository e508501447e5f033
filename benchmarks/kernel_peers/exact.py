"""Exact results: the tests' references in fp64 over fp32 products, a few tokens at a time, through autograd."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kernel_peers.base import DUAL_CLIP, KL_COEF, Outputs, Problem
from tests.unit.kernels import naive

CHUNK_BYTES = 2**29
"""Of one fp64 [tokens, V]; about a dozen live at once."""

SAMPLE = 256


@dataclass(frozen=True)
class Gradients:
    """Of the first input at the sampled tokens, and of the weight at the sampled vocabulary, fp64."""

    rows: Tensor
    columns: Tensor | None


@dataclass(frozen=True)
class Exact:
    """`outputs` of all tokens; `gradients` for each `Outputs.kind`; which `rows` and `columns` were sampled."""

    outputs: Outputs
    gradients: dict[str, Gradients]
    rows: Tensor
    columns: Tensor


def exact(problem: Problem, kinds: set[str]) -> Exact:
    """What every peer's numbers are compared with."""
    torch.set_float32_matmul_precision("highest")
    tokens, vocabulary = problem.size.tokens, problem.size.vocabulary
    rows = _spread(tokens, problem.device)
    columns = torch.cat([_spread(vocabulary, problem.device), problem.ids[rows]]).unique()
    if problem.task == "policy":
        return _exact_policy(problem, rows, columns)
    if problem.task == "logits":
        return _exact_logits(problem, kinds, rows, columns)
    return _exact_head(problem, kinds, rows, columns)


def _spread(length: int, device: torch.device) -> Tensor:
    """Up to SAMPLE indices, the first and the last among them."""
    return torch.linspace(0, length - 1, min(SAMPLE, length), device=device).round().long().unique()


def _chunks(problem: Problem) -> list[slice]:
    tokens, step = problem.size.tokens, max(CHUNK_BYTES // (8 * problem.size.vocabulary), 1)
    return [slice(first, min(first + step, tokens)) for first in range(0, tokens, step)]


def _exact_logits(problem: Problem, kinds: set[str], rows: Tensor, columns: Tensor) -> Exact:
    logits = problem.inputs[0].detach()
    parts: list[Outputs] = []
    found: dict[str, list[Tensor]] = {kind: [] for kind in kinds}
    for chunk in _chunks(problem):
        z = logits[chunk].double().requires_grad_()
        outputs = _formulas(z, None, problem, chunk)
        mine = rows[(rows >= chunk.start) & (rows < chunk.stop)] - chunk.start
        for kind in kinds:
            found[kind].append(_gradient(z, outputs, kind, problem, chunk)[mine])
        parts.append(_detached(outputs))
    gradients = {kind: Gradients(torch.cat(found[kind]), None) for kind in kinds}
    return Exact(_join(parts), gradients, rows, columns)


def _exact_head(problem: Problem, kinds: set[str], rows: Tensor, columns: Tensor) -> Exact:
    hidden, weight = (x.detach().float() for x in problem.inputs)
    frozen = None if problem.frozen is None else tuple(x.float() for x in problem.frozen)
    parts: list[Outputs] = []
    found: dict[str, list[Tensor]] = {kind: [] for kind in kinds}
    sample = len(columns), hidden.shape[1]
    d_weight = {kind: torch.zeros(sample, dtype=torch.float64, device=problem.device) for kind in kinds}
    for chunk in _chunks(problem):
        z = (hidden[chunk] @ weight.t()).double().requires_grad_()
        z_frozen = None if frozen is None else (frozen[0][chunk] @ frozen[1].t()).double()
        outputs = _formulas(z, z_frozen, problem, chunk)
        mine = rows[(rows >= chunk.start) & (rows < chunk.stop)] - chunk.start
        for kind in kinds:
            dz = _gradient(z, outputs, kind, problem, chunk)
            found[kind].append((dz[mine].float() @ weight).double())
            d_weight[kind] += dz[:, columns].t() @ hidden[chunk].double()
        parts.append(_detached(outputs))
    gradients = {kind: Gradients(torch.cat(found[kind]), d_weight[kind]) for kind in kinds}
    return Exact(_join(parts), gradients, rows, columns)


def _exact_policy(problem: Problem, rows: Tensor, columns: Tensor) -> Exact:
    p = problem.policy
    assert p is not None
    logp = problem.inputs[0].detach().double().requires_grad_()
    loss = naive.policy_loss(
        logp,
        p.old_logp.double(),
        p.advantages.double(),
        p.mask,
        dual_clip=DUAL_CLIP,
        is_weight=p.is_weight.double(),
        initial_logp=p.initial_logp.double(),
        kl_coef=KL_COEF,
    )
    (gradient,) = torch.autograd.grad(loss, logp, problem.upstream.loss.double())
    outputs = Outputs(loss=loss.detach())
    return Exact(outputs, {outputs.kind: Gradients(gradient[rows], None)}, rows, columns)


def _formulas(z: Tensor, z_frozen: Tensor | None, problem: Problem, chunk: slice) -> Outputs:
    logp, entropy = naive.logprob_entropy(z, problem.ids[chunk])
    if z_frozen is None:
        return Outputs(logp=logp, entropy=entropy)
    divergence = naive.DIVERGENCES[problem.task](z.log_softmax(1), z_frozen.log_softmax(1))
    return Outputs(logp=logp, entropy=entropy, divergence=divergence)


def _gradient(z: Tensor, outputs: Outputs, kind: str, problem: Problem, chunk: slice) -> Tensor:
    """Of the chunk's logits, for the outputs that `kind` names."""
    if kind == "mean":
        total = (-outputs.logp if outputs.divergence is None else outputs.divergence).sum() / problem.size.tokens
    else:
        total = sum(
            (getattr(outputs, name) * getattr(problem.upstream, name)[chunk].double()).sum() for name in kind.split("+")
        )
    return torch.autograd.grad(total, z, retain_graph=True)[0]


def _detached(outputs: Outputs) -> Outputs:
    return Outputs(*(None if x is None else x.detach() for x in outputs))


def _join(parts: list[Outputs]) -> Outputs:
    whole = Outputs(*(None if x[0] is None else torch.cat(x) for x in zip(*parts, strict=True)))
    mean = -whole.logp.mean() if whole.divergence is None else whole.divergence.mean()
    return whole._replace(mean=mean)
