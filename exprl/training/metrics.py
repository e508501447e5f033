"""What is logged each step, as pure functions of the scored groups."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from exprl.advantages import has_signal
from exprl.domains import label_of
from exprl.evaluation.behaviours import BehaviourRates
from exprl.evaluation.detectors import BEHAVIOUR_NAMES
from exprl.evaluation.dynamics import OutcomeDynamics
from exprl.types import JUDGEMENT_STATUSES, AnyReward, Judgement, Rollout, RolloutReward, ScoredGroup

ROLLOUTS = "rollouts"
"""Beside the behaviours' names, of how many rollouts they are counted."""


def final_value(reward: AnyReward) -> float | None:
    """What the whole rollout came to: its reward, or the last segment's; None if it does not count."""
    if isinstance(reward, RolloutReward):
        return reward.value
    if reward.cut_off:
        return 0.0
    return reward.values[-1] if reward.valid and reward.values else None


def reward_metrics(scored: Sequence[ScoredGroup]) -> dict[str, float]:
    """Mean and spread of the rollouts' (final) rewards, and the variance within groups."""
    groups = [[v for v in map(final_value, s.rewards) if v is not None] for s in scored]
    values = torch.tensor([v for group in groups for v in group], dtype=torch.float64)
    variances = [torch.tensor(group, dtype=torch.float64).var(correction=0).item() for group in groups if group]
    rewards = [reward for s in scored for reward in s.rewards]
    return {
        "reward/mean": values.mean().item() if len(values) else float("nan"),
        "reward/std": values.std(correction=0).item() if len(values) else float("nan"),
        "reward/within_group_variance": sum(variances) / len(variances) if variances else float("nan"),
        "reward/invalid_rate": sum(not reward.valid for reward in rewards) / len(rewards),
        "reward/segments": sum(_segment_count(reward) for reward in rewards) / len(rewards),
        "reward/single_segment_rate": sum(_segment_count(reward) <= 1 for reward in rewards) / len(rewards),
    }


def staleness(scored: Sequence[ScoredGroup], version: int) -> float:
    """Steps that the policy which learns is ahead of those that sampled, mean over the rollouts of all ranks."""
    ages = [version - rollout.policy_version for s in scored for rollout in s.group.rollouts]
    return sum(ages) / len(ages)


def judge_metrics(scored: Sequence[ScoredGroup], who: Sequence[str] = ()) -> dict[str, float]:
    """Rate of each judgement status and the histogram of (rounded) scores; empty without judgements.

    Args:
        scored: a step's groups.
        who: what the judgements of each group are called, `judge` or `program` (`Reward.judged_as`); empty: the judge's
            all.
    """
    judgements: dict[str, list[Judgement]] = {}
    for name, s in zip(who or ["judge"] * len(scored), scored, strict=True):
        judgements.setdefault(name, []).extend(j for reward in s.rewards for j in reward.asked)
    return {
        f"{name}/{figure}": value
        for name, own in sorted(judgements.items())
        if own
        for figure, value in _judgement_figures(own).items()
    }


def _judgement_figures(judgements: Sequence[Judgement]) -> dict[str, float]:
    statuses = Counter(j.status for j in judgements)
    scores = Counter(round(j.score) for j in judgements if j.score is not None)
    graded = max(sum(scores.values()), 1)
    return {
        "count": float(len(judgements)),
        **{f"{status}_rate": statuses[status] / len(judgements) for status in JUDGEMENT_STATUSES},
        **{f"score_{likert}": scores[likert] / graded for likert in range(1, 6)},
    }


def rollout_metrics(scored: Sequence[ScoredGroup]) -> dict[str, float]:
    """Response length in tokens, the share cut off at the limit, and how uncertain the policy was as it sampled."""
    rollouts = [rollout for s in scored for rollout in s.group.rollouts]
    lengths = [len(rollout) for rollout in rollouts]
    return {
        "rollout/length_mean": sum(lengths) / len(lengths),
        "rollout/length_max": float(max(lengths)),
        "rollout/cut_off_rate": sum(rollout.finish_reason == "length" for rollout in rollouts) / len(rollouts),
        "rollout/entropy": sampled_entropy(rollouts),
    }


def sampled_entropy(rollouts: Sequence[Rollout]) -> float:
    """Nats a token: what was sampled says of the entropy of what it was sampled from; NaN without a token.

    A token's -log-prob has the entropy as its mean, so that the sum over rollouts estimates the sum of their tokens'
    entropies without bias, without another pass through the model. It is of the distribution sampled from: tempered,
    and of what top-p and top-k leave.
    """
    tokens = sum(map(len, rollouts))
    sums = [float(np.sum(rollout.sampler_logprobs, dtype=np.float64)) for rollout in rollouts]
    return -math.fsum(sums) / tokens if tokens else float("nan")


def outcome_metrics(problem_ids: Sequence[str], correct: Sequence[Sequence[bool]]) -> dict[str, float]:
    """Shares of a step's prompts whose rollouts are all wrong, all right, or mixed; one list of verdicts a prompt.

    Prompts without verdicts are left out; where there are no others, there are no figures.

    >>> outcome_metrics(["a", "b", "c"], [[False, False], [True, False], []])["outcome/mixed"]
    0.5
    """
    known = [(problem_id, verdicts) for problem_id, verdicts in zip(problem_ids, correct, strict=True) if verdicts]
    if not known:
        return {}
    dynamics = OutcomeDynamics(sync_on_compute=False)  # the step's prompts of all ranks are here
    dynamics.update(*zip(*known, strict=True))
    shares = dynamics.compute()
    del shares["unlocked_prompts"]  # the run's, not the step's
    return {f"outcome/{name}": share.item() for name, share in shares.items()}


_JUDGED = tuple(
    f"{name}/{figure}"
    for name in ("judge", "program")
    for figure in ("count", "ok_rate", *(f"score_{likert}" for likert in range(1, 6)))
)

BY_DOMAIN = (
    *("reward/mean", "reward/within_group_variance", "reward/segments", "update/dropped_groups"),
    *("outcome/accuracy", "outcome/all_0", "outcome/all_1", "outcome/mixed"),
    *("rollout/length_mean", "rollout/cut_off_rate", *_JUDGED),
)
"""What is logged of each domain as well, where a run has several: how far it is, and whether it has a signal."""


def domain_metrics(
    scored: Sequence[ScoredGroup],
    correct: Sequence[Sequence[bool]],
    who: Sequence[str] = (),
    *,
    tolerance: float,
) -> dict[str, float]:
    """The figures of `BY_DOMAIN` over the groups of each domain alone, as `reward/mean/math`.

    Args:
        scored: a step's groups.
        correct: for each the verdicts on its rollouts, or none; empty: there are none at all.
        who: what the judgements of each are called, see `judge_metrics`.
        tolerance: up to which advantages are no signal (`update.signal_tolerance`).
    """
    places: dict[str, list[int]] = {}
    for place, s in enumerate(scored):
        places.setdefault(label_of(s.group.problem.domain), []).append(place)
    found: dict[str, float] = {}
    for domain in sorted(places):
        own = [scored[place] for place in places[domain]]
        verdicts = [correct[place] for place in places[domain]] if correct else []
        called = [who[place] for place in places[domain]] if who else []
        dropped = sum(not has_signal(s.advantages, tolerance) for s in own)
        figures = {
            **reward_metrics(own),
            **rollout_metrics(own),
            **judge_metrics(own, called),
            "update/dropped_groups": float(dropped),
        }
        if verdicts:
            figures |= outcome_metrics([s.group.problem.id for s in own], verdicts)
        found |= {f"{name}/{domain}": figures[name] for name in BY_DOMAIN if name in figures}
    return found


def behaviour_counts(scored: Sequence[ScoredGroup]) -> dict[str, float]:
    """How many of these rollouts show each behaviour, by their words, and how many there are: to be added up."""
    rates = BehaviourRates(sync_on_compute=False)
    rates.update([rollout.text for s in scored for rollout in s.group.rollouts])
    shown = dict(zip(BEHAVIOUR_NAMES, map(float, rates.shown), strict=True))
    return {**shown, ROLLOUTS: float(sum(len(s.group.rollouts) for s in scored))}


def behaviour_metrics(counts: Mapping[str, float]) -> dict[str, float]:
    """Lexical rates of a step's rollouts, from the sum of all ranks' counts.

    >>> behaviour_metrics({"verification": 1.0, "rollouts": 4.0})
    {'behaviour/verification_rate': 0.25}
    """
    shown = {name: count for name, count in counts.items() if name != ROLLOUTS}
    return {f"behaviour/{name}_rate": count / counts[ROLLOUTS] for name, count in shown.items()}


def _segment_count(reward: AnyReward) -> int:
    return 1 if isinstance(reward, RolloutReward) else len(reward.segments)


def update_metrics(totals: Mapping[str, float], statistics: Sequence[str]) -> dict[str, float]:
    """Token sums as token means, update sums as update means; NaN for a step without an update.

    >>> update_metrics({"tokens": 4.0, "updates": 2.0, "loss": 2.0, "grad_norm": 3.0, "lr": 0.2}, ["loss"])
    {'update/loss': 0.5, 'update/grad_norm': 1.5, 'update/lr': 0.1}
    """
    tokens, updates = totals.get("tokens", 0.0), max(totals.get("updates", 1.0), 1.0)
    means = {name: totals[name] / tokens if tokens and name in totals else float("nan") for name in statistics}
    per_update = {name: totals.get(name, float("nan")) / updates for name in ("grad_norm", "lr")}
    return {f"update/{name}": value for name, value in {**means, **per_update}.items()}
