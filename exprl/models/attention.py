"""What a model's attention computes, as its config says."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from exprl.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_CAP = "attn_logit_softcapping"
_CAPLESS = "sdpa"


def complete_attention(model: PreTrainedModel, chosen: str | None = None) -> None:
    """Give a model whose attention scores are capped (Gemma 2, VaultGemma) an attention that caps them.

    transformers' "sdpa" drops such a cap, silently.

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


def attends_fully(model: PreTrainedModel, implementations: Collection[str]) -> bool:
    """Whether each token attends to all before it in every layer, as far as the config says, by one of these."""
    config: Any = model.config.get_text_config(decoder=True)
    kinds = set(getattr(config, "layer_types", None) or getattr(config, "attention_layers", None) or ())
    limits = [] if kinds else [name for name in _LIMITS if getattr(config, name, None) is not None]
    full = not limits and kinds <= {"full_attention", "attention", "global"}
    return full and model.config._attn_implementation in implementations


_LIMITS = ("sliding_window", "attention_window", "attention_window_size", "attention_chunk_size", "window_size")
