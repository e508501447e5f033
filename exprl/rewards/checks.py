"""What rewards must be before anything is learned from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from exprl.errors import JudgeError, RewardError
from exprl.invariants import shown
from exprl.types import AnyReward, Judgement, Rollout, RolloutGroup, RolloutReward, SegmentRewards

SHOWN_REPLIES = 3
SHOWN_CHARACTERS = 300

GroupRewards = tuple[AnyReward, ...]


def check_rewards(groups: Sequence[RolloutGroup], rewards: Sequence[GroupRewards], who: str) -> None:
    """See that `rewards`, which `who` gave for `groups`, hold one of each rollout, over all of its tokens.

    What a reward must be itself, `RolloutReward` and `SegmentRewards` see to.

    Raises:
        RewardError: naming the reward, and the first rollout that is not so.
    """
    if not isinstance(rewards, (list, tuple)) or len(rewards) != len(groups):
        found = f"rewards of {len(rewards)} groups" if isinstance(rewards, (list, tuple)) else shown(rewards)
        raise RewardError(f"{who} returned {found} for {len(groups)}. Give a tuple of rewards for each group.")
    for group, given in zip(groups, rewards, strict=True):
        of = f"of problem {group.problem.id!r}"
        if not isinstance(given, (list, tuple)) or len(given) != len(group.rollouts):
            found = f"{len(given)} rewards" if isinstance(given, (list, tuple)) else shown(given)
            raise RewardError(f"{who} returned {found} for the {len(group.rollouts)} rollouts {of}. Give one each.")
        for number, (rollout, reward) in enumerate(zip(group.rollouts, given, strict=True)):
            problem = _fault(rollout, reward)
            if problem is not None:
                raise RewardError(f"{who}, rollout {number} {of}: {problem}")


def check_failures(rewards: Sequence[GroupRewards], limit: float) -> None:
    """See that of a whole step, all ranks together, enough can be learned from.

    Args:
        rewards: those of every group of the step.
        limit: the largest share of judgements that may fail, and of rollouts that may be lost: those with a failed
            judgement, and those without a reward for which no judgement says why.

    Raises:
        JudgeError: more failed, or no rollout has a reward; shows counts and the last replies.
    """
    every = [reward for group in rewards for reward in group]
    judgements = [judgement for reward in every for judgement in reward.asked]
    failed = [judgement for judgement in judgements if judgement.status != "ok"]
    lost = [reward for reward in every if any(judgement.status != "ok" for judgement in reward.judgements)]
    unexplained = [reward for reward in every if not reward.valid and not reward.judgements]
    if len(unexplained) > limit * len(every):
        raise JudgeError(
            f"{len(unexplained)} of {len(every)} rollouts of this step have no reward, and no judgement says why. A "
            "reward that asks judges gives their judgements along (judgements=...)."
        )
    if len(failed) > limit * len(judgements):
        raise _too_many(f"{len(failed)} of {len(judgements)} judgements", limit, failed)
    if len(lost) > limit * len(every):
        raise _too_many(
            f"{len(failed)} of {len(judgements)} judgements, and with them {len(lost)} of {len(every)} rollouts,",
            limit,
            failed,
        )
    check_any(rewards)


def check_any(rewards: Sequence[GroupRewards]) -> None:
    """Raise `JudgeError` where no rollout of a step has a reward."""
    every = [reward for group in rewards for reward in group]
    if every and not any(reward.valid for reward in every):
        judgements = [judgement for reward in every for judgement in reward.asked]
        raise _nothing_left(every, judgements, [judgement for judgement in judgements if judgement.status != "ok"])


def without_words(reward: AnyReward) -> AnyReward:
    """Of its judgements the numbers, and of those that failed what an error message shows."""
    bare = replace(reward, judgements=tuple(map(_numbers_of, reward.judgements)))
    if not isinstance(bare, SegmentRewards) or bare.curve is None:
        return bare
    curve = replace(bare.curve, judgements=tuple(map(_numbers_of, bare.curve.judgements)))
    return replace(bare, curve=curve)


def _fault(rollout: Rollout, reward: object) -> str | None:
    if not isinstance(reward, (RolloutReward, SegmentRewards)):
        return (
            f"a {type(reward).__name__} is no reward. Give RolloutReward(value=…, length=…), a value in [0, 1] and the "
            "rollout's number of tokens, or SegmentRewards."
        )
    if reward.length != len(rollout):
        return f"its reward is about {reward.length} tokens, but it has {len(rollout)}."
    return None


def _too_many(what: str, limit: float, failed: Sequence[Judgement]) -> JudgeError:
    counts = ", ".join(f"{count} {status}" for status, count in Counter(j.status for j in failed).most_common())
    return JudgeError(
        f"{what} of this step failed ({counts}), more than reward.max_failure_rate {limit:.0%} allows. "
        f"{_last_replies(failed)}\n"
        "A stronger judge, reward.judge.scoring=expected or more reward.judge.max_new_tokens may help in "
        "a new run; --resume takes a higher reward.max_failure_rate."
    )


def _nothing_left(
    rewards: Sequence[AnyReward], judgements: Sequence[Judgement], failed: Sequence[Judgement]
) -> JudgeError:
    scores = ", ".join(f"{judgement.score:g}" for judgement in judgements[-8:] if judgement.score is not None)
    why = (
        f"{len(failed)} of {len(judgements)} judgements failed. {_last_replies(failed)}"
        if failed
        else f"reward.normalization drops every score of it (the last: {scores or 'none'})."
    )
    return JudgeError(
        f"none of the {len(rewards)} rollouts of this step has a reward, so nothing can be learned: {why}"
    )


def _last_replies(failed: Sequence[Judgement]) -> str:
    replies = (f"  [{j.status}] {j.rationale.strip()[-SHOWN_CHARACTERS:] or '(no reply)'}" for j in failed)
    return "The last replies:\n" + "\n".join(list(replies)[-SHOWN_REPLIES:])


def _numbers_of(judgement: Judgement) -> Judgement:
    if judgement.status == "ok":
        return replace(judgement, rationale="", probabilities=())
    return replace(judgement, probabilities=(), rationale=judgement.rationale.strip()[-SHOWN_CHARACTERS:])
