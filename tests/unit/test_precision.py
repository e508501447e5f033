"""Weights that train are float32 unless less is asked for by name: what an update of 1e-6 leaves of itself."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from exprl.build import Build
from exprl.errors import ModelError
from exprl.experiment import load_experiment
from exprl.training.batching import TokenSequence, collate
from exprl.training.optimizer import build_optimizer
from exprl.training.policy import response_logprobs
from tests.conftest import character_tokenizer, tiny_llama


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama stored in bfloat16."""
    folder = tmp_path_factory.mktemp("stored")
    tokenizer = character_tokenizer()
    tiny_llama(len(tokenizer), scale=0.05).bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def built(folder: Path, *overrides: str, training: bool = True) -> Build:
    return Build(load_experiment(None, [f"model.path={folder}", *overrides]), training=training)


def share_changed(build: Build) -> float:
    """The share of the policy's weights that one AdamW step at the default learning rate changes."""
    model = build.policy.model
    optimizer, _ = build_optimizer(model, build.experiment.optimizer)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    sequences = [TokenSequence(prompt_ids=(7, 8, 9), response_ids=tuple(range(3, 102)))]
    batch = collate(sequences, pad_token_id=0, device=torch.device("cpu"))
    (-response_logprobs(model, batch, temperature=1.0).logp.mean()).backward()
    optimizer.step()
    changed = sum(int((new != old).sum()) for new, old in zip(model.parameters(), before, strict=True))
    return changed / sum(parameter.numel() for parameter in before)


@pytest.mark.parametrize("overrides", [(), ("trainer.precision=bf16-mixed",), ("model.dtype=float32",)])
def test_by_default_updates_arrive(stored, overrides, caplog):
    build = built(stored, *overrides)
    with caplog.at_level(logging.WARNING, logger="exprl"):
        assert {weight.dtype for weight in build.policy.model.parameters()} == {torch.float32}
    assert not caplog.records
    assert share_changed(build) > 0.9


def test_less_is_given_by_name_with_a_warning(stored, caplog):
    build = built(stored, "model.dtype=bfloat16")
    with caplog.at_level(logging.WARNING, logger="exprl"):
        assert {weight.dtype for weight in build.policy.model.parameters()} == {torch.bfloat16}
    assert "model.dtype=bfloat16" in caplog.text
    assert share_changed(build) < 0.1


def test_mixed_precision_keeps_float32_weights_whatever_they_are_loaded_in(stored):
    build = built(stored, "model.dtype=bfloat16", "trainer.precision=bf16-mixed")
    assert build.policy.model.dtype == torch.float32


def test_what_does_not_train_stays_as_stored(stored):
    assert built(stored, training=False).policy.model.dtype == torch.bfloat16
    assert built(stored).initial_policy.model.dtype == torch.float32, (
        "the frozen initial policy is the policy's own copy"
    )


def test_the_base_of_an_adapter_stays_as_stored(stored):
    pytest.importorskip("peft")
    dtypes = {name: weight.dtype for name, weight in built(stored, "lora.rank=4").policy.model.named_parameters()}
    assert {dtype for name, dtype in dtypes.items() if ".lora_" in name} == {torch.float32}
    assert {dtype for name, dtype in dtypes.items() if ".lora_" not in name} == {torch.bfloat16}


def test_a_tokenizer_larger_than_its_model_is_refused_before_any_work(tmp_path):
    tokenizer = character_tokenizer()
    tiny_llama(len(tokenizer) - 2).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=rf"tokenizer has {len(tokenizer)} tokens, but the model embeds 100"):
        built(tmp_path).policy  # noqa: B018


def test_quantised_weights_are_refused_before_any_work(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # as transformers marks what bitsandbytes, FP8 and others left packed: it refuses to cast them
    monkeypatch.setattr(LlamaForCausalLM, "is_quantized", True, raising=False)
    with pytest.raises(ModelError, match="quantised and cannot train"):
        built(stored).policy  # noqa: B018
    assert built(stored, training=False).policy.model.dtype == torch.bfloat16, "to evaluate one is fine"
