"""Gradients as vectors: what is compared of them, and that a projection keeps inner products."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from exprl.errors import ConfigError
from exprl.models.layers import decoder_layers
from exprl.training import gradients
from exprl.training.gradients import Part, add_projected, collecting, inner, last_layers, norm
from tests.families import VOCABULARY, miniature


def backward(model: torch.nn.Module, weight: float, seed: int) -> None:
    ids = torch.randint(VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(seed))
    loss: Tensor = model(input_ids=ids).logits.square().mean() * weight
    loss.backward()


@pytest.mark.parametrize("text", ["auto", "whole", "projected", "last:3"])
def test_parts_are_read_as_they_are_shown(text: str) -> None:
    assert str(Part.parse(text)) == text


@pytest.mark.parametrize("text", ["", "last", "last:0", "last:-1", "last:²", "half"])
def test_other_parts_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--gradient: auto, whole, projected, or last:N"):
        Part.parse(text)


def test_auto_is_whole_for_small_models_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = miniature("llama")
    assert str(Part("auto").settled(model)) == "whole"
    monkeypatch.setattr(gradients, "WHOLE_UP_TO", 10)
    assert str(Part("auto").settled(model)) == "projected"
    with pytest.raises(ConfigError, match="last:99, but 2 decoder layers"):
        Part("last", 99).settled(model)


def test_a_projection_is_linear_and_keeps_inner_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """512 entries: a cosine is off by about 0.06, the mean over 100 seeds by 0.006."""
    one, noise = torch.randn(2, 5000, generator=torch.Generator().manual_seed(0))
    other = one + noise
    cosine = inner(one, other) / (norm(one) * norm(other))

    def projected(vector: Tensor, seed: int) -> Tensor:
        sketch = torch.zeros(512)
        add_projected(sketch, vector, seed)
        return sketch

    torch.testing.assert_close(projected(one, 3) + projected(noise, 3), projected(other, 3), atol=1e-4, rtol=0)
    found = []
    for seed in range(100):
        first, second = projected(one, seed), projected(other, seed)
        found.append(inner(first, second) / (norm(one) * norm(other)))
    assert sum(found) / len(found) == pytest.approx(cosine, abs=0.025)
    assert max(abs(value - cosine) for value in found) < 0.3
    assert len({round(value, 6) for value in found}) == 100, "each seed has a projection of its own"


def test_each_entry_of_a_row_has_a_place_of_its_own() -> None:
    sketch = torch.zeros(8)
    add_projected(sketch, torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0]), seed=1)
    assert sorted(sketch.abs().tolist()) == [0.0, 0.0, 0.0, 1.0, 2.0, 4.0, 8.0, 16.0]


def test_the_parts_are_of_one_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "PROJECTED", 2**14)
    model = miniature("llama")
    found = {}
    for part in (Part("whole"), Part("projected"), Part("last", 1)):
        vectors = []
        for number in range(2):
            with collecting(model, part, seed=0) as collected:
                backward(model, 1.0, number)
                backward(model, -0.5, number + 1)
                vectors.append(collected())
        found[str(part)] = vectors
        assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    whole, other = found["whole"]
    assert len(whole) == sum(parameter.numel() for parameter in model.parameters())
    cosine = inner(whole, other) / (norm(whole) * norm(other))
    sketched, second = found["projected"]
    assert len(sketched) == 2**14
    assert inner(sketched, second) / (norm(sketched) * norm(second)) == pytest.approx(cosine, abs=0.03)
    place = 0
    wanted = {id(parameter) for parameter in last_layers(model, 1)}
    own = []
    for parameter in model.parameters():
        if id(parameter) in wanted:
            own.append(whole[place : place + parameter.numel()])
        place += parameter.numel()
    assert len(wanted) == len(list(decoder_layers(model)[-1].parameters()))
    torch.testing.assert_close(found["last:1"][0], torch.cat(own))
