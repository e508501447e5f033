"""A reward as plain values, of which files of rollouts and checkpoints are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from exprl.types import AnyReward, Curve, Judgement, RolloutReward, Segment, SegmentRewards


def reward_node(reward: AnyReward) -> dict[str, Any]:
    """What stands for a reward."""
    judgements = [vars(judgement) for judgement in reward.judgements]
    if isinstance(reward, RolloutReward):
        own: dict[str, Any] = {"of": "rollout", "value": reward.value}
    else:
        own = {"of": "segments", "ends": [s.end for s in reward.segments], "values": reward.values}
        if reward.curve is not None:
            own["curve"] = _curve_node(reward.curve)
    return {**own, "cut_off": reward.cut_off, "judgements": judgements}


def _curve_node(curve: Curve) -> dict[str, Any]:
    failed = {end: one for end, one in zip(curve.ends, curve.judgements, strict=True) if one.score is None}
    return {
        "ends": curve.ends,
        "scores": curve.scores,
        "failed": {str(end): {"status": one.status, "rationale": one.rationale} for end, one in failed.items()},
    }


def reward_of(node: Mapping[str, Any], length: int) -> AnyReward:
    """The reward of a rollout of `length` tokens that a node stands for."""
    judgements = tuple(Judgement(**{**one, "probabilities": tuple(one["probabilities"])}) for one in node["judgements"])
    if node["of"] == "rollout":
        return RolloutReward(value=node["value"], length=length, judgements=judgements, cut_off=node["cut_off"])
    segments, values = segments_to(node["ends"]), tuple(node["values"])
    curve = None if node.get("curve") is None else _curve(node["curve"])
    return SegmentRewards(segments=segments, values=values, judgements=judgements, cut_off=node["cut_off"], curve=curve)


def _curve(node: Mapping[str, Any]) -> Curve:
    judgements = [
        Judgement(score=score) if score is not None else Judgement(score=None, **node["failed"][str(end)])
        for end, score in zip(node["ends"], node["scores"], strict=True)
    ]
    return Curve(ends=tuple(node["ends"]), judgements=tuple(judgements))


def segments_to(ends: Sequence[int]) -> tuple[Segment, ...]:
    """Segments that follow each other from token 0 on and end there."""
    return tuple(Segment(start, end) for start, end in zip([0, *ends], ends, strict=False))
