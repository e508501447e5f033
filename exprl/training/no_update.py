"""Why a step made no update, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from exprl.terminal.wording import counted
from exprl.types import AnyReward, Rollout, RolloutReward, ScoredGroup

IN_A_ROW = 3
"""Steps without an update, one after the other, at which a run warns: one is nothing unusual."""

_EASIER = (
    "easier problems, more rollouts a prompt (rollout.samples_per_prompt), problems that are solved now and then "
    "(`exprl mine CONFIG --output FILE.jsonl --min-rate 0.05 --max-rate 0.95`), fresh prompts in the place of groups "
    "without signal (a larger update.dynamic_sampling), or a denser reward (reward.name=outcome or process)"
)
_HARDER = "harder problems: the policy solves these (`exprl mine CONFIG --output FILE.jsonl --max-rate 0.95`)"
_LONGER = (
    "a larger rollout.max_new_tokens, a prompt that asks for shorter answers, or reward.clip_length=false, by which "
    "rollouts that are cut off count all the same"
)
_REPLIES = "a look at them (exprl rollouts RUN), and at the prompt and its chat template (prompt)"


IN_GENERAL = f"What may help: {_EASIER}; where rollouts are cut off, {_LONGER}."
"""For a run as a whole, whose steps may have had several reasons."""


@dataclass(frozen=True)
class NoUpdate:
    """A step without an update: the reason in a few words, and what may help."""

    reason: str
    advice: str


def no_update(scored: Sequence[ScoredGroup], dropped: int, rounds: int = 0) -> NoUpdate:
    """The reason for a step whose groups on all ranks, `dropped` of them without a signal, gave no update at all.

    They are those that stayed after so many `rounds` of fresh prompts (`update.dynamic_sampling`).

    The nearest cause is named: nothing was written, everything was cut off, or the rewards are all the same. Where some
    were cut off and the others earned the same, the advice is for the larger part.
    """
    rollouts = [rollout for s in scored for rollout in s.group.rollouts]
    rewards = [reward for s in scored for reward in s.rewards]
    where = f"{dropped} of {len(scored)} groups without signal{_after(rounds)}"
    if not any(map(len, rollouts)):
        return NoUpdate(f"all {len(rollouts)} rollouts are empty", _REPLIES)
    cut = sum(_earned_nothing(reward, rollout) for reward, rollout in zip(rewards, rollouts, strict=True))
    if cut == len(rollouts):
        return NoUpdate(f"{where}, all {cut} rollouts were cut off at the length limit", _LONGER)
    if dropped < len(scored):
        return NoUpdate(f"{where}, and in the others no rollout that counts has a token", _REPLIES)
    counting = [r for r, rollout in zip(rewards, rollouts, strict=True) if not _earned_nothing(r, rollout)]
    values = {value for reward in counting for value in _values(reward)}
    alike = "the rewards within each are alike" if len(values) != 1 else f"every reward is {min(values):.3g}"
    advice = _HARDER if values == {1.0} else _EASIER
    if not cut:
        return NoUpdate(f"{where}, {alike}", advice)
    rest = len(rollouts) - cut
    of_the_rest = alike.replace("every reward", f"the reward of the other {rest if rest > 1 else 'one'}")
    were = f"{cut} of {len(rollouts)} rollouts {'was' if cut == 1 else 'were'} cut off at the length limit"
    return NoUpdate(f"{where}, {were}, {of_the_rest}", _LONGER if cut >= rest else advice)


def _after(rounds: int) -> str:
    return f" after {counted(rounds, 'round')} of fresh prompts" if rounds else ""


def _earned_nothing(reward: AnyReward, rollout: Rollout) -> bool:
    """Whether a rollout earned nothing for having been cut off."""
    return reward.cut_off and rollout.finish_reason == "length"


def _values(reward: AnyReward) -> list[float]:
    values = (reward.value,) if isinstance(reward, RolloutReward) else reward.values
    return [value for value in values if value is not None]
