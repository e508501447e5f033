"""Steps by merged weights are the model's own, for the models that are built so and for no others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from exprl.engines.prefill import Prefilled, prefill
from exprl.models import steps
from exprl.models.merged import is_usual
from exprl.models.steps import Merged, MergedSteps, ModelSteps, Steps, merged
from tests.families import miniature

PROMPTS = [[3, 14, 15, 9, 26], [5, 35], [8, 9, 7, 9, 3, 2, 3, 8]]


@torch.no_grad()
def both(model: PreTrainedModel) -> tuple[list[Steps], Prefilled]:
    own = merged(model, 3)
    assert own is not None
    read = [prefill(model, PROMPTS, 0) for _ in range(2)]
    return [ModelSteps(model, read[0].cache), MergedSteps(own, read[1].cache)], read[0]


def step(every: list[Steps], mask: Tensor, token: int) -> Tensor:
    """Advance all; their logits agree. Returns the longer mask."""
    positions, longer = mask.sum(-1, keepdim=True), pad(mask, (0, 1), value=True)
    tokens = (torch.arange(len(mask)) * 7 + token)[:, None] % 100
    with torch.no_grad():
        expected, own = (one.advance(tokens, positions, longer) for one in every)
    assert expected.std() > 0.1
    torch.testing.assert_close(own, expected, atol=1e-4, rtol=1e-4)
    return longer


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "granite"])
def test_logits_are_the_models_own_while_rows_leave_and_come(family: str) -> None:
    model = miniature(family)
    every, read = both(model)
    mask = read.mask
    for token in range(80):  # past the room that a buffer begins with
        mask = step(every, mask, token)
    for one in every:
        one.select(torch.tensor([2, 0]))
    mask = step(every, mask[[2, 0]], 3)
    arrived = prefill(model, [PROMPTS[1]], 0)
    for one in every:
        assert one.takes_rows
        one.place(torch.tensor([0]), arrived.cache)
    mask = mask.clone()
    mask[0], mask[0, -2:] = False, True
    mask = step(every, mask, 4)
    empty = int(mask.any(0).int().argmax())
    assert empty > 0
    for one in every:
        one.trim(empty)
    step(every, step(every, mask[:, empty:], 5), 6)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_rows_longer_than_all_so_far_are_placed(family: str) -> None:
    model = miniature(family)
    every, read = both(model)
    long = prefill(model, [[4] * 30], 0)
    for one in every:
        one.place(torch.tensor([1]), long.cache)
    mask = pad(read.mask, (30 - read.mask.shape[1], 0), value=False)
    mask[1] = True
    step(every, step(every, mask, 1), 2)


@pytest.mark.parametrize(
    "family", ["mistral", "gemma2", "phi3", "gpt2", "olmo2", "mamba", "qwen3_moe", "bloom", "cohere"]
)
def test_other_models_make_their_steps_themselves(family: str) -> None:
    assert merged(miniature(family), 4) is None


def test_what_the_modules_do_not_show_is_measured() -> None:
    granite = miniature("granite")
    for layer in granite.model.layers:
        layer.residual_multiplier = 0.5
    assert is_usual(granite)
    assert merged(granite, 4) is None


@pytest.mark.parametrize("multiplier", [1.0, 0.5])
def test_in_mixed_precision_rounding_is_no_difference_and_another_formula_is(multiplier: float) -> None:
    granite = miniature("granite")
    for layer in granite.model.layers:
        layer.residual_multiplier = multiplier
    with torch.autocast("cpu"):
        assert steps._measure(granite, Merged(granite, 2)) is (multiplier == 1.0)


def test_a_model_is_measured_once(monkeypatch: Any) -> None:
    model = miniature("llama")
    measured, plain = [], steps._measure
    monkeypatch.setattr(steps, "_measure", lambda *a: (measured.append(1), plain(*a))[1])
    assert merged(model, 4) is not None
    assert merged(model, 4) is not None
    assert measured == [1]


def test_hooks_other_precisions_and_other_layers_are_left_to_the_model() -> None:
    hooked = miniature("llama")
    hooked.model.layers[1].register_forward_hook(lambda *_: None)
    assert not is_usual(hooked)
    assert not is_usual(miniature("llama").double())
    replaced = miniature("llama")
    replaced.model.layers[0].mlp.up_proj = type("Other", (torch.nn.Linear,), {})(32, 64, bias=False)
    assert not is_usual(replaced)
    with torch.autocast("cpu"):
        assert not is_usual(miniature("llama"))


def test_weights_that_change_are_read_as_they_are() -> None:
    model = miniature("llama")
    every, read = both(model)
    mask = step(every, read.mask, 1)
    with torch.no_grad():
        model.lm_head.weight.mul_(2.0)
        model.model.layers[0].mlp.up_proj.weight.data = model.model.layers[0].mlp.up_proj.weight * 0.5
    step(every, mask, 2)


def test_merged_weights_are_made_anew_only_when_weights_change() -> None:
    model = miniature("llama")
    own = Merged(model, 2)
    first = own.current()
    assert own.current() is first
    with torch.no_grad():
        model.model.norm.weight.add_(1.0)
    assert own.current() is not first
