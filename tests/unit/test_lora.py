"""Adapters: what attaching, switching off, reading and merging do to a real model, and who judges with what."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from exprl.build import Build
from exprl.checks import packages
from exprl.errors import ConfigError
from exprl.experiment import LoRAConfig, load_experiment
from exprl.judges.backends.base import JudgeModel, Query
from exprl.judges.backends.transformers import TransformersBackend
from exprl.judges.prompting import JudgePrompt, Piece
from exprl.models import lora
from exprl.models.base import LanguageModel
from exprl.models.lora import adapter_config, adapter_tensors, attach, has_adapter, merged_weights, without_adapter
from exprl.resources import Resources
from exprl.terminal.progress import no_progress
from tests.conftest import character_tokenizer, skip_without_adapters, tiny_llama
from tests.families import miniature

skip_without_adapters()

IDS = torch.arange(4, 28).reshape(2, 12)


def adapted(seed: int = 0, **options) -> LanguageModel:
    """The tiny Llama with an adapter that changes nothing yet."""
    tokenizer = character_tokenizer()
    model = tiny_llama(len(tokenizer))
    attach(model, **vars(LoRAConfig(**{"rank": 4, "alpha": 8, **options})), seed=seed)
    return LanguageModel(model=model, tokenizer=tokenizer, name="adapted")


def move(model: nn.Module, seed: int = 0) -> None:
    """A change of the adapter that every logit shows."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(IDS).logits


def flags(model: nn.Module) -> tuple[dict[str, bool], dict[str, bool]]:
    gradients = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    return gradients, {name: module.training for name, module in model.named_modules()}


@pytest.fixture
def base(tiny) -> Tensor:
    return logits(tiny.model)


# ------------------------------------------------------------------ attaching


def test_an_adapter_first_changes_nothing_and_alone_trains(tiny, base):
    before = torch.random.get_rng_state()
    policy = adapted()
    assert torch.equal(torch.random.get_rng_state(), before)
    model = policy.model
    assert torch.equal(logits(model), base)
    assert type(model) is type(tiny.model)
    assert not any(module.training for module in model.modules())
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if ".lora_" in name}
    layers = {name.partition(".lora_")[0] for name in trained}
    assert layers == {n for n, m in tiny.model.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"}
    model(IDS).logits.sum().backward()
    assert all((parameter.grad is not None) == parameter.requires_grad for parameter in model.parameters())


def test_first_weights_depend_on_the_seed():
    first, again, other = (adapter_tensors(adapted(seed).model) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_the_adapter_is_float32_on_a_bfloat16_model():
    model = tiny_llama(102).to(torch.bfloat16)
    attach(model, **vars(LoRAConfig(rank=2)))
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if ".lora_" in name else torch.bfloat16)
    assert logits(model).dtype == torch.bfloat16
    assert {weight.dtype for _, weight in merged_weights(model)} == {torch.bfloat16}


def test_alpha_over_rank_is_the_scale(base):
    small, large = adapted(alpha=4).model, adapted(alpha=8).model
    name = "model.layers.0.mlp.up_proj.weight"
    for model in (small, large):
        move(model)
    unchanged = tiny_llama(102).state_dict()[name]
    parts = [dict(merged_weights(model))[name] - unchanged for model in (small, large)]
    torch.testing.assert_close(2 * parts[0], parts[1])
    tensors = adapter_tensors(large)
    a, b = (tensors[f"base_model.model.model.layers.0.mlp.up_proj.lora_{x}.weight"] for x in "AB")
    torch.testing.assert_close(parts[1], 8 / 4 * b @ a, atol=1e-6, rtol=1e-5)


def test_named_layers_alone_are_adapted():
    model = adapted(target_modules=("q_proj", "layers.1.mlp.down_proj")).model
    layers = {name.partition(".lora_")[0].removeprefix("base_model.model.") for name in adapter_tensors(model)}
    assert layers == {*(f"model.layers.{i}.self_attn.q_proj" for i in (0, 1)), "model.layers.1.mlp.down_proj"}


@pytest.mark.parametrize(
    ("family", "left"),
    [("mamba", "in_proj,x_proj"), ("nemotron_h", "down_proj,in_proj,k_proj,o_proj,q_proj,up_proj,v_proj")],
)
def test_what_peft_adapts_in_no_model_of_a_family_is_named_with_what_is_left(family, left):
    with pytest.raises(ConfigError, match=r"lora.target_modules: peft cannot adapt all-linear.*'out_proj'") as refused:
        attach(miniature(family), **vars(LoRAConfig(rank=2)))
    assert f"lora.target_modules=[{left}], or set lora.rank=0" in str(refused.value)
    model = miniature(family)
    attach(model, **vars(LoRAConfig(rank=2, target_modules=tuple(left.split(",")))))
    model(IDS).logits.logsumexp(-1).sum().backward()
    assert all(weight.grad.abs().sum() > 0 for name, weight in model.named_parameters() if "lora_B" in name)


@pytest.mark.parametrize("family", ["mamba", "jamba"])
def test_a_layer_whose_weight_the_model_reads_itself_has_no_adapter(family):
    """One there would be passed by, and learn nothing."""
    with pytest.raises(ConfigError, match=r"'dt_proj' names no linear layer.*Choose among .*x_proj"):
        attach(miniature(family), **vars(LoRAConfig(rank=2, target_modules=("dt_proj",))))


@pytest.mark.parametrize("target", ["q_prj", "lm_head", "embed_tokens", "proj"])
def test_a_target_that_is_no_layer(target):
    with pytest.raises(ConfigError, match=rf"lora.target_modules: '{target}' names no linear layer.*q_proj"):
        adapted(target_modules=("v_proj", target))


def test_without_peft(monkeypatch):
    monkeypatch.setattr(packages, "found_version", lambda package: None)
    with pytest.raises(ConfigError, match=r"lora.rank: .*pip install 'exprl\[lora\]'"):
        adapted()


def test_a_peft_that_does_not_fit(monkeypatch):
    monkeypatch.setattr(lora, "MIN_PEFT_VERSION", "99.0")
    with pytest.raises(ConfigError, match=r"lora.rank: transformers .* needs peft 99\.0 or newer, but .*exprl\[lora\]"):
        adapted()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lora.rank=-1", r"lora\.rank: must be in \[0, "),
        ("lora.alpha=0", r"lora\.alpha: must be in \[1, "),
        ("lora.target_modules=[]", r"lora\.target_modules: name at least one"),
        ("lora.target_modules=every", "lora.target_modules: expected"),
        ("lora.dropout=0.1", "lora.dropout: unknown option"),
    ],
)
def test_wrong_options(override, message):
    with pytest.raises(ConfigError, match=message):
        load_experiment(None, ["model.path=x", override])


# ------------------------------------------------------------------ without the adapter


def test_without_its_adapter_a_model_is_its_base(base):
    model = adapted().model
    move(model)
    moved = logits(model)
    assert (moved - base).abs().max() > 0.1
    with without_adapter(model):
        assert torch.equal(logits(model), base)
        with without_adapter(model):
            assert torch.equal(logits(model), base)
        assert torch.equal(logits(model), base), "the inner end is not the outer one's"
        assert {n: w.tolist() for n, w in merged_weights(model)} == {
            n: w.tolist() for n, w in tiny_llama(102).state_dict().items()
        }
    assert torch.equal(logits(model), moved)


def test_flags_are_as_they_were_even_after_an_error():
    model = adapted().model.train()
    model.model.layers[0].eval()
    adapter = [parameter for name, parameter in model.named_parameters() if ".lora_A" in name]
    adapter[0].requires_grad_(False)
    before = flags(model)
    policy = LanguageModel(model=model, tokenizer=character_tokenizer(), name="", adapter=False)
    inside = []

    def fail() -> None:
        with without_adapter(model):
            inside.append(flags(model))
            with policy.inference():
                assert not torch.is_grad_enabled()
                assert not any(module.training for module in model.modules())
                raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert inside == [before], "flags stay during it too: FSDP would take them over"
    assert flags(model) == before
    assert torch.is_grad_enabled()
    move(model)
    changed = logits(model)
    with without_adapter(model):
        assert not torch.equal(logits(model), changed)


def test_a_model_that_never_had_an_adapter(tiny, base):
    assert not has_adapter(tiny.model)
    with without_adapter(tiny.model), replace(tiny, adapter=False).inference():
        assert torch.equal(logits(tiny.model), base)
    assert adapter_tensors(tiny.model) == {}
    own, given = tiny.model.state_dict(), dict(merged_weights(tiny.model))
    assert list(own) == list(given)
    assert all(own[name].data_ptr() == given[name].data_ptr() for name in own)


# ------------------------------------------------------------------ merging


def test_merged_weights_compute_what_the_adapter_computes():
    model = adapted().model
    move(model)
    before = copy.deepcopy(model.state_dict())
    merged = dict(merged_weights(model))
    plain = tiny_llama(102, seed=9)
    plain.load_state_dict(merged)
    torch.testing.assert_close(logits(plain), logits(model), atol=1e-4, rtol=1e-5)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_biases_and_transposed_layers_are_merged():
    def gpt2() -> GPT2LMHeadModel:
        config = GPT2Config(vocab_size=102, n_embd=16, n_layer=1, n_head=2, n_positions=32, bos_token_id=0)
        torch.manual_seed(0)
        return GPT2LMHeadModel(config).eval()

    model = gpt2()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    attach(model, **vars(LoRAConfig(rank=2, target_modules=("c_attn", "mlp.c_proj"))))
    move(model)
    plain = gpt2()
    plain.load_state_dict(dict(merged_weights(model)))
    torch.testing.assert_close(logits(plain), logits(model), atol=1e-5, rtol=1e-5)
    with without_adapter(model):
        assert (logits(plain) - logits(model)).abs().max() > 1e-3


def test_tied_weights_stay_under_both_names(smollm2):
    model = copy.deepcopy(smollm2.model)
    attach(model, **vars(LoRAConfig(rank=2)))
    merged = dict(merged_weights(model))
    assert list(merged) == list(smollm2.model.state_dict())
    assert merged["lm_head.weight"].data_ptr() == merged["model.embed_tokens.weight"].data_ptr()


def test_the_config_is_what_peft_reads():
    from peft import LoraConfig

    config = adapter_config(adapted(target_modules=("v_proj", "q_proj")).model)
    assert json.loads(json.dumps(config)) == config
    read = LoraConfig.from_peft_type(**config)
    assert (read.r, read.lora_alpha, read.lora_dropout, read.target_modules) == (4, 8, 0.0, {"q_proj", "v_proj"})


# ------------------------------------------------------------------ a run's policy and reference


def chain_build(*overrides: str) -> Build:
    return Build(
        load_experiment(None, ["model.name=chain", "model.max_steps=2", "model.target_accuracy=0.0", *overrides])
    )


def test_a_build_attaches_the_adapter_by_the_runs_seed():
    before = torch.random.get_rng_state()
    first, again, other = (
        adapter_tensors(chain_build("lora.rank=2", f"seed={seed}").policy.model) for seed in (0, 0, 1)
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert not has_adapter(chain_build().policy.model)


def test_the_initial_policy_is_the_policy_without_its_adapter():
    build = chain_build("lora.rank=2")
    policy, initial = build.policy, build.initial_policy
    assert initial.model is policy.model
    first = logits(policy.model)
    move(policy.model)
    with initial.inference():
        assert torch.equal(logits(initial.model), first)
    with policy.inference():
        assert not torch.equal(logits(policy.model), first)
    full = chain_build()
    assert full.initial_policy.model is not full.policy.model
    assert not any(parameter.requires_grad for parameter in full.initial_policy.model.parameters())


@pytest.mark.parametrize("text", [False, True])
def test_a_frozen_judge_judges_with_the_base_and_a_live_one_with_the_policy(text):
    policy = adapted()
    policy.model.generation_config.eos_token_id = None
    resources = Resources(policy=policy, initial_policy=lambda: replace(policy, name="base", adapter=False))
    prompts = [JudgePrompt((Piece(f"How good is {number}+{number}?"),)) for number in (1, 2)]
    queries = [
        Query(prompt=prompt, max_new_tokens=6) if text else Query(prompt=prompt, labels=("1", "2", "3"))
        for prompt in prompts
    ]
    config = TransformersBackend.Config()

    def replies(weights: str) -> list:
        backend = TransformersBackend.open(config, JudgeModel(judge="j", weights=weights), resources)
        return [reply.text if text else reply.probabilities for reply in backend.run(queries, no_progress)]

    frozen, live = replies("frozen"), replies("live")
    assert frozen == live, "the adapter changes nothing yet"
    move(policy.model)
    assert replies("frozen") == frozen
    assert replies("live") != live
