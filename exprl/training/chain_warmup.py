"""Warm-up of the miniature world's policy: supervised until single steps are mostly right."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch

from exprl.data import chain
from exprl.errors import ModelError
from exprl.experiment import OptimizerConfig
from exprl.models.base import LanguageModel
from exprl.models.chain import ChainModel
from exprl.prompts import PromptBuilder
from exprl.seeding import derive_seed
from exprl.training.batching import TokenSequence, collate
from exprl.training.policy import response_logprobs
from exprl.training.supervised import StopAtTarget, train_supervised
from exprl.types import Question

MEASURED_PROBLEMS = 16
MEASURE_EVERY = 2

log = logging.getLogger(__name__)


def warm_up(policy: LanguageModel, options: ChainModel.Config) -> dict[str, Any]:
    """Train `policy` in place; returns what was measured. Its problems are of the `train` split.

    Raises:
        ModelError: the step accuracy stays below the target for `max_updates` updates.
    """
    prompts = PromptBuilder(policy.tokenizer)
    seed, lengths = derive_seed(options.seed, "warm-up"), range(1, options.max_steps + 1)
    hard = chain.generate(derive_seed(options.seed, "warm-up measure"), MEASURED_PROBLEMS, options.max_steps)
    measured = [solved(problem, policy, prompts) for problem in hard]
    stop = StopAtTarget(lambda: step_accuracy(policy, measured), target=options.target_accuracy, every=MEASURE_EVERY)
    log.info("warming up the chain policy (about a minute; cached afterwards)")
    problems = (solved(problem, policy, prompts) for problem in chain.stream(seed, lengths))
    optimizer = OptimizerConfig(lr=options.lr, betas=(0.9, 0.95), weight_decay=0.01, warmup_updates=50)
    updates = train_supervised(
        policy, islice(batched(problems, options.batch_size), options.max_updates), optimizer, stop
    )
    if stop.value < options.target_accuracy:
        raise ModelError(
            f"model.target_accuracy: {options.target_accuracy} was not reached; after {updates} updates the step "
            f"accuracy is {stop.value:.3f}. Lower it, or raise model.max_updates."
        )
    log.info("warmed up in %d updates: a step is right with probability %.2f", updates, stop.value)
    return {"updates": updates, "step_accuracy": stop.value}


def solved(problem: chain.ChainProblem, policy: LanguageModel, prompts: PromptBuilder) -> TokenSequence:
    """The problem's prompt and its reference as token ids, ended."""
    prompt = prompts.build(Question(problem_id="warm-up", text=problem.question))
    ids = policy.tokenizer(problem.reference, add_special_tokens=False)["input_ids"]
    return TokenSequence(prompt_ids=prompt.token_ids, response_ids=(*ids, policy.tokenizer.eos_token_id))


def batched(items: Iterator[TokenSequence], size: int) -> Iterator[list[TokenSequence]]:
    """Lists of `size` items."""
    while batch := list(islice(items, size)):
        yield batch


@torch.no_grad()
def step_accuracy(policy: LanguageModel, solutions: Sequence[TokenSequence]) -> float:
    """Probability that a step is sampled right after right steps: the mean over all steps of the reference."""
    separator = policy.tokenizer.convert_tokens_to_ids(chain.DELIMITER)
    pad = policy.tokenizer.pad_token_id
    assert isinstance(pad, int)
    batch = collate(solutions, pad_token_id=pad, device=policy.model.device)
    logprobs = response_logprobs(policy.model, batch, temperature=1.0).logp.tolist()
    probabilities, step = [], 0.0
    for token, logprob in zip(batch.ids.tolist(), logprobs, strict=True):
        step += logprob
        if token == separator:
            probabilities.append(math.exp(step))
        if token in (separator, policy.tokenizer.eos_token_id):  # the answer's line is no step
            step = 0.0
    return sum(probabilities) / len(probabilities)
