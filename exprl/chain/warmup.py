"""Warm-up of the miniature world's policy: supervised until single steps are mostly right."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import cycle, islice
from typing import Any

import torch

from exprl.chain import problems as chain
from exprl.chain.options import ChainWarmUp, WarmUpOptions
from exprl.chain.supervised import StopAtTarget, train_supervised
from exprl.errors import ModelError
from exprl.experiment import OptimizerConfig
from exprl.models.base import LanguageModel
from exprl.seeding import derive_seed
from exprl.text.prompts import PromptBuilder
from exprl.training.batching import TokenSequence, collate
from exprl.training.policy import response_logprobs
from exprl.types import Question

MEASURED_PROBLEMS = 16
MEASURE_EVERY = 2
READING_ACCURACY = 0.8
"""Of a step whose reference is shown; half of the steps can be copied from a reference of every second turn."""
READING_TURNS = 3
"""Problems with a reference for each without, once steps with one are mostly right: so that reading is not unlearnt."""

log = logging.getLogger(__name__)


def warm_up(policy: LanguageModel, options: ChainWarmUp) -> dict[str, Any]:
    """Train `policy` in place; returns what was measured. Its problems are of the `train` split.

    Raises:
        ModelError: a step accuracy stays below its target for `max_updates` updates.
    """
    log.info("warming up the chain policy (a minute or two; cached afterwards)")
    prompts = PromptBuilder(policy.tokenizer)
    seed, lengths = derive_seed(options.seed, "warm-up"), range(1, options.max_steps + 1)
    problems = chain.stream(seed, lengths)
    hard = chain.generate(derive_seed(options.seed, "warm-up measure"), MEASURED_PROBLEMS, options.max_steps)
    examples = (solved(problem, policy, prompts) for problem in problems)
    record = {}
    if options.reads_references:
        every = options.reference_every
        reading = (solved(problem, policy, prompts, reference_every=every) for problem in problems)
        measured = [solved(problem, policy, prompts, reference_every=every) for problem in hard]
        read = partial(step_accuracy, policy, measured)
        record["reading"] = train_until(policy, reading, read, READING_ACCURACY, options)
        turns = cycle([examples, *[reading] * READING_TURNS])
        examples = (next(turn) for turn in turns)
    solve = partial(step_accuracy, policy, [solved(problem, policy, prompts) for problem in hard])
    record["solving"] = train_until(policy, examples, solve, options.target_accuracy, options)
    return record


def train_until(
    policy: LanguageModel,
    examples: Iterator[TokenSequence],
    measure: Callable[[], float],
    target: float,
    options: WarmUpOptions,
) -> dict[str, Any]:
    """Train until `measure`, the probability that a step is right, reaches `target`; see `warm_up`."""
    stop = StopAtTarget(measure, target=target, every=MEASURE_EVERY)
    optimizer = OptimizerConfig(lr=options.lr, betas=(0.9, 0.95), weight_decay=0.01, warmup_updates=50)
    batches = islice(batched(examples, options.batch_size), options.max_updates)
    updates = train_supervised(policy, batches, optimizer, stop)
    if stop.value < target:
        raise ModelError(
            f"model: the warm-up's step accuracy is {stop.value:.3f} after {updates} updates, not {target}. Raise "
            "max_updates, or lower target_accuracy."
        )
    log.info("warmed up in %d updates: a step is right with probability %.2f", updates, stop.value)
    return {"updates": updates, "step_accuracy": stop.value}


def solved(
    problem: chain.ChainProblem, policy: LanguageModel, prompts: PromptBuilder, *, reference_every: int | None = None
) -> TokenSequence:
    """The problem's prompt and its worked solution as token ids, ended.

    With `reference_every` a reference of that terseness stands on the lines before the question, as the teacher of
    self-distillation reads it.
    """
    shown = problem.question
    if reference_every is not None:
        shown = chain.TEACHER_TEMPLATE.format(reference=problem.reference(reference_every), task=problem.question)
    return example(shown, problem.reference(), policy, prompts)


def example(question: str, response: str, policy: LanguageModel, prompts: PromptBuilder) -> TokenSequence:
    """A question's prompt and the response to it as token ids, ended."""
    prompt = prompts.build(Question(problem_id="warm-up", text=question))
    ids = policy.tokenizer(response, add_special_tokens=False)["input_ids"]
    return TokenSequence(prompt_ids=prompt.token_ids, response_ids=(*ids, policy.tokenizer.eos_token_id))


def batched(items: Iterator[TokenSequence], size: int) -> Iterator[list[TokenSequence]]:
    """Lists of `size` items."""
    while batch := list(islice(items, size)):
        yield batch


@torch.no_grad()
def step_accuracy(policy: LanguageModel, solutions: Sequence[TokenSequence], *, last: bool = False) -> float:
    """Probability that a line is sampled right after right lines: the mean over all steps of the references.

    The last line, an answer's, is no step; with `last` it is those lines that are measured, each with its end.
    """
    separator, end = policy.tokenizer.convert_tokens_to_ids(chain.DELIMITER), policy.tokenizer.eos_token_id
    pad = policy.tokenizer.pad_token_id
    assert isinstance(pad, int)
    batch = collate(solutions, pad_token_id=pad, device=policy.model.device)
    logprobs = response_logprobs(policy.model, batch, temperature=1.0).logp.tolist()
    probabilities, line = [], 0.0
    for token, logprob in zip(batch.ids.tolist(), logprobs, strict=True):
        line += logprob
        if token == (end if last else separator):
            probabilities.append(math.exp(line))
        if token in (separator, end):
            line = 0.0
    return sum(probabilities) / len(probabilities)
