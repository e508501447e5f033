"""One update on a response of 16,384 tokens with a vocabulary of 151,936: `python -m ...` prints JSON about it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from exprl.experiment import OptimizerConfig, UpdateConfig
from exprl.models.base import LanguageModel
from exprl.objectives import Clipped
from exprl.training.batching import TokenSequence
from exprl.training.optimizer import build_optimizer
from exprl.training.parallel import clip_gradients
from exprl.training.update import PolicyUpdate
from exprl.training.world import World
from tests.conftest import character_tokenizer

VOCABULARY = 151_936
PROMPT, RESPONSE = 64, 16_384


def model(seed: int) -> LanguageModel:
    """A narrow Qwen3 with the vocabulary and the context of a real one."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=PROMPT + RESPONSE,
        tie_word_embeddings=True,
    )
    return LanguageModel(model=Qwen3ForCausalLM(config), tokenizer=character_tokenizer(), name=f"long-{seed}")


def rollout() -> TokenSequence:
    """Random tokens of the whole vocabulary, advantages of both signs."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(VOCABULARY, (PROMPT + RESPONSE,), generator=generator).tolist()
    return TokenSequence(
        prompt_ids=tuple(ids[:PROMPT]),
        response_ids=tuple(ids[PROMPT:]),
        advantages=tuple(torch.randn(RESPONSE, generator=generator).tolist()),
        sampler_logprobs=(-math.log(VOCABULARY),) * RESPONSE,
    )


def main() -> None:
    policy, reference = model(seed=0), model(seed=1)
    optimizer, _ = build_optimizer(policy.model, OptimizerConfig(lr=1e-3))
    computing = PolicyUpdate(
        policy,
        Clipped(kl_coef=0.05),
        UpdateConfig(activation_checkpointing=True),
        temperature=0.8,
        world=World(),
        device=torch.device("cpu"),
    )
    sampled = rollout()
    update = computing.share([sampled])
    before = [parameter.detach().clone() for parameter in policy.model.parameters()]
    frozen = computing.frozen_logprobs(reference, update)
    old = [torch.tensor(sampled.sampler_logprobs)]  # as if another update had been before
    sums = computing.accumulate(update, lambda loss: loss.backward(), old=old, initial=frozen)
    norm = clip_gradients(policy.model, 1.0)
    optimizer.step()
    changed = [bool((now.detach() != then).any()) for now, then in zip(policy.model.parameters(), before, strict=True)]
    status = Path("/proc/self/status").read_text().splitlines()
    result = {
        "tokens": update.tokens,
        "micro_batches": len(update.micro_batches),
        "loss": sums["loss"] / update.tokens,
        "entropy": sums["entropy"] / update.tokens,
        "kl": sums["kl"] / update.tokens,
        "grad_norm": norm,
        "unchanged": changed.count(False),
        # Not ru_maxrss, which Linux lets a process inherit from the one that started it.
        "peak_gib": next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) / 2**20,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
