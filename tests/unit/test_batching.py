"""Packed and padded micro-batches give the log-probs of each sequence alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, MistralConfig, Qwen3Config

from exprl.errors import ConfigError
from exprl.experiment import UpdateConfig
from exprl.models.base import LanguageModel
from exprl.training.batching import TokenSequence, collate
from exprl.training.policy import response_logprobs
from exprl.training.update import wants_packing

CPU = torch.device("cpu")
SIZE: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256, "pad_token_id": 0,
}  # fmt: skip
CONFIGS = {
    "qwen3": Qwen3Config(**SIZE),
    "mistral with a sliding window": MistralConfig(**SIZE, sliding_window=8),
    "gemma2 with soft caps": Gemma2Config(**SIZE, sliding_window=8, query_pre_attn_scalar=8),
}


def model_of(config: Any, attention: str) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
        except ValueError as error:  # transformers 5.24 has no sdpa for Gemma 2
            pytest.skip(str(error))
        for parameter in model.parameters():
            parameter.data = torch.randn_like(parameter) * 0.4
    return model


def sequences() -> list[TokenSequence]:
    generator = torch.Generator().manual_seed(1)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(1, 50, (length,), generator=generator).tolist())

    lengths = [(3, 20), (5, 1), (1, 33), (7, 9)]
    return [
        TokenSequence(
            prompt_ids=ids(prompt),
            response_ids=ids(response),
            advantages=tuple(range(response)),
            sampler_logprobs=(-1.0,) * response,
        )
        for prompt, response in lengths
    ]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("packed", [True, False])
def test_neighbours_change_nothing(name: str, attention: str, packed: bool) -> None:
    model = model_of(CONFIGS[name], attention)

    def logprobs(chosen: list[TokenSequence], packed: bool) -> torch.Tensor:
        batch = collate(chosen, pad_token_id=0, device=CPU, packed=packed)
        with torch.no_grad():
            return response_logprobs(model, batch, temperature=0.7).logp

    alone = torch.cat([logprobs([sequence], packed=False) for sequence in sequences()])
    together = logprobs(sequences(), packed)
    assert together.shape == (63,)
    assert together.std() > 0.3, "the distributions must not be flat"
    assert torch.allclose(together, alone, atol=2e-5)


def test_packed_tokens_keep_their_advantages_in_order() -> None:
    batch = collate(sequences(), pad_token_id=0, device=CPU, packed=True)
    assert batch.input_ids.shape == (1, sum(s.total_tokens for s in sequences()))
    assert batch.advantages.tolist() == [a for s in sequences() for a in s.advantages]
    assert batch.input_ids[0, batch.columns + 1].tolist() == batch.ids.tolist()


def test_auto_packs_only_where_attention_skips_what_lies_between(tiny: LanguageModel) -> None:
    assert not wants_packing(tiny.model, UpdateConfig())
    assert wants_packing(tiny.model, UpdateConfig(packing=True))
    assert not wants_packing(tiny.model, UpdateConfig(packing=False))


def test_models_with_recurrent_layers_are_not_packed(tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny.model.config, "layer_types", ["linear_attention", "full_attention"], raising=False)
    with pytest.raises(ConfigError, match=r"update\.packing.*linear_attention"):
        wants_packing(tiny.model, UpdateConfig(packing=True))
