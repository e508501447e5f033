"""Log-probs of sampled tokens under a causal LM, without a logits tensor of the whole batch."""

from __future__ import annotations

from functools import partial

from torch import Tensor
from transformers import PreTrainedModel

from exprl.kernels import Backend, TokenStatistics, linear_logprob
from exprl.training.batching import MicroBatch

SHARDED_FORWARD = "exprl_response_statistics"
"""The name under which a sharded model carries `response_statistics`, so that FSDP gathers its weights around it."""


def response_logprobs(
    model: PreTrainedModel, batch: MicroBatch, *, temperature: float, backend: Backend = "auto", entropy: bool = False
) -> TokenStatistics:
    """Statistics [N] of the tempered distribution at each of the N response tokens.

    The backbone runs over the whole batch, the LM head over the response positions only.
    """
    compute = getattr(model, SHARDED_FORWARD, None) or partial(response_statistics, model)
    return TokenStatistics(*compute(batch, temperature, backend, entropy))


def response_statistics(
    model: PreTrainedModel, batch: MicroBatch, temperature: float, backend: Backend, entropy: bool
) -> tuple[Tensor | None, ...]:
    """See `response_logprobs`; a plain tuple, in which FSDP finds the tensors that carry gradient."""
    positions = {} if batch.position_ids is None else {"position_ids": batch.position_ids}
    outputs = model.base_model(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False, **positions
    )
    head = model.get_output_embeddings()
    return tuple(
        linear_logprob(
            outputs.last_hidden_state[batch.rows, batch.columns],
            head.weight,
            batch.ids,
            bias=getattr(head, "bias", None),
            temperature=temperature,
            softcap=getattr(model.config, "final_logit_softcapping", None),
            entropy=entropy,
            backend=backend,
        )
    )
