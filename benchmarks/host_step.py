"""One step's problems, rollouts and judge for `host.py`: texts of a real tokenizer, and a model that costs nothing."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from exprl.component import given
from exprl.judges.backends.base import JudgeModel, Query, QueuedBackend, Reply
from exprl.judges.backends.tokens import JudgeTokenizer
from exprl.judges.prompting import JudgePrompt
from exprl.resources import Resources
from exprl.text.tokenization import decode_with_ends
from exprl.types import Hidden, Problem, Prompt, Question, Rollout, RolloutGroup, Scaffold

SENTENCES = (
    "Let $x_{{{0}}} = {1}$, so the sum over $n \\le {2}$ is $\\frac{{n(n+1)}}{{2}}$ and the bound gives ∑ ≥ {1}. ",
    "Since {0} is even, the parity of {2} decides, and we get a contradiction for every prime $p > {1}$.\n\n",
    "For the other case we use that $a^{0} \\equiv {1} \\pmod{{{2}}}$; the remaining terms cancel in pairs.\n",
)
"""No word of a behaviour that is counted, so that every pattern is looked for to the end."""


@dataclass(frozen=True)
class Size:
    """How large a step is: `rollouts` of T `tokens` in `group`s of one problem, each of K `segments`."""

    rollouts: int
    group: int
    tokens: int
    segments: int


class CostlessBackend(QueuedBackend[Reply]):
    """Makes each prompt's ids, as every backend must, and answers by them at once."""

    tokenizer: PreTrainedTokenizerBase = given(help="makes the ids")

    @property
    def identity(self) -> str:
        """Of no model."""
        return "costs nothing"

    @cached_property
    def tokens(self) -> JudgeTokenizer:
        """Of the tokenizer."""
        return JudgeTokenizer(self.tokenizer, self.identity)

    @classmethod
    def open(cls, config: Any, model: JudgeModel, resources: Resources) -> CostlessBackend:
        """On the tokenizer of the policy."""
        return cls.made(config, tokenizer=resources.need_policy(model.judge).tokenizer)

    def room(self, prompt: JudgePrompt) -> tuple[int | None, int | None]:
        """Any prompt fits."""
        return len(self.tokens.encode(prompt)), None

    def _submit(self, query: Query) -> Reply:
        ids, _ = self.encoded(query)
        weights = [1 + len(ids) * prime % 97 for prime in (3, 5, 7, 11, 13)]
        return Reply(probabilities=tuple(weight / sum(weights) for weight in weights))

    def _answer(self, query: Query, work: Reply) -> Reply:
        return work


def groups_of(tokenizer: PreTrainedTokenizerBase | None, size: Size, *, first: int = 0) -> list[RolloutGroup]:
    """The step's groups, numbered from `first`; no two rollouts are alike. Without a tokenizer a token is 3 letters."""
    groups = []
    for start in range(first, first + size.rollouts, size.group):
        problem = problem_of(start)
        numbers = range(start, min(start + size.group, first + size.rollouts))
        rollouts = tuple(rollout_of(tokenizer, problem, size, seed=number) for number in numbers)
        groups.append(RolloutGroup(problem=problem, rollouts=rollouts))
    return groups


def problem_of(seed: int) -> Problem:
    """With a reference solution of about a thousand tokens."""
    return Problem(
        question=Question(problem_id=f"problem-{seed}", text="Find all n for which " + sentences(seed, 4)),
        scaffold=Scaffold(reference=Hidden(sentences(seed + 1, 24)), answer=Hidden(str(seed))),
    )


def rollout_of(tokenizer: PreTrainedTokenizerBase | None, problem: Problem, size: Size, *, seed: int) -> Rollout:
    """A rollout of exactly T tokens."""
    choose = random.Random(seed)
    if tokenizer is None:
        ids = [choose.randrange(50_000) for _ in range(size.tokens)]
        text, ends = "".join(f"{number % 1000:03}" for number in ids), tuple(range(3, 3 * len(ids) + 1, 3))
    else:
        ids = written(tokenizer, size, seed=seed)
        text, ends = decode_with_ends(tokenizer, ids)
    return Rollout(
        prompt=Prompt(problem_id=problem.id, text=problem.question.text, token_ids=tuple(range(200))),
        token_ids=tuple(ids),
        text=text,
        token_ends=ends,
        sampler_logprobs=tuple(np.array([-choose.random() for _ in ids], dtype=np.float32).tolist()),  # as engines do
        finish_reason="stop",
    )


def written(tokenizer: PreTrainedTokenizerBase, size: Size, *, seed: int) -> list[int]:
    """T ids of a text that opens K segments by `###` and ends in an answer."""
    answer = list(tokenizer.encode(f"\nThe answer is \\boxed{{{seed % 3}}}."))
    each = (size.tokens - len(answer)) // size.segments
    ids: list[int] = []
    for number in range(size.segments):
        last = number == size.segments - 1
        step = tokenizer.encode(f"\n### Step {number + 1}\n" + sentences(seed + number, each // 20 + 2))
        ids += step[: size.tokens - len(answer) - len(ids) if last else each]
    return ids + [ids[-1]] * (size.tokens - len(answer) - len(ids)) + answer


def sentences(seed: int, count: int) -> str:
    """`count` sentences with numbers of their own."""
    choose = random.Random(seed)
    numbers = [[choose.randrange(2, 9999) for _ in range(3)] for _ in range(count)]
    return "".join(SENTENCES[place % len(SENTENCES)].format(*own) for place, own in enumerate(numbers))
