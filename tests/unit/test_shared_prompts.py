"""Each prompt of a micro-batch computed once: the same log-probs and gradients, where the model can."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from exprl.experiment import UpdateConfig
from exprl.models import shared_prompts as module
from exprl.models.base import LanguageModel
from exprl.models.logits import backbone_of
from exprl.models.shared_prompts import shared_hidden, shared_prompts, shares_prompts, sharing_attention
from exprl.training.batching import MicroBatch, TokenSequence, collate, prompts_together
from exprl.training.policy import response_logprobs
from exprl.training.update import checkpointing
from tests.families import VOCABULARY, miniature

CPU = torch.device("cpu")


def sequences(groups: list[tuple[int, list[int]]]) -> list[TokenSequence]:
    """Prompts of these lengths, each with responses of these lengths."""
    generator = torch.Generator().manual_seed(1)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, VOCABULARY, (length,), generator=generator).tolist())

    made = [(ids(prompt), [ids(length) for length in responses]) for prompt, responses in groups]
    return [TokenSequence(prompt_ids=prompt, response_ids=r) for prompt, responses in made for r in responses]


GROUPS = sequences([(12, [9, 3, 11]), (5, [8]), (14, [2, 10])])


def batch_of(chosen: list[TokenSequence], *, sharing: bool) -> MicroBatch:
    return collate(chosen, pad_token_id=0, device=CPU, sharing=sharing)


def gradients(model: PreTrainedModel, batch: MicroBatch, *, recompute: bool = False) -> tuple[Tensor, Tensor]:
    """Log-probs and the flat gradient of their weighted sum."""
    model.zero_grad()
    with checkpointing(model, on=recompute), sharing_attention():
        logp = response_logprobs(model, batch, temperature=0.7).logp
        (logp * torch.linspace(-1, 1, len(logp))).sum().backward()
    return logp.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gpt_neox", "granite", "qwen3_moe"])
def test_log_probs_and_gradients_are_those_of_padded_rows(family: str, recompute: bool, monkeypatch: Any) -> None:
    model = miniature(family)
    shared = batch_of(GROUPS, sharing=True)
    assert shares_prompts(model, backbone_of(model))
    expected, slope = gradients(model, batch_of(GROUPS, sharing=False))
    tokens = []
    monkeypatch.setattr(
        "exprl.training.policy.shared_hidden",
        lambda backbone, layout: (tokens.append(layout.input_ids.shape), shared_hidden(backbone, layout))[1],
    )
    logp, own = gradients(model, shared, recompute=recompute)
    assert tokens == [(1, 12 + 5 + 14 + sum(len(s.response_ids) for s in GROUPS))]
    assert expected.std() > 0.2, "the distributions must not be flat"
    torch.testing.assert_close(logp, expected, atol=2e-5, rtol=1e-5)
    assert slope.norm() > 0
    assert (own - slope).norm() <= 1e-5 * slope.norm()


@pytest.mark.parametrize("family", ["mistral", "gemma2", "bloom", "gpt_neo", "mamba"])
def test_windows_caps_positions_by_column_and_states_get_padded_rows(family: str) -> None:
    model = miniature(family)
    assert not shares_prompts(model, backbone_of(model))
    with torch.no_grad():
        own, expected = (
            response_logprobs(model, batch_of(GROUPS, sharing=sharing), temperature=0.7).logp
            for sharing in (True, False)
        )
    assert torch.equal(own, expected)


def test_attention_of_somebody_else_is_left_to_compute_padded_rows(monkeypatch: Any) -> None:
    model = miniature("llama")
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", lambda *a, **k: sdpa_attention_forward(*a, **k))
    assert not shares_prompts(model, backbone_of(model))


def test_attention_without_the_layout_fails_instead_of_mixing_rows() -> None:
    """As when activations are computed again outside of `sharing_attention`."""
    model = miniature("llama")
    with checkpointing(model, on=True):
        logp = response_logprobs(model, batch_of(GROUPS, sharing=True), temperature=1.0).logp
        with pytest.raises(RuntimeError, match="size"):
            logp.sum().backward()
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is sdpa_attention_forward


def test_the_layout_of_two_rows_by_hand() -> None:
    ids = torch.tensor([[7, 8, 1, 2, 0], [7, 8, 3, 4, 5], [9, 6, 0, 0, 0]])
    layout = shared_prompts(ids, [(7, 8), (7, 8), (9,)], [2, 3, 1])
    assert layout.input_ids.tolist() == [[7, 8, 1, 2, 3, 4, 5, 9, 6]]
    assert layout.position_ids.tolist() == [[0, 1, 2, 3, 2, 3, 4, 0, 1]]
    assert layout.spread.view(3, 5).tolist() == [[0, 1, 2, 3, 0], [0, 1, 4, 5, 6], [7, 8, 0, 0, 0]]
    assert layout.kept.tolist() == [0, 1, 2, 3, 7, 8, 9, 10, 11]
    assert layout.others.tolist() == [4, 5, 6, 12, 13, 14]
    assert layout.repeated == (module.Repeated(0, 2, 2, 0),)


def test_spreading_and_gathering_are_linear_maps_with_their_own_transposes() -> None:
    batch = batch_of(GROUPS, sharing=True)
    assert batch.shared is not None
    layout, width = batch.shared, batch.input_ids.shape[1]
    tokens = torch.randn(len(layout.kept), 2, 3, dtype=torch.float64, requires_grad=True)
    rows = torch.randn(layout.rows, width, 2, 3, dtype=torch.float64, requires_grad=True)
    real = torch.zeros(layout.rows * width, dtype=torch.bool).index_fill_(0, layout.kept, True)
    for one in layout.repeated:
        for row in range(one.first, one.last):
            real[row * width : row * width + one.length] = True
    weight = torch.randn_like(rows) * real.view(layout.rows, width, 1, 1)  # attention gives padding no gradient
    assert torch.autograd.gradcheck(lambda x: (module._Spread.apply(x, layout) * weight).sum(), tokens)
    assert torch.autograd.gradcheck(lambda x: module._Gathered.apply(x, layout), rows)


def test_only_what_saves_a_tenth_is_shared() -> None:
    assert batch_of(sequences([(2, [40, 40])]), sharing=True).shared is None
    assert batch_of(sequences([(20, [40, 40])]), sharing=True).shared is not None
    assert batch_of(sequences([(2, [40]), (2, [20])]), sharing=True).shared is not None, "padding is saved as well"
    assert batch_of(GROUPS, sharing=False).shared is None
    assert collate(GROUPS, pad_token_id=0, device=CPU, packed=True, sharing=True).shared is None


def test_rollouts_of_a_prompt_become_neighbours_and_keep_their_order() -> None:
    mixed = [GROUPS[0], GROUPS[4], GROUPS[1], GROUPS[3], GROUPS[5], GROUPS[2]]
    assert prompts_together(mixed) == [GROUPS[0], GROUPS[1], GROUPS[2], GROUPS[4], GROUPS[5], GROUPS[3]]


def test_packing_says_who_shares(tiny: LanguageModel) -> None:
    from exprl.objectives import Clipped
    from exprl.training.update import PolicyUpdate
    from exprl.training.world import World

    def shared(packing: Any, **others: Any) -> bool:
        options = UpdateConfig(packing=packing, **others)
        computing = PolicyUpdate(tiny, Clipped(), options, temperature=1.0, world=World(), device=CPU)
        return computing.collate(GROUPS).shared is not None

    assert shared("auto")
    assert not shared("auto", compile_layers=True), "compiled layers are given rows"
    assert not shared(packing=False)
    assert not shared(packing=True)
