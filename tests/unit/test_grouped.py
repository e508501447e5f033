"""Decoding with shared keys and values attends as transformers' own attention does."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from exprl.models import grouped
from exprl.models.grouped import grouped_attention


def tensors(heads: int, groups: int, queries: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, heads, queries, 8), (3, groups, 11, 8), (3, groups, 11, 8))
    return [torch.randn(shape, generator=generator) for shape in shapes]


def mask(queries: int) -> torch.Tensor:
    allowed = torch.ones(3, 1, queries, 11, dtype=torch.bool)
    allowed[1, ..., :4] = False
    return allowed


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("heads", "groups", "queries", "own"), [(6, 2, 1, 1), (6, 1, 1, 1), (6, 6, 1, 0), (6, 2, 3, 0)]
)
def test_heads_of_a_group_are_queries_of_one_head(monkeypatch, heads, groups, queries, own, masked):
    query, key, value = tensors(heads, groups, queries)
    module = SimpleNamespace(num_key_value_groups=heads // groups, is_causal=True)
    arguments = (module, query, key, value, mask(queries) if masked else None)
    expected, _ = sdpa_attention_forward(*arguments, scaling=0.3)
    calls = []
    plain = grouped.scaled_dot_product_attention
    monkeypatch.setattr(grouped, "scaled_dot_product_attention", lambda *a, **k: (calls.append(1), plain(*a, **k))[1])
    with grouped_attention():
        attended, _ = ALL_ATTENTION_FUNCTIONS["sdpa"](*arguments, scaling=0.3)
    torch.testing.assert_close(attended, expected, atol=1e-6, rtol=1e-5)
    assert attended.shape == (3, queries, heads, 8)
    assert len(calls) == own


def test_scores_with_a_bias_are_left_to_transformers(monkeypatch):
    query, key, value = tensors(6, 2, 1)
    bias = torch.randn(1, 6, 1, 11, generator=torch.Generator().manual_seed(1))
    module = SimpleNamespace(num_key_value_groups=3, is_causal=True)
    with grouped_attention():
        attended, _ = ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, None, position_bias=bias)
    expected, _ = sdpa_attention_forward(module, query, key, value, None, position_bias=bias)
    torch.testing.assert_close(attended, expected)


def test_transformers_has_its_own_again_afterwards_and_somebody_elses_is_kept():
    with grouped_attention(), grouped_attention():
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is not sdpa_attention_forward
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is sdpa_attention_forward
    ALL_ATTENTION_FUNCTIONS["sdpa"] = tensors
    try:
        with grouped_attention():
            assert ALL_ATTENTION_FUNCTIONS["sdpa"] is tensors
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is tensors
    finally:
        del ALL_ATTENTION_FUNCTIONS["sdpa"]
