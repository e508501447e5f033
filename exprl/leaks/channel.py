"""How many bits a judge's scores can have told of a reference: at most what the scores themselves hold.

Under `rl` nothing else goes from a reference to the policy: what it learns of a secret, it learns from the scores of
its own rollouts, and I(secret; policy) <= H(scores) <= the sum of H over judgements.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from exprl.rollouts.stored import StoredGroup
from exprl.types import Judgement

RESOLUTION = 2
"""Decimals at which a score counts: what a judge's expected scores say beyond them is not in the bound."""


@dataclass(frozen=True, kw_only=True)
class Channel:
    """What the scores of a run can have told.

    Attributes:
        judgement_bits: by route of the run's reward (`Scorer.route`), the entropy of one of its judgements, a score or
            that it failed, over all of the run.
        judgements: by route how many there are by each problem's reference.
        steps: of the run whose rollouts are kept.
    """

    judgement_bits: Mapping[str, float]
    judgements: Mapping[str, Mapping[str, int]]
    steps: int

    def bits(self, problem_id: str) -> float:
        """The most that judgements can have told of a problem's reference."""
        return sum(bits * self.judgements[route].get(problem_id, 0) for route, bits in self.judgement_bits.items())

    def to_json(self, problem_ids: Collection[str]) -> dict[str, Any]:
        """With the bits of each of some problems."""
        counts = {route: sum(own.values()) for route, own in self.judgements.items()}
        return {
            "judgement_bits": {_key(route): bits for route, bits in self.judgement_bits.items()},
            "judgements": {_key(route): count for route, count in counts.items()},
            "bits": sum(bits * counts[route] for route, bits in self.judgement_bits.items()),
            "steps": self.steps,
            "problems": {problem_id: self.bits(problem_id) for problem_id in problem_ids},
        }


def _key(route: str) -> str:
    return ".".join(filter(None, ("reward", route)))


def channel_of(steps: Mapping[int, Iterable[StoredGroup]], graded_by: Mapping[str, str]) -> Channel:
    """The channel of a run's kept rollouts.

    All judgements count that were asked for: those between the ends of segments decide where a `ScoredSlicer` cuts, and
    with that what each token earns. The verifier's verdicts are no part of it: they are of the final answer, which no
    fact is in.

    Args:
        steps: the rollouts.
        graded_by: by each problem's id that of the one whose reference the judge reads for it.
    """
    kinds: dict[str, Counter[Hashable]] = defaultdict(Counter)
    judgements: dict[str, Counter[str]] = defaultdict(Counter)
    for step in steps.values():
        for group in step:
            route = group.scorer.route if group.scorer is not None else ""
            asked = [one for reward in group.rewards or () for one in reward.asked]
            kinds[route].update(map(kind_of, asked))
            judgements[route][graded_by.get(group.problem_id, group.problem_id)] += len(asked)
    bits = {route: entropy(found.values()) for route, found in kinds.items()}
    return Channel(judgement_bits=bits, judgements=judgements, steps=len(steps))


def kind_of(judgement: Judgement) -> Hashable:
    """What a judgement says, to the resolution that counts; that it failed is something, too."""
    return judgement.status if judgement.score is None else round(judgement.score, RESOLUTION)


def entropy(counts: Iterable[int]) -> float:
    """Bits, from counts of each kind, with the correction of Miller and Madow (1955), as few counts say too little.

    >>> round(entropy([50, 50]), 3), entropy([7]), entropy([])
    (1.007, 0.0, 0.0)
    """
    seen = [count for count in counts if count]
    total = sum(seen)
    if not total:
        return 0.0
    plugged_in = -sum(count / total * math.log2(count / total) for count in seen)
    return max(0.0, plugged_in) + (len(seen) - 1) / (2 * total * math.log(2))
