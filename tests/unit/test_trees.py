"""Which models compute a tree of tokens: asked of the model, so that a judge never reads wrong logits."""

from __future__ import annotations

import pytest
import torch

from exprl.judges.backends.tree import build_tree
from exprl.judges.backends.tree_forward import tree_logits, understands_trees
from tests.families import miniature

SEQUENCES = [[3, 14, 15], [3, 14, 15, 9, 26, 5], [3, 14, 15, 9, 26, 5, 35, 8, 9, 7, 9], [3, 14, 7, 9, 32]]


def plain(model: torch.nn.Module, sequences: list[list[int]]) -> torch.Tensor:
    with torch.no_grad():
        return torch.stack([model(input_ids=torch.tensor([s]), use_cache=False).logits[0, -1] for s in sequences])


@pytest.mark.parametrize("family", ["mpt", "bloom", "mamba", "bamba", "gpt_neo", "mistral", "gemma2", "bart"])
def test_positions_by_column_windows_and_states_get_plain_prompts(family):
    assert not understands_trees(miniature(family))


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "gpt_neox", "phi", "granite", "cohere"])
def test_a_tree_gives_what_plain_prompts_give(family):
    model = miniature(family)
    assert understands_trees(model)
    with torch.no_grad():
        tree = tree_logits(model, build_tree(sorted(SEQUENCES)))
    assert (tree.log_softmax(-1) - plain(model, sorted(SEQUENCES)).log_softmax(-1)).abs().max() < 1e-3
