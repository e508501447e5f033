"""Log-probs of sampled tokens under a causal LM, without a logits tensor of the whole batch."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from exprl.kernels import linear_logprob
from exprl.training.batching import MicroBatch


@dataclass(frozen=True)
class TokenLogprobs:
    """Log-prob and entropy of the tempered distribution at each of N response tokens, both [N]."""

    logp: Tensor
    entropy: Tensor


def response_logprobs(model: PreTrainedModel, batch: MicroBatch, *, temperature: float) -> TokenLogprobs:
    """Run the backbone over the padded batch and the LM head over the N response positions only."""
    outputs = model.base_model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
    hidden = outputs.last_hidden_state[batch.rows, batch.columns]
    head = model.get_output_embeddings()
    statistics = linear_logprob(
        hidden,
        head.weight,
        batch.ids,
        temperature=temperature,
        bias=getattr(head, "bias", None),
        softcap=getattr(model.config, "final_logit_softcapping", None),
    )
    assert statistics.entropy is not None
    return TokenLogprobs(logp=statistics.logp, entropy=statistics.entropy)
