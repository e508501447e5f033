"""Small policies, rollouts, and what the trainer makes of them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from exprl.engines import Sampling
from exprl.engines.base import Engine, by_place
from exprl.engines.vllm import VLLMEngine
from exprl.engines.vllm_host import VLLMHost
from exprl.experiment import LoRAConfig
from exprl.models.base import LanguageModel
from exprl.models.lora import adapter_tensors, attach
from exprl.training.batching import TokenSequence, collate
from exprl.training.policy import response_logprobs
from exprl.types import Hidden, Problem, Prompt, Question, Rollout, Scaffold
from tests.conftest import character_tokenizer


def small_policy(
    tokenizer: PreTrainedTokenizerBase | None = None, *, tied: bool = True, seed: int = 0, scale: float = 0.2
) -> LanguageModel:
    """Two random layers with heads of 32, the smallest that vLLM's CPU attention can compute."""
    tokenizer = tokenizer or character_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=4096,
        initializer_range=scale,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=tied,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).eval()
    return LanguageModel(model=model, tokenizer=tokenizer, name=f"small {seed}")


def adapted(language_model: LanguageModel, rank: int = 6) -> LanguageModel:
    """A copy with an adapter whose rank vLLM has no slot of, and which already changes what the model computes."""
    model = copy.deepcopy(language_model.model)
    attach(model, **vars(LoRAConfig(rank=rank, alpha=12)))
    policy = replace(language_model, model=model)
    move(policy, seed=0)
    return policy


def move(policy: LanguageModel, seed: int, size: float = 0.05) -> None:
    """An update: of the adapter alone."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in adapter_tensors(policy.model).values():
            tensor.add_(torch.randn(tensor.shape, generator=noise) * size)


def base_of(policy: LanguageModel) -> LanguageModel:
    return replace(policy, adapter=False, name=f"{policy.name} (frozen)")


def engine_of(language_model: LanguageModel, **options: Any) -> VLLMEngine:
    return VLLMEngine(**{"cpu_kv_cache_gib": 0.2, "max_model_len": 4096, **options}, policy=language_model)


def prompt(tokenizer: PreTrainedTokenizerBase, text: str, problem_id: str = "p") -> Prompt:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return Prompt(problem_id=problem_id, text=text, token_ids=tuple(ids))


def chat_prompt(tokenizer: PreTrainedTokenizerBase, question: str, problem_id: str = "p") -> Prompt:
    messages = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return prompt(tokenizer, str(text), problem_id)


def problem(problem_id: str, text: str = "What is 2 + 3?", reference: str = "2 + 3 = 5") -> Problem:
    return Problem(question=Question(problem_id=problem_id, text=text), scaffold=Scaffold(reference=Hidden(reference)))


def sample(engine: Engine, prompts: Sequence[Prompt], **sampling: Any) -> list[list[Rollout]]:
    groups: list[list[Rollout]] = [[] for _ in prompts]
    for index, rollout in engine.generate(prompts, Sampling(**sampling)):
        groups[index].append(rollout)
    return [list(by_place(group)) for group in groups]


def flat(groups: Iterable[Sequence[Rollout]]) -> list[Rollout]:
    return [rollout for group in groups for rollout in group]


def tokens(groups: Iterable[Sequence[Rollout]]) -> list[list[tuple[int, ...]]]:
    """Of each group, what was sampled at each place."""
    return [[rollout.token_ids for rollout in group] for group in groups]


def engine_logprobs(rollouts: Sequence[Rollout]) -> Tensor:
    return torch.tensor([logprob for rollout in rollouts for logprob in rollout.sampler_logprobs])


@torch.no_grad()
def trainer_logprobs(language_model: LanguageModel, rollouts: Sequence[Rollout], temperature: float) -> Tensor:
    """What the training step computes for the sampled tokens, one rollout after another."""
    sequences = [TokenSequence(prompt_ids=r.prompt.token_ids, response_ids=r.token_ids) for r in rollouts]
    batch = collate(sequences, pad_token_id=0, device=torch.device("cpu"))
    return response_logprobs(language_model.model, batch, temperature=temperature).logp


@torch.no_grad()
def softmax_logprobs(language_model: LanguageModel, rollouts: Sequence[Rollout], temperature: float) -> Tensor:
    """The same by the book: a log-softmax of all logits over the temperature."""
    found = []
    for rollout in rollouts:
        ids = torch.tensor([[*rollout.prompt.token_ids, *rollout.token_ids]])
        start = len(rollout.prompt.token_ids)
        logprobs = (language_model.model(input_ids=ids).logits[0, start - 1 : -1].float() / temperature).log_softmax(-1)
        found.append(logprobs.gather(-1, ids[0, start:, None]).squeeze(-1))
    return torch.cat(found)


def gap(one: Tensor, other: Tensor) -> float:
    """Mean absolute difference."""
    assert len(one) == len(other) > 0
    return float((one - other).abs().mean())


def same_where_known(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]], rel: float = 1e-4) -> None:
    """Probabilities of labels, of which a server lists those among the 20 likeliest tokens alone."""
    known = [(p, q) for one, other in zip(ours, theirs, strict=True) for p, q in zip(one, other, strict=True) if p]
    assert known
    for p, q in known:
        assert abs(p - q) < rel * q


def idle(host: VLLMHost) -> bool:
    """Whether neither the host nor vLLM itself has a request left."""
    return not host.busy and not host.start().llm_engine.has_unfinished_requests()


def load(model: torch.nn.Module, weights: Mapping[str, Tensor]) -> None:
    model.load_state_dict(weights)


def used(host: VLLMHost, before: Mapping[str, float]) -> dict[str, float]:
    """What the counters rose by since `before`, and the prompt tokens computed: those asked less those cached."""
    rise = {name: value - before[name] for name, value in host.counters().items()}
    return {**rise, "computed_tokens": rise["prompt_tokens"] - rise["cached_tokens"]}
