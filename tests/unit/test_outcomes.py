"""The outcomes of a step: each rank verifies a part, and all know the whole."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from exprl.rewards import SparseReward
from exprl.training.exchange import RemoteGroup
from exprl.training.module import ExpRLModule
from exprl.training.world import World
from exprl.types import (
    Problem,
    ScoredGroup,
)
from exprl.verifiers.base import Verifier
from tests.rollouts import problem_of, rollout_of, scored_of
from tests.waiting import LONG


class Counting(Verifier):
    """Right is what equals the answer."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def verify(self, problem: Problem, response: str) -> bool:
        self.asked.append(response)
        assert problem.scaffold.answer is not None
        return problem.scaffold.answer.reveal() == response


def scored(problem: int, *replies: str, answer: str | None = "yes") -> ScoredGroup:
    return scored_of([rollout_of(reply) for reply in replies], problem=problem_of(f"p{problem}", answer=answer))


def seen_by(rank: int, groups: list[ScoredGroup], owners: Sequence[int]) -> list[ScoredGroup]:
    """The groups as a rank holds them: of the others' no texts."""
    return [
        scored
        if owner == rank
        else replace(scored, group=RemoteGroup(problem=scored.group.problem, rollouts=scored.group.rollouts))
        for scored, owner in zip(groups, owners, strict=True)
    ]


def verify(groups: list[ScoredGroup], world: World, verifier: Verifier) -> list[list[bool]]:
    module: Any = SimpleNamespace(parts=SimpleNamespace(verifier=verifier), world=world, step="step 1")
    return ExpRLModule.verify(module, groups)


def of_two(work: Callable[[World], Any]) -> list[Any]:
    """What two ranks make, which are threads here."""
    values: list[Any] = [None, None]
    meeting = threading.Barrier(2, timeout=LONG)

    class OfTwo(World):
        def __init__(self, rank: int) -> None:
            super().__init__()
            self.rank, self.size = rank, 2

        def gather(self, value: Any, what: str) -> list[Any]:
            values[self.rank] = value
            meeting.wait()
            return list(values)

    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(work, [OfTwo(0), OfTwo(1)]))


GROUPS = [scored(0, "yes", "a"), scored(1, "b", "c"), scored(2, "d", "yes")]
RIGHT = [[True, False], [False, False], [False, True]]


def test_each_rank_verifies_a_part_and_knows_the_whole_in_order() -> None:
    verifiers = [Counting(), Counting()]
    found = of_two(lambda world: verify(seen_by(world.rank, GROUPS, (0, 0, 1)), world, verifiers[world.rank]))
    assert found == [RIGHT, RIGHT]
    assert [verifier.asked for verifier in verifiers] == [["yes", "a", "b", "c"], ["d", "yes"]]
    assert verify(GROUPS, World(), Counting()) == RIGHT


def test_a_rank_may_have_nothing_to_verify() -> None:
    found = of_two(lambda world: verify(seen_by(world.rank, GROUPS[:1], (0,)), world, Counting()))
    assert found == [RIGHT[:1], RIGHT[:1]]


def test_a_problem_without_an_answer_is_left_out_of_the_outcomes_and_takes_no_others_away() -> None:
    groups = [*GROUPS, scored(3, "yes", answer=None)]
    correct = verify(groups, World(), Counting())
    assert correct == [*RIGHT, []]
    parts = SimpleNamespace(domains=frozenset(), reward=SparseReward(verifier=Counting()))
    engine = SimpleNamespace(counts=dict)
    module: Any = SimpleNamespace(parts=parts, engine=engine, world=World(), unlocked=set())
    whole, part = (ExpRLModule.describe(module, *given) for given in ((GROUPS, RIGHT), (groups, correct)))
    for name in (name for name in whole if name.startswith("outcome/")):
        assert part[name] == whole[name]
    assert whole["outcome/accuracy"] == 1 / 3
    none = ExpRLModule.describe(module, groups[3:], correct[3:])
    assert not [name for name in none if name.startswith("outcome/")]
