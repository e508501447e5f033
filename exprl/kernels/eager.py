"""Log-prob and entropy of chosen tokens in plain torch: any device, fp32 or fp64, the reference of faster kernels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    *,
    temperature: float = 1.0,
    bias: Tensor | None = None,
    softcap: float | None = None,
    chunk_tokens: int = 1024,
) -> tuple[Tensor, Tensor]:
    """Log-prob and entropy of chosen tokens from hidden states and the LM head, never holding [N, V].

    Logits are softcap(hidden @ weight.T + bias) / temperature, computed in fp32 (fp64 for fp64 inputs) whatever
    autocast says: rounded to bf16 they would move log-probs by up to 0.07. At most `chunk_tokens` rows of logits exist
    at a time, in the backward too, where they are computed again.

    Args:
        hidden: [N, D] last hidden states.
        weight: [V, D] LM head.
        ids: [N] chosen tokens, int64.
        temperature: the one that sampling used, above 0.
        bias: [V], where the head has one.
        softcap: c of c·tanh(logits / c) (Gemma 2), where the model has it.
        chunk_tokens: rows of logits held at once; changes memory, never the result beyond rounding.

    Returns:
        logp [N] and entropy [N] in nats, fp32 or fp64, both differentiable in hidden, weight and bias.

    Raises:
        ValueError: naming the argument with a wrong shape, dtype or value.
    """
    _check_linear(hidden, weight, bias, chunk_tokens, softcap)
    _check_ids(ids, len(hidden), len(weight))
    _check_temperature(temperature)
    dtype = torch.promote_types(torch.promote_types(hidden.dtype, weight.dtype), torch.float32)
    # Cast once, outside the chunks, so that autograd adds up the chunks' gradients in fp32 and rounds them once.
    head = weight.to(dtype)
    offset = bias.to(dtype) if bias is not None else None
    differentiable = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (hidden, weight, bias))
    logps, entropies = [hidden.new_empty(0, dtype=dtype)], [hidden.new_empty(0, dtype=dtype)]
    for rows, chosen in zip(hidden.split(chunk_tokens), ids.split(chunk_tokens), strict=True):
        arguments = (rows.to(dtype), head, offset, chosen, temperature, softcap)
        if differentiable:
            logp, entropy = checkpoint(_chunk, *arguments, use_reentrant=False, preserve_rng_state=False)
        else:
            logp, entropy = _chunk(*arguments)
        logps.append(logp)
        entropies.append(entropy)
    return torch.cat(logps), torch.cat(entropies)


def logprob_entropy(logits: Tensor, ids: Tensor, *, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-prob and entropy of chosen tokens under given logits.

    Args:
        logits: [N, V]; -inf rules a token out.
        ids: [N] chosen tokens, int64.
        temperature: logits are divided by it, above 0.

    Returns:
        logp [N] and entropy [N] in nats, fp32 (fp64 for fp64 logits), both differentiable in logits.

    Raises:
        ValueError: naming the argument with a wrong shape, dtype or value.
    """
    if logits.dim() != 2 or not logits.is_floating_point():
        raise ValueError(f"logits: expected floating point [N, V], but got {_describe(logits)}")
    _check_ids(ids, *logits.shape)
    _check_temperature(temperature)
    return _logprob_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), ids, temperature)


def _chunk(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor, temperature: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    with torch.autocast(hidden.device.type, enabled=False):
        logits = torch.nn.functional.linear(hidden, weight, bias)
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        return _logprob_entropy(logits, ids, temperature)


def _logprob_entropy(logits: Tensor, ids: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logps = torch.log_softmax(logits / temperature, dim=-1)
    # 0 · -inf is NaN, but a token that is ruled out adds no entropy.
    finite = logps.masked_fill(logps == -torch.inf, 0.0)
    return logps.gather(-1, ids[:, None])[:, 0], -(logps.exp() * finite).sum(-1)


def _check_linear(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, chunk_tokens: int, softcap: float | None
) -> None:
    if hidden.dim() != 2 or not hidden.is_floating_point():
        raise ValueError(f"hidden: expected floating point [N, D], but got {_describe(hidden)}")
    if weight.dim() != 2 or not weight.is_floating_point() or weight.shape[1] != hidden.shape[1]:
        raise ValueError(f"weight: expected floating point [V, {hidden.shape[1]}], but got {_describe(weight)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias: expected [{len(weight)}], but got {_describe(bias)}")
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be at least 1, but got {chunk_tokens}")
    if softcap is not None and softcap <= 0:
        raise ValueError(f"softcap must be above 0 or None, but got {softcap}")


def _check_ids(ids: Tensor, tokens: int, vocabulary: int) -> None:
    if ids.shape != (tokens,) or ids.dtype != torch.int64:
        raise ValueError(f"ids: expected int64 [{tokens}], but got {_describe(ids)}")
    if tokens and not bool(((ids >= 0) & (ids < vocabulary)).all()):
        raise ValueError(f"ids: expected values in 0..{vocabulary - 1}, but got {int(ids.min())}..{int(ids.max())}")


def _check_temperature(temperature: float) -> None:
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, but got {temperature}")


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
