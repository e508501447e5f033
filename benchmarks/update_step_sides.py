"""What `update_step.py` updates, on random weights and synthetic rollouts: by exprl, and by TRL's GRPOTrainer."""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.utils import is_flash_attn_2_available

from exprl.corrections import NoCorrection
from exprl.experiment import UpdateConfig
from exprl.models.base import LanguageModel
from exprl.objectives import Clipped
from exprl.training.batching import TokenSequence
from exprl.training.micro_batches import share
from exprl.training.update import PolicyUpdate
from exprl.training.world import World

CLIP_LOW, CLIP_HIGH = 0.2, 0.28

Gradients = Callable[[], float]
"""Adds the gradient of one update to the model's and returns the loss."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """A model's shape and a batch of rollouts.

    Attributes:
        shape: arguments of `Qwen3Config`.
        rollouts: sequences of one update.
        tokens: of the longest sequence, its prompt included.
        shortest: length of the shortest, as a part of the longest.
        micro_batch_tokens: padding included.
        device: "cpu" or "cuda".
        bf16: whether weights in float32 are run in bf16.
        warm_up: whole updates before the first that is timed.
        compare: whether both gradients are also held against each other, in one process.
    """

    shape: dict[str, Any]
    rollouts: int
    tokens: int
    shortest: float = 1.0
    micro_batch_tokens: int
    device: str
    bf16: bool = False
    warm_up: int = 1
    compare: bool = False


def shape(
    hidden: int, layers: int, heads: int, kv_heads: int, head: int, inner: int, vocabulary: int
) -> dict[str, Any]:
    """Arguments of `Qwen3Config`; embedding and LM head share their weights."""
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head,
        "intermediate_size": inner,
        "vocab_size": vocabulary,
        "tie_word_embeddings": True,
    }


CONFIGS = {
    "tiny": Config(
        shape=shape(64, 2, 4, 2, 16, 128, 1000),
        rollouts=8,
        tokens=256,
        shortest=0.25,
        micro_batch_tokens=512,
        device="cpu",
        compare=True,
    ),
    "cpu-16k": Config(
        shape=shape(64, 2, 4, 2, 16, 128, 151936),
        rollouts=1,
        tokens=16384,
        micro_batch_tokens=16384,
        device="cpu",
        warm_up=0,
    ),
    "qwen3-0.6b": Config(
        shape=shape(1024, 28, 16, 8, 128, 3072, 151936),
        rollouts=8,
        tokens=4096,
        shortest=0.25,
        micro_batch_tokens=16384,
        device="cuda",
        bf16=True,
    ),
    "qwen3-4b-16k": Config(
        shape=shape(2560, 36, 32, 8, 128, 9728, 151936),
        rollouts=2,
        tokens=16384,
        micro_batch_tokens=16384,
        device="cuda",
        bf16=True,
    ),
}


def build_model(config: Config, options: argparse.Namespace) -> LanguageModel:
    """The config's model with random weights in float32, made on its device."""
    torch.manual_seed(options.seed)
    arguments = config.shape | {"max_position_embeddings": config.tokens}
    with torch.device(config.device):
        model = Qwen3ForCausalLM._from_config(Qwen3Config(**arguments), attn_implementation=attention(config, options))
    return LanguageModel(model=model, tokenizer=tokenizer(), name="benchmark")


def attention(config: Config, options: argparse.Namespace) -> str:
    """sdpa, but for packed rollouts on a GPU one that skips what lies between them."""
    if not options.packing or config.device == "cpu":
        return "sdpa"
    return "flash_attention_2" if is_flash_attn_2_available() else "flex_attention"


def tokenizer() -> PreTrainedTokenizerFast:
    """What trainers ask for padding and the end."""
    backend = Tokenizer(models.WordLevel({"<pad>": 0, "<end>": 1}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<end>")


def build_rollouts(config: Config, seed: int) -> list[TokenSequence]:
    """Random tokens, one advantage a rollout, a sixteenth of each is the prompt.

    The log-probs of the old policy lie around those of a uniform one, so that some ratios are clipped.
    """
    generator = torch.Generator().manual_seed(seed)
    vocabulary = config.shape["vocab_size"]
    parts = 1 - (1 - config.shortest) * torch.rand(config.rollouts, generator=generator)
    sequences = []
    for length in [config.tokens, *(parts[1:] * config.tokens).long().tolist()]:
        prompt, response = length // 16, length - length // 16
        ids = torch.randint(2, vocabulary, (length,), generator=generator).tolist()
        noise = 0.2 * torch.randn(response, generator=generator)
        sequences.append(
            TokenSequence(
                prompt_ids=tuple(ids[:prompt]),
                response_ids=tuple(ids[prompt:]),
                advantages=(float(torch.randn((), generator=generator)),) * response,
                sampler_logprobs=tuple((noise - math.log(vocabulary)).tolist()),
            )
        )
    return sequences


def ours(
    model: LanguageModel, sequences: Sequence[TokenSequence], config: Config, options: argparse.Namespace
) -> Gradients:
    """The update as a run of exprl computes it."""
    device = torch.device(config.device)
    computing = PolicyUpdate(
        model,
        Clipped(clip_low=CLIP_LOW, clip_high=CLIP_HIGH, correction=NoCorrection()),
        UpdateConfig(
            micro_batch_tokens=config.micro_batch_tokens,
            packing=options.packing,
            activation_checkpointing=not options.no_checkpointing,
            compile_layers=options.compile_layers,
        ),
        temperature=1.0,
        world=World(),
        device=device,
    )
    update = computing.share(sequences)
    old = [batch.sampler_logprobs for _, batch in computing.batches(update)]

    def gradients() -> float:
        with torch.autocast(device.type, torch.bfloat16, enabled=config.bf16):
            sums = computing.accumulate(update, lambda loss: loss.backward(), old=old)
        return sums["loss"] / update.tokens

    return gradients


def trl(
    model: LanguageModel, sequences: Sequence[TokenSequence], config: Config, options: argparse.Namespace
) -> Gradients:
    """TRL's loss as its trainer computes it, without sampling, rewards and logging to files."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    recompute = not options.no_checkpointing
    arguments = GRPOConfig(
        output_dir=tempfile.gettempdir(),  # nothing is written
        use_cpu=config.device == "cpu",
        bf16=config.bf16,
        use_vllm=False,
        report_to="none",
        loss_type="dapo",  # sums over the tokens of the whole batch: what exprl divides by, too
        beta=0.0,
        epsilon=CLIP_LOW,
        epsilon_high=CLIP_HIGH,
        temperature=1.0,
        per_device_train_batch_size=2,
        num_generations=2,
        gradient_accumulation_steps=1,
        gradient_checkpointing=recompute,
    )
    trainer = GRPOTrainer(
        model=model.model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": "x"}] * 2),
        processing_class=model.tokenizer,
    )
    # What its training loop does before the first step.
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    if recompute:
        trainer.model.gradient_checkpointing_enable(arguments.gradient_checkpointing_kwargs)
    lengths = [sequence.total_tokens for sequence in sequences]
    [rows] = share(lengths, budget=config.micro_batch_tokens, ranks=1, packed=False)
    tokens = sum(len(sequence.response_ids) for sequence in sequences)
    batches = [trl_inputs([sequences[i] for i in row], tokens, torch.device(config.device)) for row in rows]

    def gradients() -> float:
        total = 0.0
        for batch in batches:
            loss = trainer._compute_loss(trainer.model, batch)
            trainer.accelerator.backward(loss)
            total += loss.item()
        return total

    return gradients


def trl_inputs(sequences: Sequence[TokenSequence], tokens: int, device: torch.device) -> dict[str, Tensor]:
    """A micro-batch as TRL lays it out: prompts padded on the left, responses on the right, [B, P] and [B, C]."""
    prompts = max(len(sequence.prompt_ids) for sequence in sequences)
    responses = max(len(sequence.response_ids) for sequence in sequences)
    inputs = {
        "prompt_ids": torch.zeros(len(sequences), prompts, dtype=torch.long),
        "prompt_mask": torch.zeros(len(sequences), prompts, dtype=torch.long),
        "completion_ids": torch.zeros(len(sequences), responses, dtype=torch.long),
        "completion_mask": torch.zeros(len(sequences), responses, dtype=torch.long),
        "old_per_token_logps": torch.zeros(len(sequences), responses),
        "advantages": torch.tensor([sequence.advantages[0] for sequence in sequences]),
        "num_items_in_batch": torch.tensor(tokens),
    }
    for row, sequence in enumerate(sequences):
        start, length = prompts - len(sequence.prompt_ids), len(sequence.response_ids)
        inputs["prompt_ids"][row, start:] = torch.tensor(sequence.prompt_ids)
        inputs["prompt_mask"][row, start:] = 1
        inputs["completion_ids"][row, :length] = torch.tensor(sequence.response_ids)
        inputs["completion_mask"][row, :length] = 1
        inputs["old_per_token_logps"][row, :length] = torch.tensor(sequence.sampler_logprobs)
    return {name: tensor.to(device) for name, tensor in inputs.items()}


BUILDERS = {"ours": ours, "trl": trl}
