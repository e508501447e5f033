"""The canary: a fixed text whose log-probs must be the same in vLLM and in the trainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from exprl.models.logits import backbone_of, token_statistics

if TYPE_CHECKING:
    from exprl.models.base import LanguageModel

CANARY_TOKENS = 64
CANARY_TEXT = (
    "What is the sum of 12 and 34? First add the tens: 10 + 30 = 40. Then add the ones: 2 + 4 = 6. Together these are "
    "40 + 6 = 46, so the answer is 46. The same holds for 21 and 43, whose sum is 64, and for 120 and 340."
)
TOLERANCES = {"float32": 1e-3, "bfloat16": 0.15, "float16": 0.05}
"""Mean absolute difference of log-probs that two implementations of one model may have, by the engine's dtype."""


def allowed_gap(language_model: LanguageModel, engine: str | None = None, *, temperature: float = 1.0) -> float:
    """The tolerance for a model and an engine that computes in the dtype `engine`; None: in the model's.

    A temperature below 1 magnifies every difference.
    """
    dtype = str(language_model.compute_dtype or language_model.model.dtype).removeprefix("torch.")
    tolerance = max(TOLERANCES.get(name, TOLERANCES["float32"]) for name in (dtype, engine or dtype))
    return tolerance * max(1.0, 1 / temperature)


def canary_of(language_model: LanguageModel, longest: int) -> tuple[int, ...]:
    """The first tokens of the fixed text, at most `CANARY_TOKENS` and at most `longest`."""
    ids = language_model.tokenizer(CANARY_TEXT, add_special_tokens=False)["input_ids"]
    return tuple(ids[: min(CANARY_TOKENS, longest)])


def trainer_logprobs(language_model: LanguageModel, token_ids: Sequence[int]) -> Tensor:
    """Log-probs [T - 1] of a text's tokens after the first under the trainer's model, at temperature 1, on the CPU."""
    model = language_model.model
    ids = torch.tensor([list(token_ids)], device=model.device)
    with language_model.inference():
        hidden = backbone_of(model)(input_ids=ids, use_cache=False).last_hidden_state[0, :-1]
        return token_statistics(model, hidden, ids[0, 1:]).logp.cpu()
