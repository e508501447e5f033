"""The loss and its gradient do not depend on how the rollouts are cut into micro-batches."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from exprl.build import Build
from exprl.models.base import LanguageModel
from exprl.training.batching import TokenSequence
from exprl.training.module import ExpRLModule, Parts


@pytest.fixture
def module(small: Any, monkeypatch: pytest.MonkeyPatch) -> ExpRLModule:
    """An fp64 policy with a KL term to another policy; `manual_backward` without a Trainer is `backward`."""
    experiment = small("objective.kl_coef=0.05")
    build = Build(experiment)
    build.policy.model.double()
    reference = copy.deepcopy(build.policy.model)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.01)
    parts = Parts(
        prompts=build.prompts,
        engine=build.engine,
        reward=experiment.reward.build(build.resources),
        advantage=experiment.advantage.build(build.resources),
        objective=experiment.objective.build(build.resources),
        reference=LanguageModel(model=reference, tokenizer=build.policy.tokenizer, name="reference"),
    )
    made = ExpRLModule(
        build.policy, parts, build.sampling, optimizer=experiment.optimizer, update=experiment.update, seed=0
    )
    monkeypatch.setattr(made, "manual_backward", lambda loss: loss.backward())
    return made


def sequences(count: int) -> list[TokenSequence]:
    generator = torch.Generator().manual_seed(0)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(6, 40, (length,), generator=generator).tolist())

    made = []
    for index in range(count):
        length = 3 + 5 * index
        advantages = torch.randn(length, generator=generator).tolist()
        logprobs = (-torch.rand(length, generator=generator) * 4).tolist()
        made.append(
            TokenSequence(
                prompt_ids=ids(4 + index % 3),
                response_ids=ids(length),
                advantages=tuple(advantages),
                sampler_logprobs=tuple(logprobs),
            )
        )
    return made


def gradients(module: ExpRLModule, budget: int) -> tuple[dict[str, float], torch.Tensor]:
    object.__setattr__(module, "update", type(module.update)(micro_batch_tokens=budget))
    module.zero_grad()
    stats = module.accumulate_gradients(sequences(6))
    return stats, torch.cat([p.grad.flatten() for p in module.policy.parameters() if p.grad is not None])


def test_any_micro_batch_size_gives_the_same_loss_and_gradient(module: ExpRLModule) -> None:
    whole, gradient = gradients(module, budget=100_000)
    assert gradient.dtype == torch.float64
    assert gradient.norm() > 0
    for budget in (1, 40, 100):
        stats, other = gradients(module, budget)
        assert torch.allclose(other, gradient, rtol=0, atol=1e-6 * gradient.abs().max())
        assert (other - gradient).norm() / gradient.norm() < 1e-6
        for name, value in whole.items():
            assert stats[name] == pytest.approx(value, rel=1e-6, abs=1e-6), name


def test_the_loss_is_the_mean_over_tokens_not_over_rollouts(module: ExpRLModule) -> None:
    """By hand: the gradient of the token mean is the token-weighted mean of each rollout's own."""
    rollouts = sequences(3)
    total = sum(len(s.response_ids) for s in rollouts)
    expected = torch.zeros(())
    for rollout in rollouts:
        module.zero_grad()
        module.accumulate_gradients([rollout])
        own = torch.cat([p.grad.flatten() for p in module.policy.parameters() if p.grad is not None])
        expected = expected + own * len(rollout.response_ids) / total
    module.zero_grad()
    module.accumulate_gradients(rollouts)
    together = torch.cat([p.grad.flatten() for p in module.policy.parameters() if p.grad is not None])
    assert (together - expected).norm() / expected.norm() < 1e-6  # the model's norms compute in fp32 even in fp64
