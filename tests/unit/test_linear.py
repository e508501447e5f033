"""A model whose linear layers go to oneDNN is the same model."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from exprl.kernels import onednn
from exprl.models.base import LanguageModel
from exprl.models.linear import FastLinear, packed, speed_up
from tests.conftest import character_tokenizer

pytestmark = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")),
    reason="this torch has no oneDNN",
)


@pytest.fixture
def taken(monkeypatch) -> list[int]:
    """As on a processor that gains; the list grows with each product that oneDNN computes."""
    calls: list[int] = []
    plain = onednn.product

    def product(left, right, bias=None):
        calls.append(1)
        return plain(left, right, bias)

    monkeypatch.setattr(onednn, "machine_gains", lambda: True)
    monkeypatch.setattr(onednn, "product", product)
    return calls


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=600, hidden_size=192, intermediate_size=768, num_hidden_layers=2, num_attention_heads=4
    )
    return LlamaForCausalLM(config)


IDS = torch.arange(24).view(2, 12)


def test_logits_and_gradients_are_the_models_own(taken, model):
    fast = copy.deepcopy(model)
    speed_up(fast)
    for one in (model, fast):
        one(input_ids=IDS, labels=IDS).loss.backward()
    taken_once = len(taken)
    with torch.no_grad():
        torch.testing.assert_close(fast(input_ids=IDS).logits, model(input_ids=IDS).logits, atol=1e-5, rtol=1e-5)
    # gate, up and down of two layers, and the head; what attention projects with is too small here
    assert taken_once == 7 * 3
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(fast.get_parameter(name).grad, parameter.grad, atol=1e-6, rtol=1e-4)


def test_weights_keep_their_names_and_the_head_stays_tied(taken, model):
    fast = copy.deepcopy(model)
    speed_up(fast)
    assert list(fast.state_dict()) == list(model.state_dict())
    assert type(copy.deepcopy(fast).lm_head) is FastLinear
    assert isinstance(fast.lm_head, torch.nn.Linear)


def test_subclasses_are_left_alone_and_machines_that_gain_nothing_keep_torchs_class(monkeypatch):
    class Other(torch.nn.Linear):
        pass

    layers = torch.nn.Sequential(Other(3, 3), torch.nn.Linear(3, 3))
    monkeypatch.setattr(onednn, "machine_gains", lambda: False)
    speed_up(layers)
    assert [type(layer) for layer in layers] == [Other, torch.nn.Linear]
    monkeypatch.setattr(onednn, "machine_gains", lambda: True)
    speed_up(layers)
    assert [type(layer) for layer in layers] == [Other, FastLinear]


def test_every_language_model_is_sped_up(taken, model):
    assert type(LanguageModel(model=model, tokenizer=character_tokenizer(), name="m").model.lm_head) is FastLinear


def test_packed_weights_are_read_inside_alone_and_not_when_they_have_changed(taken, model, monkeypatch):
    speed_up(model)
    read: list[bool] = []
    plain = onednn.product
    monkeypatch.setattr(
        onednn,
        "product",
        lambda left, right, bias=None: (read.append(right.layout is torch._mkldnn), plain(left, right, bias))[1],
    )
    with torch.no_grad():
        before = model(input_ids=IDS).logits
        assert not any(read)
        with packed(model, rows=2):
            read.clear()
            torch.testing.assert_close(model(input_ids=IDS).logits, before, atol=1e-5, rtol=1e-5)
            assert all(read)
            model.lm_head.weight.mul_(2.0)
            read.clear()
            torch.testing.assert_close(model(input_ids=IDS).logits, 2 * before, atol=1e-5, rtol=1e-5)
            assert read == [True] * 6 + [False]
        read.clear()
        model(input_ids=IDS)
        assert not any(read)


def test_packed_weights_take_no_part_in_training(taken, model):
    speed_up(model)
    with packed(model, rows=2):
        model(input_ids=IDS, labels=IDS).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
