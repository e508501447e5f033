"""Problems, rollouts and scored groups in a line each, for tests of what is made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

from exprl.types import (
    Advantages,
    AnyReward,
    FinishReason,
    Hidden,
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


def problem_of(problem_id: str = "p", *, answer: str | None = "4", steps: Sequence[str] = ()) -> Problem:
    """A problem with this answer; its steps, one a line, are its reference."""
    return Problem(
        question=Question(problem_id=problem_id, text="?"),
        scaffold=Scaffold(
            reference=Hidden("\n".join(steps)) if steps else None,
            steps=Hidden(tuple(steps)) if steps else None,
            answer=None if answer is None else Hidden(answer),
        ),
    )


def rollout_of(*tokens: str, finish: FinishReason = "stop", prompt: Prompt | None = None) -> Rollout:
    """One token a string; "" is a token without width, such as the end of sequence."""
    return Rollout(
        prompt=prompt or Prompt(problem_id="p", text="?", token_ids=(1,)),
        token_ids=tuple(range(len(tokens))),
        text="".join(tokens),
        token_ends=tuple(accumulate(map(len, tokens))),
        sampler_logprobs=(-1.0,) * len(tokens),
        finish_reason=finish,
    )


def group_of(problem: Problem, *rollouts: Rollout) -> RolloutGroup:
    """A group of these rollouts, as those of the problem."""
    own = (replace(one, prompt=replace(one.prompt, problem_id=problem.id)) for one in rollouts)
    return RolloutGroup(problem=problem, rollouts=tuple(own))


def scored_of(
    rollouts: Sequence[Rollout], *, problem: Problem | None = None, rewards: Sequence[AnyReward] | None = None
) -> ScoredGroup:
    """A group with these rewards, 0 by default, whose advantages are 0."""
    zeros = [
        Advantages(segments=(Segment(0, len(own)),) if len(own) else (), values=(0.0,) * bool(own)) for own in rollouts
    ]
    return ScoredGroup(
        group=group_of(problem or problem_of(), *rollouts),
        rewards=tuple(rewards or [RolloutReward(value=0.0, length=len(rollout)) for rollout in rollouts]),
        advantages=tuple(zeros),
    )
