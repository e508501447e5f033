"""Log-probs of sampled tokens under a causal LM, without a logits tensor of the whole batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from exprl.kernels import Backend, Divergence, TokenStatistics
from exprl.models.logits import FrozenHidden, backbone_of, token_statistics
from exprl.models.shared_prompts import shared_hidden, shares_prompts
from exprl.training.batching import MicroBatch

_STATISTICS, _HIDDEN = "exprl_response_statistics", "exprl_response_hidden"


def response_logprobs(
    model: PreTrainedModel,
    batch: MicroBatch,
    *,
    temperature: float,
    backend: Backend = "auto",
    entropy: bool = False,
    frozen: FrozenHidden | None = None,
    divergence: Divergence | None = None,
) -> TokenStatistics:
    """Statistics [N] of the tempered distribution at each of the N response tokens.

    The backbone runs over the whole batch, the LM head over the response positions only. `frozen`, a frozen model's
    hidden states at the same N positions, gives the full-vocabulary `divergence` from it.
    """
    compute = getattr(model, _STATISTICS, None) or partial(response_statistics, model)
    return TokenStatistics(*compute(batch, temperature, backend, entropy, frozen, divergence))


def response_hidden(model: PreTrainedModel, batch: MicroBatch) -> Tensor:
    """[N, D] last hidden states that predict the N response tokens."""
    compute = getattr(model, _HIDDEN, None) or partial(hidden_states, model)
    hidden: Tensor = compute(batch)
    return hidden


def response_statistics(
    model: PreTrainedModel,
    batch: MicroBatch,
    temperature: float,
    backend: Backend,
    entropy: bool,
    frozen: FrozenHidden | None,
    divergence: Divergence | None,
) -> tuple[Tensor | None, ...]:
    """See `response_logprobs`; a plain tuple, in which FSDP finds the tensors that carry gradient."""
    hidden = hidden_states(model, batch)
    return tuple(
        token_statistics(
            model,
            hidden,
            batch.ids,
            temperature=temperature,
            backend=backend,
            entropy=entropy,
            frozen=frozen,
            divergence=divergence,
        )
    )


def hidden_states(model: PreTrainedModel, batch: MicroBatch) -> Tensor:
    """See `response_hidden`."""
    backbone, shared = backbone_of(model), batch.shared
    if shared is not None and shares_prompts(model, backbone):
        return shared_hidden(backbone, shared)[shared.spread.view(shared.rows, -1)[batch.rows, batch.columns]]
    positions = {} if batch.position_ids is None else {"position_ids": batch.position_ids}
    outputs = backbone(input_ids=batch.input_ids, use_cache=False, **positions)
    hidden: Tensor = outputs.last_hidden_state[batch.rows, batch.columns]
    return hidden


SHARDED_FORWARDS: dict[str, Callable[..., Any]] = {_STATISTICS: response_statistics, _HIDDEN: hidden_states}
"""What a sharded model carries under these names, so that FSDP gathers its weights around each."""
