"""Dynamic sampling: who takes whose place is a pure function; only what has no signal by its rewards is replaced."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, strategies as st

from exprl.advantages import GroupAdvantage, SegmentBatch, SegmentDelta
from exprl.data.datamodule import ExpRLDataModule
from exprl.data.order import Part, StepOrder
from exprl.data.replacing import replacements
from exprl.engines.base import Engine, Sampling
from exprl.errors import ContractError
from exprl.rewards.base import Reward
from exprl.terminal.phases import Phases
from exprl.training.collecting import Collector
from exprl.training.dynamic_sampling import NoSignal
from exprl.training.exchange import Rewarded
from exprl.types import (
    AnyReward,
    Judgement,
    Problem,
    Prompt,
    Question,
    Rollout,
    RolloutGroup,
    RolloutReward,
    Segment,
    SegmentRewards,
)
from tests.rollouts import problem_of, rollout_of


@st.composite
def steps(draw: st.DrawFn) -> dict[str, Any]:
    """A step of problems of one to three parts, which may or may not have others."""
    counts = draw(st.lists(st.integers(1, 12), min_size=1, max_size=3))
    parts = [Part(name=f"part {n}", count=count, weight=float(count)) for n, count in enumerate(counts)]
    seed, step = draw(st.integers(0, 99)), draw(st.integers(0, 9))
    indices = StepOrder(parts, draw(st.integers(1, sum(counts))), seed)[step]
    return {"parts": parts, "indices": indices, "seed": seed, "step": step}


def part_of(parts: Sequence[Part], index: int) -> str:
    for part in parts:
        if index < part.count:
            return part.name
        index -= part.count
    raise AssertionError(f"{index} beyond all parts")


class TestWhoTakesWhosePlace:
    @given(steps(), st.integers(0, 5))
    def test_nobody_is_there_twice_and_parts_keep_their_places(self, step: dict[str, Any], rounds: int) -> None:
        found = replacements(**step, rounds=rounds)
        assert len(found) == len(step["indices"])
        every = [*step["indices"], *(index for own in found for index in own)]
        assert len(set(every)) == len(every)
        for index, own in zip(step["indices"], found, strict=True):
            assert {part_of(step["parts"], other) for other in own} <= {part_of(step["parts"], index)}

    @given(steps(), st.integers(0, 5))
    def test_as_many_as_there_are_and_earlier_rounds_first(self, step: dict[str, Any], rounds: int) -> None:
        found = replacements(**step, rounds=rounds)
        for part in step["parts"]:
            own = [
                others
                for index, others in zip(step["indices"], found, strict=True)
                if part_of(step["parts"], index) == part.name
            ]
            assert sum(map(len, own)) == min(rounds * len(own), part.count - len(own))
            lengths = [len(others) for others in own]
            assert lengths == sorted(lengths, reverse=True)
            assert not own or lengths[0] - lengths[-1] <= 1

    @given(steps(), st.integers(0, 5), st.integers(0, 5))
    def test_further_rounds_change_nothing_of_the_first(self, step: dict[str, Any], fewer: int, more: int) -> None:
        longer = replacements(**step, rounds=fewer + more)
        assert replacements(**step, rounds=fewer) == [own[:fewer] for own in longer]

    def test_never_changes_between_versions(self) -> None:
        parts = [Part(name="a", count=6, weight=2.0), Part(name="b", count=4, weight=1.0)]
        assert replacements(parts, [0, 7, 3], rounds=2, seed=5, step=4) == [[5, 1], [8, 9], [2, 4]]

    def test_any_problem_may_come(self) -> None:
        """Each of 8 in 4000 draws 500 times; the standard deviation is 21."""
        parts = [Part(name="a", count=9, weight=1.0)]
        firsts = [replacements(parts, [4], rounds=1, seed=0, step=step)[0][0] for step in range(4000)]
        assert {firsts.count(index) > 400 for index in range(9) if index != 4} == {True}

    def test_a_data_module_gives_them_as_problems(self) -> None:
        problems = [problem_of(f"p{n}") for n in range(9)]
        data = ExpRLDataModule(problems, prompts_per_step=3, max_steps=2, seed=7)
        again = ExpRLDataModule(problems, prompts_per_step=3, max_steps=2, seed=7)
        assert data.step_replacements(1, 2) == again.step_replacements(1, 2)
        assert data.step_replacements(0, 2) != data.step_replacements(1, 2)
        every = [*data.step_problems(1), *(problem for own in data.step_replacements(1, 2) for problem in own)]
        assert sorted(problem.id for problem in every) == [f"p{n}" for n in range(9)]
        with pytest.raises(IndexError, match=r"step: must lie in 0\.\.1, but got 2"):
            data.step_replacements(2, 1)


# ------------------------------------------------------------------ what has no signal


def rewarded(*rewards: AnyReward, logprob: float = -1.0) -> Rewarded:
    rollouts = tuple(replace(rollout_of("a", "b"), sampler_logprobs=(logprob, -1.0)) for _ in rewards)
    return RolloutGroup(problem=problem_of(), rollouts=rollouts), tuple(rewards)


def whole(value: float | None, *statuses: str) -> RolloutReward:
    judgements = tuple(Judgement(score=3.0 if s == "ok" else None, status=s) for s in statuses)  # type: ignore[arg-type]
    return RolloutReward(value=value, length=2, judgements=judgements)


def parts(*values: float | None, cut_off: bool = False) -> SegmentRewards:
    judgements = tuple(Judgement(score=3.0) for _ in values)
    segments = (Segment(0, 1), Segment(1, 2))
    return SegmentRewards(segments=segments, values=values, judgements=judgements, cut_off=cut_off)


GROUP, DELTA, BATCH = GroupAdvantage(), SegmentDelta(), SegmentBatch()


@pytest.mark.parametrize(
    ("advantage", "rewards", "lacking"),
    [
        (GROUP, [whole(1.0), whole(1.0)], True),
        (GROUP, [whole(0.0), whole(1.0)], False),
        (GROUP, [whole(0.5), whole(0.5 + 1e-13)], True),
        (BATCH, [whole(1.0), whole(1.0)], True),
        (DELTA, [parts(0.5, 0.5), parts(0.5, 0.5)], True),
        (DELTA, [parts(0.2, 0.5), parts(0.2, 0.5)], False),
        (DELTA, [parts(cut_off=True), parts(cut_off=True)], True),
        # judged, and left out by the normalisation: that is a fact about the rollouts
        (GROUP, [whole(None, "ok"), whole(None, "ok")], True),
    ],
)
def test_a_group_lacks_a_signal_by_its_rewards(advantage: Any, rewards: list[AnyReward], lacking: bool) -> None:
    assert NoSignal(advantage=advantage, tolerance=1e-6)(rewarded(*rewards)) is lacking


@pytest.mark.parametrize("status", ["unparseable", "timeout", "error", "empty"])
def test_a_failed_judgement_is_no_reason_to_look_for_another_problem(status: str) -> None:
    check = NoSignal(advantage=GROUP, tolerance=1e-6)
    assert not check(rewarded(whole(None, status), whole(1.0, "ok"), whole(1.0, "ok")))
    assert not check(rewarded(whole(None, status), whole(None, status)))
    assert not check(rewarded(whole(None), whole(None))), "no reward, and nobody says why"


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_what_is_not_finite_stays_for_the_step_to_stop_at(number: float) -> None:
    check = NoSignal(advantage=GROUP, tolerance=1e-6)
    assert not check(rewarded(whole(1.0), whole(1.0), logprob=number))

    class Broken(GroupAdvantage):
        def of_group(self, group: Any) -> Any:
            return [(number,) for _ in group]

    with pytest.raises(ContractError, match=r"^advantage 'Broken': an advantage is a finite number"):
        NoSignal(advantage=Broken(), tolerance=1e-6)(rewarded(whole(1.0), whole(1.0)))


# ------------------------------------------------------------------ the rounds


class Answering(Engine):
    """Notes what it was asked, and how."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[list[str], Sampling]] = []

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[tuple[int, Rollout]]:
        self.asked.append(([prompt.problem_id for prompt in prompts], sampling))
        for index, prompt in enumerate(prompts):
            yield from ((index, rollout_of("a", prompt=prompt)) for _ in range(sampling.n))


class Knowing(Reward):
    """Rewards that differ within the groups of these problems alone."""

    granularity = "rollout"

    def __init__(self, *useful: str) -> None:
        super().__init__()
        self.useful = useful

    def score(self, groups: Sequence[RolloutGroup], on_progress: Any = None) -> list[tuple[AnyReward, ...]]:
        return [
            tuple(
                RolloutReward(value=float(number == 0 and group.problem.id in self.useful), length=1)
                for number, _ in enumerate(group.rollouts)
            )
            for group in groups
        ]


class Plain:
    """Prompts of questions alone: anything else it has no way to take."""

    def build(self, question: Question, domain: str) -> Prompt:
        assert type(question) is Question
        return Prompt(problem_id=question.problem_id, text=question.text, token_ids=(1,))


def collected(useful: str, problems: str, fresh: Sequence[str]) -> tuple[list[str], list[tuple[list[str], Sampling]]]:
    """The problems that stay of those named by letters, and what was asked of the engine."""
    engine = Answering()
    lacking = NoSignal(advantage=GROUP, tolerance=1e-6)
    prompts: Any = Plain()
    collector = Collector(prompts, engine, Knowing(*useful), Phases(shown=lambda: False), lacking)
    named: dict[str, Problem] = {name: problem_of(name) for name in "abcdefgh"}
    sampling = Sampling(n=2, seed=11, numbers=range(4, 4 + len(problems)))
    got = collector.collect([named[name] for name in problems], sampling, [[named[o] for o in own] for own in fresh])
    return [group.problem.id for group, _ in got], engine.asked


def test_only_what_lacks_a_signal_is_asked_for_anew_until_it_has_one() -> None:
    kept, asked = collected("bdh", "abc", ["de", "fg", "gh"])
    assert kept == ["d", "b", "h"]
    assert [names for names, _ in asked] == [["a", "b", "c"], ["d", "g"], ["h"]]
    assert [list(sampling.numbers or ()) for _, sampling in asked] == [[4, 5, 6], [4, 6], [6]]
    assert len({sampling.seed for _, sampling in asked}) == 3, "no random number twice"


def test_after_the_last_round_what_is_there_stays() -> None:
    kept, asked = collected("", "abc", ["de", "f", ""])
    assert kept == ["e", "f", "c"]
    assert [names for names, _ in asked] == [["a", "b", "c"], ["d", "f"], ["e"]]


def test_without_fresh_problems_and_with_signals_everywhere_nothing_is_asked_twice() -> None:
    for useful, fresh in (("", []), ("abc", ["d", "e", "f"])):
        kept, asked = collected(useful, "abc", fresh)
        assert (kept, len(asked)) == (["a", "b", "c"], 1)


def test_a_place_is_the_same_whoever_else_is_sampled() -> None:
    """Each rank has a part of the places, and the same seeds for them."""
    _, together = collected("bdh", "abc", ["de", "fg", "gh"])
    engine_of_one = {sampling.seed: list(sampling.numbers or ()) for _, sampling in together}
    alone, asked = collected("h", "a", ["dh"])
    assert alone == ["h"]
    assert [sampling.seed for _, sampling in asked] == list(engine_of_one)
    assert [list(sampling.numbers or ()) for _, sampling in asked] == [[4]] * 3
