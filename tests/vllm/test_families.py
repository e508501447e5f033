"""Families whose logits are not head(hidden), in vLLM: it agrees with the model's own forward pass, or is refused.

A start costs seconds, so a handful stands for all; `benchmarks/model_walk.py --engine vllm` walks the rest.
"""

from __future__ import annotations

import pytest
import torch

from exprl.engines.vllm import VLLMEngine
from exprl.errors import ModelError
from exprl.models.base import LanguageModel
from exprl.training.start_check import check_agreement
from tests.families import examine
from tests.vllm.helpers import engine_of


def small_engine(policy: LanguageModel) -> VLLMEngine:
    return engine_of(policy, max_model_len=128)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["granite"])
def test_a_family_is_computed_rightly(family, others_closed):
    outcome = examine(family, small_engine, wide=True, allowed=5e-3)
    assert outcome.kind == "agreed", outcome


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
