"""How many Triton variants exprl has compiled, length after length: the number must not grow with it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

LENGTHS = (1024, 1000, 2048, 3333, 4096, 8192, 16384, 20001, 32768)
HIDDEN = 256
"""Small: the products are not what is looked at."""


@dataclass(frozen=True)
class Variants:
    """`counts[i]` variants exist after a call of everything at `lengths[i]` tokens."""

    lengths: tuple[int, ...]
    counts: tuple[int, ...]

    @property
    def constant(self) -> bool:
        """Whether the first length compiled all there is."""
        return len(set(self.counts)) == 1


def count_variants(device: torch.device, vocabulary: int) -> Variants:
    """Call every function of exprl.kernels at every length, forward and backward, in bf16.

    Raises:
        ValueError: on a CPU, where nothing is compiled.
    """
    if device.type != "cuda":
        raise ValueError("variants are compiled on a GPU alone")
    counts = []
    for tokens in LENGTHS:
        _call_everything(tokens, vocabulary, device)
        counts.append(_compiled())
        torch.cuda.empty_cache()
    return Variants(LENGTHS, tuple(counts))


def _call_everything(tokens: int, vocabulary: int, device: torch.device) -> None:
    from exprl.kernels import linear_logprob, logprob_entropy, policy_token_loss

    def head() -> tuple[torch.Tensor, torch.Tensor]:
        shapes = (tokens, HIDDEN), (vocabulary, HIDDEN)
        hidden, weight = (0.05 * torch.randn(x, device=device, dtype=torch.bfloat16) for x in shapes)
        return hidden.requires_grad_(), weight.requires_grad_()

    ids = torch.randint(vocabulary, (tokens,), device=device)
    mask = torch.rand(tokens, device=device) < 0.9
    policy = head()
    for kind in (None, "rkl", "fkl", "jsd"):
        frozen = None if kind is None else tuple(x.detach() for x in head())
        result = linear_logprob(*policy, ids, frozen=frozen, divergence=kind, mask=mask)
        sum(x.sum() for x in result if x is not None and x.requires_grad).backward()
    logp = result.logp.detach().requires_grad_()
    policy_token_loss(
        logp, logp.detach(), torch.ones_like(logp), mask, initial_logp=logp.detach()
    ).loss.sum().backward()
    del result, policy
    logits = torch.zeros(tokens, vocabulary, device=device, dtype=torch.bfloat16, requires_grad=True)
    sum(x.sum() for x in logprob_entropy(logits, ids)).backward()


def _compiled() -> int:
    import triton

    from exprl.kernels.fused import gradient, merge, merge_jsd, policy_loss

    modules = [gradient, merge, merge_jsd, policy_loss]
    kernels = [x for module in modules for x in vars(module).values() if isinstance(x, triton.JITFunction)]
    # The first entry of a device's cache maps what a variant is compiled for to the kernel (triton 3.2 to 3.9).
    return sum(len(cache[0]) for kernel in kernels for cache in kernel.device_caches.values())
