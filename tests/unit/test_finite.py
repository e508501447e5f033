"""A number that is not finite stops whoever gives it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from exprl.checks.finite import check_finite, check_sampled
from exprl.errors import NonFiniteError
from exprl.training.parallel import weights_norm
from exprl.training.update import total
from tests.integration.ranks_script import scored_groups

NOT_FINITE = pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])


@NOT_FINITE
def test_the_cause_is_named_before_what_it_causes(value: float) -> None:
    with pytest.raises(NonFiniteError, match=r"^step 3: the log-prob under the frozen reference is -?(nan|inf)"):
        check_finite({"mine": value, "loss": math.nan, "initial_logp": value, "entropy": 1.0}, "step 3")
    with pytest.raises(NonFiniteError, match=r"the mine is .* optimizer\.lr.* model\.path="):
        check_finite({"mine": value}, "step 3")
    check_finite({"mine": 1e300, "loss": -0.0}, "step 3")


@NOT_FINITE
def test_log_probs_name_their_problem(value: float) -> None:
    groups = [scored.group for scored in scored_groups()]
    check_sampled(groups, "step 1")
    rollout = groups[3].rollouts[0]
    broken = replace(rollout, sampler_logprobs=(value, *rollout.sampler_logprobs[1:]))
    groups[3] = replace(groups[3], rollouts=(broken, *groups[3].rollouts[1:]))
    with pytest.raises(NonFiniteError, match=r"problem 'p3': the log-prob that the engine gives is"):
        check_sampled(groups, "step 1")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_of_the_weights_shows_one_that_is_lost_or_too_large(dtype: torch.dtype) -> None:
    layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 2, dtype=dtype)])
    expected = math.sqrt(sum(p.detach().float().square().sum().item() for p in layers.parameters()))
    assert weights_norm(layers) == pytest.approx(expected, rel=1e-2)
    for value in (math.nan, math.inf, 1e30):
        layers[1].weight.data[0, 3] = value
        assert not math.isfinite(weights_norm(layers)), value


def test_sums_of_statistics_keep_what_is_not_finite() -> None:
    sums = total({"a": torch.tensor([0.5, 0.25]), "b": torch.tensor([1.0, math.nan]), "c": torch.tensor([-math.inf])})
    assert sums["a"] == 0.75
    assert math.isnan(sums["b"])
    assert sums["c"] == -math.inf
