"""What losses of tokens become, and objectives that look at whole rollouts: the same however an update is cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from exprl.corrections import IcePop, SequenceMask
from exprl.errors import ConfigError
from exprl.experiment import UpdateConfig
from exprl.models.base import LanguageModel
from exprl.objectives import CISPO, DPPO, GSPO, Clipped, Objective, Reinforce
from exprl.training.batching import TokenSequence
from exprl.training.update import PolicyUpdate
from exprl.training.world import World
from tests.conftest import tiny_llama
from tests.integration.ranks_script import CPU, TEMPERATURE, policy, scored_groups

LIMIT = 50
LENGTHS = [
    len(rollout) for s in scored_groups() for rollout, a in zip(s.group.rollouts, s.advantages, strict=True) if a.valid
]
OBJECTIVES: list[Objective] = [
    GSPO(sequence_clip_low=0.1, sequence_clip_high=0.1, correction=SequenceMask(ratio="geometric", low=0.05)),
    Clipped(clip_low=0.5, clip_high=0.5, entropy_coef=1e-4, correction=SequenceMask(low=1e-4)),
    CISPO(ratio_high=1.0, correction=IcePop(low=0.03)),
    DPPO(delta_low=0.01, delta_high=0.01),
]
"""With bounds that some tokens, or rollouts, of the groups lie beyond, and others do not."""


def computing(objective: Objective, world: World | None = None, **options: Any) -> PolicyUpdate:
    return PolicyUpdate(
        policy(),
        objective,
        UpdateConfig(**options),
        temperature=TEMPERATURE,
        world=world or World(),
        device=CPU,
        length_limit=LIMIT,
    )


def other_policy(like: LanguageModel) -> LanguageModel:
    return LanguageModel(model=tiny_llama(len(like.tokenizer), seed=1, scale=0.1), tokenizer=like.tokenizer, name="old")


def of_update(one: PolicyUpdate) -> tuple[Tensor, dict[str, float], int]:
    """Gradient, sums of statistics and number of micro-batches of a rank's part, π_old being another policy."""
    [update], _ = one.plan(scored_groups())
    old = one.frozen_logprobs(other_policy(one.policy), update)
    sums = one.accumulate(update, lambda loss: loss.backward(), old=old)
    parameters = one.policy.model.parameters()
    return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]), sums, len(update.micro_batches)


def of_two_ranks(objective: Objective, **options: Any) -> tuple[Tensor, dict[str, float]]:
    parts = []
    for rank in range(2):
        world = World()
        world.rank, world.size = rank, 2
        parts.append(of_update(computing(objective, world, **options))[:2])
    (one, sums), (other, more) = parts
    return one + other, {name: value + more[name] for name, value in sums.items()}


def assert_same(found: tuple[Tensor, dict[str, float]], expected: tuple[Tensor, dict[str, float]]) -> None:
    assert (found[0] - expected[0]).abs().max() <= 2e-5 * expected[0].abs().max()
    for name, value in expected[1].items():
        assert found[1][name] == pytest.approx(value, rel=1e-4, abs=1e-4), name


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: o.registered_name)
def test_however_an_update_is_cut_gradient_and_statistics_are_the_same(objective: Objective) -> None:
    """Alone, several together with and without shared prompts, packed, and on two ranks."""
    for aggregation in ("token", "sequence", "constant"):
        gradient, sums, count = of_update(computing(objective, aggregation=aggregation, micro_batch_tokens=1))
        assert gradient.abs().max() > 0
        assert 0 < sums["clipped"] < sum(LENGTHS)
        assert objective.correction.registered_name == "tis" or 0 < sums["is_outside"] < sum(LENGTHS)
        for options in (
            {"micro_batch_tokens": 60},
            {"micro_batch_tokens": 10**5},
            {"micro_batch_tokens": 10**5, "packing": False},
            {"micro_batch_tokens": 60, "packing": True},
        ):
            *found, fewer = of_update(computing(objective, aggregation=aggregation, **options))
            assert fewer < count
            assert_same((found[0], found[1]), (gradient, sums))
        assert_same(of_two_ranks(objective, aggregation=aggregation, micro_batch_tokens=60), (gradient, sums))


def sequences(one: PolicyUpdate) -> list[TokenSequence]:
    [update], _ = one.plan(scored_groups())
    return [sequence for batch in update.micro_batches for sequence in batch][:3]


def token_mean(one: PolicyUpdate, chosen: Sequence[TokenSequence]) -> tuple[Tensor, float]:
    """Gradient and loss of these rollouts alone."""
    one.policy.model.zero_grad()
    update = one.share(chosen)
    sums = one.accumulate(update, lambda loss: loss.backward())
    gradient = torch.cat([p.grad.flatten() for p in one.policy.model.parameters() if p.grad is not None])
    return gradient.clone(), sums["loss"] / update.tokens


def test_sequence_is_the_mean_of_each_rollouts_token_mean() -> None:
    one = computing(Reinforce(), aggregation="token")
    chosen = sequences(one)
    assert len({len(s.response_ids) for s in chosen}) == 3
    parts = [token_mean(one, [sequence]) for sequence in chosen]
    gradient, loss = token_mean(computing(Reinforce(), aggregation="sequence"), chosen)
    torch.testing.assert_close(gradient, sum(g for g, _ in parts) / 3, rtol=1e-4, atol=1e-6)
    assert loss == pytest.approx(sum(value for _, value in parts) / 3, rel=1e-5)


@pytest.mark.parametrize("length", [None, 7])
def test_constant_is_the_sum_over_rollouts_and_a_constant(length: int | None) -> None:
    one = computing(Reinforce(), aggregation="token")
    chosen = sequences(one)
    tokens = sum(len(s.response_ids) for s in chosen)
    expected, mean = token_mean(one, chosen)
    gradient, loss = token_mean(computing(Reinforce(), aggregation="constant", aggregation_length=length), chosen)
    factor = tokens / (3 * (length or LIMIT))
    torch.testing.assert_close(gradient, expected * factor, rtol=1e-4, atol=1e-6)
    assert loss == pytest.approx(mean * factor, rel=1e-5)


def test_constant_without_a_length_is_refused_where_nothing_limits_rollouts() -> None:
    with pytest.raises(ConfigError, match=r"update\.aggregation: constant divides by update\.aggregation_length"):
        PolicyUpdate(
            policy(),
            Clipped(),
            UpdateConfig(aggregation="constant"),
            temperature=1.0,
            world=World(),
            device=CPU,
        )


def test_the_entropy_bonus_is_the_gradient_of_the_entropy() -> None:
    """-coef · H of the tempered distribution, computed here from whole logits."""
    one = computing(Clipped(entropy_coef=0.3), micro_batch_tokens=1)
    [chosen, *_] = sequences(one)
    with_bonus, _ = token_mean(one, [chosen])
    without, _ = token_mean(computing(Clipped()), [chosen])
    model = one.policy.model
    model.zero_grad()
    logits = model(input_ids=torch.tensor([chosen.ids])).logits[0, len(chosen.prompt_ids) - 1 : -1] / TEMPERATURE
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    (-0.3 * entropy.mean()).backward()
    bonus = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(with_bonus - without, bonus, rtol=1e-3, atol=1e-5)
    assert bonus.abs().max() > 1e-4
