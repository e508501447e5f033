"""One step's problems, rollouts and judge for `host.py`: texts of a real tokenizer, and a model that costs nothing."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

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

    identity = "costs nothing"

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self._tokens = JudgeTokenizer(tokenizer, "costs nothing")

    @classmethod
    def open(cls, config: Any, model: JudgeModel, resources: Resources) -> CostlessBackend:
        """On the tokenizer of the policy."""
        del config
        return cls(resources.need_policy(model.judge).tokenizer)

    def room(self, prompt: JudgePrompt) -> tuple[int | None, int | None]:
        """Any prompt fits."""
        return len(self._tokens.encode(prompt)), None

    def _submit(self, query: Query) -> Reply:
        ids, _ = self.encoded(query)
        weights = [1 + len(ids) * prime % 97 for prime in (3, 5, 7, 11, 13)]
        return Reply(probabilities=tuple(weight / sum(weights) for weight in weights))

    def _answer(self, query: Query, work: Reply) -> Reply:
        return work


def groups_of(tokenizer: PreTrainedTokenizerBase, size: Size, *, first: int = 0) -> list[RolloutGroup]:
    """The step's groups, numbered from `first`; no two rollouts are alike."""
    groups = []
    for start in range(first, first + size.rollouts, size.group):
        problem = problem_of(start)
        count = min(size.group, first + size.rollouts - start)
        rollouts = tuple(rollout_of(tokenizer, problem, size, seed=start + number) for number in range(count))
        groups.append(RolloutGroup(problem=problem, rollouts=rollouts))
    return groups


def problem_of(seed: int) -> Problem:
    """With a reference solution of about a thousand tokens."""
    return Problem(
        question=Question(problem_id=f"problem-{seed}", text="Find all n for which " + sentences(seed, 4)),
        scaffold=Scaffold(reference=Hidden(sentences(seed + 1, 24)), answer=Hidden(str(seed))),
    )


def rollout_of(tokenizer: PreTrainedTokenizerBase, problem: Problem, size: Size, *, seed: int) -> Rollout:
    """A rollout of exactly T tokens that opens K segments by `###` and ends in an answer."""
    answer = list(tokenizer.encode(f"\nThe answer is \\boxed{{{seed % 3}}}."))
    each = (size.tokens - len(answer)) // size.segments
    ids: list[int] = []
    for number in range(size.segments):
        last = number == size.segments - 1
        step = tokenizer.encode(f"\n### Step {number + 1}\n" + sentences(seed + number, each // 20 + 2))
        ids += step[: size.tokens - len(answer) - len(ids) if last else each]
    ids += [ids[-1]] * (size.tokens - len(answer) - len(ids)) + answer
    text, ends = decode_with_ends(tokenizer, ids)
    choose = random.Random(seed)
    prompt = Prompt(problem_id=problem.id, text=problem.question.text, token_ids=tuple(range(200)))
    return Rollout(
        prompt=prompt,
        token_ids=tuple(ids),
        text=text,
        token_ends=ends,
        sampler_logprobs=tuple(-choose.random() for _ in ids),
        finish_reason="stop",
    )


def sentences(seed: int, count: int) -> str:
    """`count` sentences with numbers of their own."""
    choose = random.Random(seed)
    numbers = [[choose.randrange(2, 9999) for _ in range(3)] for _ in range(count)]
    return "".join(SENTENCES[place % len(SENTENCES)].format(*own) for place, own in enumerate(numbers))
