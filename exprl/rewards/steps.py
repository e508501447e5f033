"""What is asked of a whole step's rewards, each of the reward that gave them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from exprl.component import Component
from exprl.errors import JudgeError
from exprl.rewards.base import Reward
from exprl.rewards.checks import check_any, without_words
from exprl.rollouts.nodes import reward_node, reward_of
from exprl.types import AnyReward, Problem, Scorer

Rewards = Sequence[tuple[AnyReward, ...]]


FEW = 32
"""Rollouts of a route: of fewer, one failed judgement is a large share, and says little of the judge."""


class StepChecks:
    """Stops a run at a step that cannot be learned from, or a domain's part of it (`Reward.check_step`).

    Where a step holds few rollouts of a route, those of the steps before count along, and as long as there have been
    few in all it is not stopped for that route. It is where the whole step has no reward.

    A run that goes on remembers them. Only its first step is stopped by none of them: they may be why the run stopped,
    and what was wrong may have been mended since.
    """

    def __init__(self, reward: Reward) -> None:
        self._reward = reward
        self._recent: dict[str, list[tuple[AnyReward, ...]]] = {}
        self._resumed = False

    def check(self, problems: Sequence[Problem], rewards: Rewards) -> None:
        """Raise `JudgeError`.

        Args:
            problems: those of the step, of all ranks.
            rewards: for each problem those of its rollouts.
        """
        for key, scorer, own in _shares(self._reward, problems, rewards):
            asked = self._with_recent(key, own) if key else own
            try:
                if own and (not key or sum(map(len, asked)) >= FEW):
                    scorer.check_step(asked)
            except JudgeError as error:
                if not key:
                    raise
                if self._resumed and len(asked) > len(own):
                    self._recent.pop(key)
                    continue
                said = str(error) if len(asked) == len(own) else str(error).replace("of this step", "of the last steps")
                raise JudgeError(of_route(said, key)) from error
        check_any(rewards)  # what is wrong with one reward says more

    def count(self, problems: Sequence[Problem], rewards: Rewards) -> None:
        """Remember a step, given as to `check`, that stopped nothing."""
        for key, _, own in _shares(self._reward, problems, rewards):
            if key:
                self._recent[key] = [tuple(map(without_words, group)) for group in self._with_recent(key, own)]
        self._resumed = False

    def state_dict(self) -> dict[str, Any]:
        """What is remembered, as plain values."""
        return {
            key: [[{**reward_node(reward), "length": reward.length} for reward in group] for group in groups]
            for key, groups in self._recent.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`, in a run that goes on."""
        self._recent = {
            key: [tuple(reward_of(node, node["length"]) for node in group) for group in groups]
            for key, groups in state.items()
        }
        self._resumed = True

    def _with_recent(self, key: str, own: list[tuple[AnyReward, ...]]) -> list[tuple[AnyReward, ...]]:
        """A route's groups with as many before them as make up `FEW` rollouts, or all of them."""
        every = [*self._recent.get(key, ()), *own]
        sizes = [len(group) for group in every]
        first = max((place for place in range(len(every)) if sum(sizes[place:]) >= FEW), default=0)
        return every[min(first, len(every) - len(own)) :]


def judged_as(reward: Reward, problems: Sequence[Problem]) -> list[str]:
    """What the judgements on each problem's rollouts are called (`Reward.judged_as`)."""
    found = {place: scorer.judged_as for _, scorer, places in reward.scorers(problems) for place in places}
    return [found[place] for place in range(len(problems))]


def scorers_of(reward: Reward, problems: Sequence[Problem]) -> list[Scorer]:
    """Who gives each problem's rollouts their rewards."""
    found = {
        place: Scorer(route=key, reward=_name(scorer), judge=_judge_of(scorer))
        for key, scorer, places in reward.scorers(problems)
        for place in places
    }
    return [found[place] for place in range(len(problems))]


def _judge_of(scorer: Reward) -> str | None:
    """Its judge, and what that stands around."""
    names, judge = [], getattr(scorer, "judge", None)
    while isinstance(judge, Component):
        names.append(_name(judge))
        judge = getattr(judge, "around", None)
    return " around ".join(names) or None


def _name(component: Component) -> str:
    return component.registered_name or type(component).__name__


def advice_on(reward: Reward, problems: Sequence[Problem], rewards: Rewards) -> str | None:
    """The first thing to change about a step that can be learned from (`Reward.advice`); None: nothing seen."""
    for key, scorer, own in _shares(reward, problems, rewards):
        if (advice := scorer.advice(own)) is not None:
            return of_route(advice, key) if key else advice
    return None


def of_route(message: str, key: str) -> str:
    """What one of several rewards says, with where it stands: the options that it names are its own.

    >>> of_route("set reward.slicer.window.", "domains.math")
    'reward.domains.math: set reward.domains.math.slicer.window.'
    """
    return f"reward.{key}: " + re.sub(r"\breward\.(?=[a-z])", f"reward.{key}.", message)


def _shares(
    reward: Reward, problems: Sequence[Problem], rewards: Rewards
) -> Iterator[tuple[str, Reward, list[tuple[AnyReward, ...]]]]:
    for key, scorer, places in reward.scorers(problems):
        yield key, scorer, [rewards[place] for place in places]
