import copy
import dataclasses
import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

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
from tests.rollouts import rollout_of

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
        with pytest.raises(ValueError, match=r"token_ids \(3\), token_ends \(2\)"):
            rollout(token_ends=(2, 5))


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
        group = RolloutGroup(problem=problem, rollouts=(rollout(), rollout()))
        reward, advantage = RolloutReward(value=1.0, length=3), Advantages(segments=(Segment(0, 3),), values=(1.0,))
        with pytest.raises(ValueError, match=rf"\({rewards}, {advantages}\) for 2"):
            ScoredGroup(group=group, rewards=(reward,) * rewards, advantages=(advantage,) * advantages)
