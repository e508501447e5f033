import copy
import dataclasses
import json
import math
import pickle
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from exprl.errors import ContractError
from exprl.types import (
    Advantages,
    Hidden,
    Judgement,
    Problem,
    Prompt,
    Question,
    Rollout,
    RolloutGroup,
    RolloutReward,
    Scaffold,
    ScoredGroup,
    Segment,
    SegmentRewards,
)
from tests.rollouts import group_of, rollout_of

SECRET = "the-worked-solution"


@pytest.fixture
def problem() -> Problem:
    scaffold = Scaffold(reference=Hidden(SECRET), answer=Hidden(SECRET), steps=Hidden((SECRET,)))
    return Problem(question=Question(problem_id="p1", text="1+1?"), scaffold=scaffold)


def rollout(**changes: object) -> Rollout:
    return replace(rollout_of("ab", " ", "cd"), **changes)


class TestHidden:
    @pytest.mark.parametrize(
        "show",
        [
            str,
            repr,
            "{}".format,
            "{!r}".format,
            lambda p: f"{p}",
            lambda p: str(dataclasses.asdict(p)),
            lambda p: str(dataclasses.astuple(p)),
            lambda p: str(p.scaffold.reference),
            lambda p: f"{p.scaffold.reference}",
            lambda p: json.dumps({"p": p}, default=str),
            lambda p: json.dumps(dataclasses.asdict(p), default=repr),
        ],
    )
    def test_is_never_shown(self, problem, show):
        assert SECRET not in show(problem)
        assert "hidden" in show(problem)

    @pytest.mark.parametrize(
        "use",
        [
            lambda h: "Solve: " + h,
            lambda h: h + " now",
            lambda h: "".join(["Solve", h]),
            lambda h: f"{h:>20}",
            lambda h: json.dumps(h),
            lambda h: json.dumps({"reference": h}),
            lambda h: list(h),
            lambda h: len(h),
            lambda h: h[0],
            lambda h: "Solve {question}".replace("{question}", h),
            lambda h: Path(h),
        ],
    )
    def test_is_no_text(self, use):
        with pytest.raises(TypeError) as error:
            use(Hidden(SECRET))
        assert SECRET not in str(error.value)

    @pytest.mark.parametrize("write", [yaml.safe_dump, lambda node: OmegaConf.create(node)])
    def test_is_refused_by_yaml(self, write):
        with pytest.raises((yaml.YAMLError, OmegaConfBaseException)):
            write({"reference": Hidden(SECRET)})

    def test_cannot_be_changed_and_has_no_dict(self):
        hidden = Hidden(SECRET)
        with pytest.raises(AttributeError, match="immutable"):
            hidden._value = "other"
        assert not hasattr(hidden, "__dict__")

    def test_reveals_equals_and_hashes_by_value(self):
        assert Hidden(SECRET).reveal() == SECRET
        assert Hidden(SECRET) == Hidden(SECRET) != Hidden("other")
        assert Hidden(SECRET) != SECRET
        assert hash(Hidden(SECRET)) == hash(Hidden(SECRET))

    def test_passes_between_processes(self, problem):
        assert pickle.loads(pickle.dumps(problem)) == problem
        assert copy.deepcopy(problem) == problem


class TestPolicySide:
    @pytest.mark.parametrize("kind", [Question, Prompt, Rollout])
    def test_no_field_can_hold_a_scaffold(self, kind):
        names = {field.name for field in dataclasses.fields(kind)}
        assert not names & {"problem", "scaffold", "reference", "answer", "steps"}

    def test_dataclasses_are_frozen(self, problem):
        with pytest.raises(dataclasses.FrozenInstanceError):
            problem.question.text = SECRET

    def test_problem_id_is_the_questions(self, problem):
        assert problem.id == "p1"
        assert problem.domain == "math"


class TestRollout:
    def test_text_of_cuts_at_token_ends(self):
        assert [rollout().text_of(*span) for span in ((0, 3), (0, 1), (1, 2), (1, 3), (0, 0))] == [
            "ab cd",
            "ab",
            " ",
            " cd",
            "",
        ]
        assert len(rollout()) == 3

    def test_one_entry_a_token(self):
        with pytest.raises(ContractError, match=r"token_ids \(3\), token_ends \(2\)"):
            rollout(token_ends=(2, 5))

    @pytest.mark.parametrize("ends", [(5, 3, 2), (-1, 3, 5), (2, 3, 50), (1, 2, 3), (2, 5, 3)])
    def test_tokens_end_in_order_and_make_up_the_text(self, ends):
        with pytest.raises(ContractError, match=r"token_ends: .* the last at 5, where the text ends, but got \("):
            rollout(token_ends=ends)

    def test_tokens_may_have_no_width_and_there_may_be_none(self):
        assert rollout(text="ab", token_ends=(0, 2, 2)).text_of(0, 2) == "ab"
        nothing = rollout(text="", token_ids=(), token_ends=(), sampler_logprobs=())
        assert len(nothing) == 0
        with pytest.raises(ContractError, match="token_ends"):
            replace(nothing, text="a")

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"token_ids": torch.tensor([1, 2, 3])}, r"^token_ids: a tuple of whole numbers.*tuple\(token_ids\.tolist"),
            ({"token_ids": tuple(torch.tensor([1, 2, 3]))}, r"^token_ids: .* one is tensor\(1\).*value\.item\(\)"),
            ({"token_ids": (1, 2.5, 3)}, r"one is 2\.5 \(float\)$"),
            ({"token_ends": np.array([2, 3, 5])}, r"^token_ends: a tuple of whole numbers.*tolist"),
            ({"sampler_logprobs": torch.zeros(3)}, r"^sampler_logprobs: a tuple of numbers.*tolist"),
            ({"sampler_logprobs": (0.0, None, 0.0)}, r"one is None \(NoneType\)$"),
        ],
    )
    def test_tensors_are_no_tuples(self, changes, said):
        with pytest.raises(ContractError, match=said):
            rollout(**changes)
        with pytest.raises(ContractError, match="token_ids: a tuple of whole numbers"):
            Prompt(problem_id="p", text="", token_ids=torch.tensor([1]))

    def test_lists_and_numbers_of_numpy_are_taken(self):
        of_lists = rollout(token_ids=[0, 1, 2], sampler_logprobs=[-1.0] * 3, token_ends=list(np.array([2, 3, 5])))
        assert of_lists == rollout()
        assert isinstance(of_lists.token_ids, tuple)

    def test_a_group_is_of_one_problem(self, problem):
        with pytest.raises(ContractError, match=r"rollouts of one problem, here 'p1', but got one of 'p'"):
            RolloutGroup(problem=problem, rollouts=(rollout(),))


class TestSegments:
    @pytest.mark.parametrize("bounds", [(0, 0), (3, 2), (-1, 2)])
    def test_refuses_empty_and_backward(self, bounds):
        with pytest.raises(ValueError, match="0 <= start < end"):
            Segment(*bounds)

    def test_length_and_advantages_per_token(self):
        segments = (Segment(0, 2), Segment(2, 3))
        assert [len(segment) for segment in segments] == [2, 1]
        assert Advantages(segments=segments, values=(0.5, -1.0)).per_token() == [0.5, 0.5, -1.0]

    def test_validity(self):
        segments = (Segment(0, 2), Segment(2, 3))
        assert SegmentRewards(segments=segments, values=(0.5, 1.0)).valid
        assert not SegmentRewards(segments=segments, values=(0.5, None)).valid
        assert SegmentRewards(segments=segments, values=(), cut_off=True).valid
        assert SegmentRewards(segments=segments, values=(0.5, 1.0)).length == 3
        assert SegmentRewards(segments=(), values=()).length == 0
        assert RolloutReward(value=0.0, length=3).valid
        assert not RolloutReward(value=None, length=3).valid


NO_REWARD = [math.nan, math.inf, -math.inf, -0.25, 1.5, 2, -1, "1", torch.tensor(0.5), [0.5]]


class TestRewards:
    @pytest.mark.parametrize("value", NO_REWARD, ids=str)
    def test_a_reward_is_a_number_from_0_to_1(self, value):
        with pytest.raises(ContractError, match=r"^a reward is a number in \[0, 1\], or None where it failed"):
            RolloutReward(value=value, length=3)
        with pytest.raises(ContractError, match=r"^a reward is a number in \[0, 1\]"):
            SegmentRewards(segments=(Segment(0, 1), Segment(1, 3)), values=(0.5, value))

    def test_what_to_do_is_said(self):
        for value, advice in ((2, "Scale it"), (torch.tensor(0.5), r"value\.item\(\)"), (math.nan, r"nan \(float\)$")):
            with pytest.raises(ContractError, match=advice):
                RolloutReward(value=value, length=3)

    @pytest.mark.parametrize("value", [True, 1, np.float32(1.0), np.int64(1), Fraction(1)])
    def test_numbers_of_every_kind_become_plain_ones(self, value):
        assert type(RolloutReward(value=value, length=np.int64(3)).value) is float
        assert SegmentRewards(segments=[Segment(0, 3)], values=[value]).values == (1.0,)
        assert Advantages(segments=(Segment(0, 3),), values=(value,)).values == (1.0,)

    @pytest.mark.parametrize("length", [-1, 2.5, None])
    def test_a_length_is_a_number_of_tokens(self, length):
        with pytest.raises(ContractError, match="length: the rollout's number of tokens"):
            RolloutReward(value=1.0, length=length)

    @pytest.mark.parametrize("kind", [SegmentRewards, Advantages])
    @pytest.mark.parametrize(
        ("bounds", "count", "said"),
        [
            ([(0, 2), (3, 4)], 2, r"follow each other from 0 on, but got \[0, 2\), \[3, 4\)"),
            ([(0, 2), (1, 4)], 2, "follow each other"),
            ([(1, 4)], 1, "follow each other"),
            ([(2, 4), (0, 2)], 2, "follow each other"),
            ([(0, 2), (2, 4)], 3, "a value for each segment, but got 3 for 2"),
            ([(0, 2), (2, 4)], 0, "a value for each segment, but got 0 for 2"),
            ([], 1, "a value for each segment, but got 1 for 0"),
        ],
    )
    def test_segments_leave_no_gap_and_have_a_value_each(self, kind, bounds, count, said):
        with pytest.raises(ContractError, match=said):
            kind(segments=tuple(Segment(*own) for own in bounds), values=(0.5,) * count)

    @pytest.mark.parametrize("kind", [SegmentRewards, Advantages])
    def test_what_is_no_tuple_of_segments_or_values(self, kind):
        with pytest.raises(ContractError, match="segments: a tuple of Segment"):
            kind(segments=((0, 2),), values=(0.5,))
        with pytest.raises(ContractError, match=r"values: a tuple, but got 0\.5"):
            kind(segments=(Segment(0, 2),), values=0.5)

    @pytest.mark.parametrize("value", [math.nan, math.inf, None, "much", torch.tensor(0.5)])
    def test_an_advantage_is_finite(self, value):
        with pytest.raises(ContractError, match="an advantage is a finite number, but got"):
            Advantages(segments=(Segment(0, 3),), values=(value,))


class TestJudgement:
    def test_failed_is_never_a_score(self):
        assert Judgement(score=None, status="timeout").score is None
        with pytest.raises(ValueError, match="exactly when it is ok"):
            Judgement(score=0.0, status="unparseable")
        with pytest.raises(ValueError, match="exactly when it is ok"):
            Judgement(score=None)

    @pytest.mark.parametrize("score", [0.0, 0.99, 5.01, float("nan")])
    def test_score_is_on_the_likert_scale(self, score):
        with pytest.raises(ValueError, match=r"\[1, 5\]"):
            Judgement(score=score)

    @pytest.mark.parametrize(("rewards", "advantages"), [(1, 2), (2, 1), (2, 0)])
    def test_group_needs_a_reward_and_an_advantage_a_rollout(self, problem, rewards, advantages):
        group = group_of(problem, rollout(), rollout())
        reward, advantage = RolloutReward(value=1.0, length=3), Advantages(segments=(Segment(0, 3),), values=(1.0,))
        with pytest.raises(ValueError, match=rf"\({rewards}, {advantages}\) for 2"):
            ScoredGroup(group=group, rewards=(reward,) * rewards, advantages=(advantage,) * advantages)
