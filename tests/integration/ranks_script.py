"""Gradients of one policy update, computed alone or by the ranks that torchrun started: `python -m ... OUT`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from exprl.experiment import UpdateConfig
from exprl.models.base import LanguageModel
from exprl.objectives import Clipped
from exprl.training.exchange import everyones, own_groups
from exprl.training.parallel import clip_gradients, sum_gradients
from exprl.training.update import PolicyUpdate
from exprl.training.world import World, join
from exprl.types import (
    Advantages,
    Problem,
    Prompt,
    Question,
    Rollout,
    RolloutGroup,
    RolloutReward,
    Scaffold,
    ScoredGroup,
    Segment,
)
from tests.conftest import character_tokenizer, tiny_llama

TEMPERATURE = 0.8
CPU = torch.device("cpu")


def policy() -> LanguageModel:
    """A tiny Llama, the same on every rank, with a weight that text does not use, as of a part that reads pictures."""
    tokenizer = character_tokenizer()
    model = tiny_llama(len(tokenizer), scale=0.1)
    model.vision = torch.nn.Linear(2, 2)
    return LanguageModel(model=model, tokenizer=tokenizer, name="tiny")


def scored_groups(count: int = 4, group: int = 3) -> list[ScoredGroup]:
    """Groups of uneven lengths; in the second half, which is rank 1's of two, some rollouts do not count."""
    generator = torch.Generator().manual_seed(0)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(6, 90, (length,), generator=generator).tolist())

    groups = []
    for number in range(count):
        prompt = Prompt(problem_id=f"p{number}", text="", token_ids=ids(4 + 3 * number))
        lengths = [3 + 11 * ((number * group + i) % 5) for i in range(group)]
        rollouts = tuple(
            Rollout(
                prompt=prompt,
                token_ids=ids(length),
                text="x" * length,
                token_ends=tuple(range(1, length + 1)),
                sampler_logprobs=tuple((-4 * torch.rand(length, generator=generator)).tolist()),
                finish_reason="stop",
            )
            for length in lengths
        )
        valid = [not (number >= count // 2 and i == number % group) for i in range(group)]
        values = torch.randn(group, generator=generator).tolist()
        groups.append(
            ScoredGroup(
                group=RolloutGroup(
                    problem=Problem(question=Question(problem_id=f"p{number}", text="?"), scaffold=Scaffold()),
                    rollouts=rollouts,
                ),
                rewards=tuple(
                    RolloutReward(value=torch.tensor(v).sigmoid().item() if ok else None, length=n)
                    for v, ok, n in zip(values, valid, lengths, strict=True)
                ),
                advantages=tuple(
                    Advantages(segments=(Segment(0, n),), values=(v,), valid=ok)
                    for v, ok, n in zip(values, valid, lengths, strict=True)
                ),
            )
        )
    return groups


def gradients(world: World, model: LanguageModel, scored: Sequence[ScoredGroup], **options: Any) -> dict[str, Any]:
    """Statistics and the flat gradient of the one update over `scored`, as the module computes them."""
    update = UpdateConfig(**options)
    computing = PolicyUpdate(model, Clipped(kl_coef=0.05), update, temperature=TEMPERATURE, world=world, device=CPU)
    other = LanguageModel(
        model=tiny_llama(len(model.tokenizer), seed=1, scale=0.1), tokenizer=model.tokenizer, name="reference"
    )
    updates, dropped = computing.plan(scored)
    assert len(updates) == 1
    frozen = computing.frozen_logprobs(other, updates[0])
    model.model.zero_grad()
    sums = computing.accumulate(updates[0], lambda loss: loss.backward(), initial=frozen)
    sum_gradients(model.model, world)
    flat = torch.cat([p.grad.flatten() for p in model.model.parameters() if p.grad is not None]).clone()
    norm = clip_gradients(model.model, 1.0)
    return {
        "sums": world.sum(sums),
        "gradient": flat,
        "without": [name for name, p in model.model.named_parameters() if p.grad is None],
        "norm": norm,
        "tokens": updates[0].tokens,
        "dropped": dropped,
        "micro_batches": len(updates[0].micro_batches),
    }


CASES: list[dict[str, Any]] = [
    {"micro_batch_tokens": 1},
    {"micro_batch_tokens": 60},
    {"micro_batch_tokens": 60, "packing": True},
    {"micro_batch_tokens": 100_000},
    {"micro_batch_tokens": 100_000, "packing": True},
    {"micro_batch_tokens": 60, "activation_checkpointing": True},
    {"micro_batch_tokens": 100_000, "packing": False},
    {"micro_batch_tokens": 100_000, "activation_checkpointing": True},
]


def main(folder: Path) -> None:
    """Every case, saved by rank 0."""
    world = join(60.0, on_gpu=False)
    everything = scored_groups()
    own = len(everything) // world.size
    mine = everything[world.rank * own : (world.rank + 1) * own]
    rewarded = everyones(world, [(s.group, s.rewards) for s in mine], "the update")
    gathered = [
        ScoredGroup(group=group, rewards=rewards, advantages=s.advantages)
        for (group, rewards), s in zip(rewarded, everything, strict=True)
    ]
    assert own_groups(gathered) == mine
    texts = [rollout.text for s in gathered for rollout in s.group.rollouts if rollout.text]
    assert len(texts) == sum(len(s.group.rollouts) for s in mine), "those of this rank's own rollouts"
    results = [gradients(world, policy(), gathered, **case) for case in CASES]
    if world.first:
        torch.save(results, folder / f"ranks-{world.size}.pt")
    world.barrier("the end")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    os._exit(0)
