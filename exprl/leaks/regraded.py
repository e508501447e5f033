"""Would a judge have scored otherwise had another number been planted? Where it would not, no score told of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from exprl.leaks.channel import RESOLUTION
from exprl.rewards.base import Reward
from exprl.rewards.checks import check_rewards
from exprl.rollouts.stored import StoredGroup
from exprl.types import AnyReward, Judgement, Problem, RolloutGroup, SegmentRewards

TOLERANCE = 10.0**-RESOLUTION
"""How far a score may move and count as the same."""


@dataclass(frozen=True, kw_only=True)
class Regraded:
    """Judgements by the problem whose reference they go by: all, and those that another number would have made others.

    Attributes:
        compared: how many were.
        moved: how many of these came out otherwise.
    """

    compared: Mapping[str, int] = field(default_factory=dict)
    moved: Mapping[str, int] = field(default_factory=dict)

    def __add__(self, other: Regraded) -> Regraded:
        """Both together."""
        compared, moved = Counter(self.compared), Counter(self.moved)
        compared.update(other.compared)
        moved.update(other.moved)
        return Regraded(compared=dict(compared), moved=dict(moved))


def regraded(
    groups: Sequence[StoredGroup], decoys: Mapping[str, Problem], reward: Reward, graded_by: Mapping[str, str]
) -> Regraded:
    """Grade stored rollouts once more where facts have another number, and compare with the scores that they had.

    Args:
        groups: the rollouts.
        decoys: their problems by id, with these numbers.
        reward: the run's, which has no other problems either.
        graded_by: see `channel_of`.

    Raises:
        RewardError: the reward gives what is none.
    """
    asked = [RolloutGroup(problem=decoys[group.problem_id], rollouts=group.rollouts) for group in groups]
    rewards = reward.score(asked)
    check_rewards(asked, rewards, "the run's reward")
    found = Regraded()
    for group, new in zip(groups, rewards, strict=True):
        pairs = [pair for both in zip(group.rewards or (), new, strict=True) for pair in pairs_of(*both)]
        source = graded_by[group.problem_id]
        found += Regraded(
            compared={source: len(pairs)}, moved={source: sum(differ(before, after) for before, after in pairs)}
        )
    return found


def pairs_of(before: AnyReward, after: AnyReward) -> list[tuple[Judgement | None, Judgement | None]]:
    """The judgements of two rewards of a rollout on the same of its prefixes, however each was cut; None: not asked."""
    old, new = by_place(before), by_place(after)
    return [(old.get(place), new.get(place)) for place in sorted({*old, *new})]


def by_place(reward: AnyReward) -> dict[int, Judgement]:
    """Every judgement that was asked for by the token at which what it is about ends; by number where none says it."""
    if isinstance(reward, SegmentRewards) and reward.curve is not None:
        return dict(zip(reward.curve.ends, reward.curve.judgements, strict=True))
    if isinstance(reward, SegmentRewards) and len(reward.segments) == len(reward.judgements):
        return {segment.end: own for segment, own in zip(reward.segments, reward.judgements, strict=True)}
    return dict(enumerate(reward.judgements))


def differ(before: Judgement | None, after: Judgement | None) -> bool:
    """Whether two judgements say something else, to the resolution that counts.

    >>> differ(Judgement(score=2.0), Judgement(score=2.004)), differ(Judgement(score=2.0), Judgement(score=3.0))
    (False, True)
    """
    if before is None or after is None or before.score is None or after.score is None:
        return before is None or after is None or before.status != after.status
    return abs(before.score - after.score) > TOLERANCE
