"""Families whose logits are not head(hidden), in vLLM: it agrees with the model's own forward pass, or is refused.

A start costs seconds, so a handful stands for all; `benchmarks/model_walk.py --engine vllm` walks the rest.
"""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from exprl.engines.vllm import VLLMEngine
from exprl.engines.vllm_weights import as_stored
from exprl.errors import ModelError
from exprl.models.base import LanguageModel
from exprl.training.start_check import check_agreement
from tests.conftest import character_tokenizer
from tests.families import examine, miniature
from tests.vllm.helpers import engine_of


def small_engine(policy: LanguageModel) -> VLLMEngine:
    return engine_of(policy, max_model_len=128)


@pytest.mark.slow
@pytest.mark.parametrize(
    "family",
    [
        "granite",
        "gemma2",  # no head beside the embedding it is tied to; attention scores are capped
        "llama",  # a head beside it
        "olmo2",  # which vLLM runs by transformers' own code, changing its classes
        "qwen3_moe",  # experts that vLLM pads and packs on a CPU, and transformers keeps in one tensor
    ],
)
def test_a_family_is_computed_rightly(family, others_closed):
    outcome = examine(family, small_engine, wide=True)
    assert outcome.kind == "agreed", outcome


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gemma2", "qwen3_moe"])
def test_weights_after_an_update_are_computed_too(family, others_closed):
    policy = LanguageModel(model=miniature(family, wide=True), tokenizer=character_tokenizer(), name=family)
    engine = small_engine(policy)
    check_agreement(policy, engine, packed=False)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    engine.sync(1)
    assert max(check_agreement(policy, engine, packed=False).gaps.values()) < 1e-4


def test_weights_go_as_a_checkpoint_stores_them(tmp_path):
    model = miniature("qwen3_moe", wide=True)
    sent = dict(as_stored(model, model.state_dict().items()))
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert any(".experts.3." in name for name in stored)
    assert sent.keys() - stored.keys() <= {*(model.all_tied_weights_keys or ())}
    for name, weight in stored.items():
        torch.testing.assert_close(sent[name], weight, rtol=0, atol=0)


def test_the_start_check_on_vllm(engine, policy):
    found = check_agreement(policy, engine, packed=False)
    assert "engine vllm" in found.line
    assert max(found.gaps.values()) < 1e-3


def test_other_weights_in_vllm_are_refused_with_both_numbers(engine, policy):
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    with pytest.raises(ModelError, match=r"engine vllm and the model's own forward pass disagree.*engine vllm -"):
        check_agreement(policy, engine, packed=False)
