"""Attention that computes all a family asks for: transformers' "sdpa" drops a cap on attention scores, silently."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exprl.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_CAP = "attn_logit_softcapping"
_CAPLESS = "sdpa"


def complete_attention(model: PreTrainedModel, chosen: str | None = None) -> None:
    """Give a model whose attention scores are capped (Gemma 2, VaultGemma) an attention that caps them.

    Args:
        model: just loaded.
        chosen: the attention somebody asked for by name; None: nobody did.

    Raises:
        ModelError: one was chosen that would leave the cap out.
    """
    cap = getattr(model.config.get_text_config(), _CAP, None)
    if cap is None or model.config._attn_implementation != _CAPLESS:
        return
    if chosen is not None:
        raise ModelError(
            f"attn_implementation={chosen}: this model caps its attention scores ({_CAP}={cap:g}), which {chosen} "
            "leaves out, so it would be another model. Leave it unset or use eager or flash_attention_2."
        )
    model.set_attn_implementation("eager")
