"""Log-probs of sampled tokens under a causal LM, without a logits tensor of the whole batch."""

from __future__ import annotations

from transformers import PreTrainedModel

from exprl.kernels import Backend, TokenStatistics, linear_logprob
from exprl.training.batching import MicroBatch


def response_logprobs(
    model: PreTrainedModel, batch: MicroBatch, *, temperature: float, backend: Backend = "auto", entropy: bool = False
) -> TokenStatistics:
    """Statistics [N] of the tempered distribution at each of the N response tokens.

    The backbone runs over the padded batch, the LM head over the response positions only.
    """
    outputs = model.base_model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
    head = model.get_output_embeddings()
    return linear_logprob(
        outputs.last_hidden_state[batch.rows, batch.columns],
        head.weight,
        batch.ids,
        bias=getattr(head, "bias", None),
        temperature=temperature,
        softcap=getattr(model.config, "final_logit_softcapping", None),
        entropy=entropy,
        backend=backend,
    )
