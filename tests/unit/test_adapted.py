"""A model.path that is an adapter: the policy is the model with it merged in, whatever comes on top."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from exprl.build import Build
from exprl.commands.export import write_adapter
from exprl.errors import ModelError
from exprl.experiment import LoRAConfig, load_experiment
from exprl.models import PretrainedModel
from exprl.models.base import LanguageModel
from exprl.models.lora import attach, has_adapter
from tests.conftest import character_tokenizer, skip_without_adapters, tiny_llama

IDS = torch.arange(5, 25)[None]


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(IDS).logits


def load(folder: Path, **options: str) -> LanguageModel:
    return PretrainedModel(path=str(folder), **options).load()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with its tokenizer, in bfloat16."""
    skip_without_adapters()
    folder = tmp_path_factory.mktemp("base")
    tokenizer = character_tokenizer()
    tiny_llama(len(tokenizer)).bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapted(base: Path) -> LanguageModel:
    """The base in float32 with an adapter that changes it little, as trained ones do."""
    policy = load(base, dtype="float32")
    attach(policy.model, **vars(LoRAConfig(rank=4)))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in policy.model.named_parameters():
        if ".lora_B." in name:
            parameter.data = 1e-3 * torch.randn(parameter.shape, generator=generator)
    return policy


@pytest.fixture(scope="module")
def adapter(adapted: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It as `exprl export --adapter` writes it, without a tokenizer."""
    folder = tmp_path_factory.mktemp("adapter")
    write_adapter(adapted.model, folder)
    return folder


def test_the_policy_is_the_model_with_its_adapter_and_trains_whole(adapter: Path, adapted: LanguageModel) -> None:
    policy = load(adapter)
    torch.testing.assert_close(logits(policy.model), logits(adapted.model), atol=1e-5, rtol=1e-5)
    assert not has_adapter(policy.model)
    assert all(parameter.requires_grad for parameter in policy.model.parameters())
    assert {parameter.dtype for parameter in policy.model.parameters()} == {torch.float32}, (
        "bfloat16 would round it away"
    )
    assert policy.tokenizer.get_vocab() == adapted.tokenizer.get_vocab(), "the base's, where it has none"
    assert load(adapter, dtype="bfloat16").model.dtype == torch.bfloat16


@pytest.mark.parametrize("rank", [0, 4])
def test_the_frozen_initial_policy_has_the_adapter_too(adapter: Path, adapted: LanguageModel, rank: int) -> None:
    build = Build(load_experiment(None, [f"model.path={adapter}", f"lora.rank={rank}"]), training=True)
    with build.initial_policy.inference():
        frozen = logits(build.initial_policy.model)
    torch.testing.assert_close(frozen, logits(adapted.model), atol=1e-5, rtol=1e-5)
    assert any(parameter.requires_grad for parameter in build.policy.model.parameters())


def test_an_adapter_on_an_adapted_model_names_it(adapter: Path, tmp_path: Path) -> None:
    policy = load(adapter)
    attach(policy.model, **vars(LoRAConfig(rank=4)))
    for name, parameter in policy.model.named_parameters():
        if ".lora_B." in name:
            nn.init.constant_(parameter, 1e-3)
    write_adapter(policy.model, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == str(adapter)
    torch.testing.assert_close(logits(load(tmp_path).model), logits(policy.model), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "names no base_model_name_or_path"),
        ('{"base_model_name_or_path": null}', "names no base_model_name_or_path"),
        ('{"base_model_name_or_path": "ITSELF"}', "names no base_model_name_or_path"),
        ("[]", "cannot read"),
        ("{", "cannot read"),
        ('{"base_model_name_or_path": "BASE", "peft_type": "NONSENSE"}', "cannot merge the adapter"),
        ('{"base_model_name_or_path": "/nowhere"}', "cannot load the model"),
    ],
)
def test_a_broken_adapter_is_one_line(base: Path, adapter: Path, tmp_path: Path, content: str, message: str) -> None:
    folder = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    (folder / "adapter_config.json").write_text(content.replace("BASE", str(base)).replace("ITSELF", str(folder)))
    for file in base.glob("tokenizer*"):
        shutil.copy(file, folder)
    with pytest.raises(ModelError, match=message):
        load(folder)
