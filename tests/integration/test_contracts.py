"""Somebody's component that gives what its family does not allow: it is named, and the finished steps are kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from exprl.advantages import SegmentDelta
from exprl.cli import main
from exprl.engines.transformers import TransformersEngine
from exprl.errors import ContractError, ExprlError, JudgeError, RewardError
from exprl.judges import ReferenceStepsJudge
from exprl.registry import ADVANTAGES, ENGINES, JUDGES, REWARDS, SLICERS, VERIFIERS
from exprl.rewards import ProcessReward, SparseReward
from exprl.rollouts import load_rollouts
from exprl.slicers import DelimiterSlicer
from exprl.types import Judgement, Rollout, RolloutReward, Segment, SegmentRewards
from exprl.verifiers import ExactVerifier
from tests.integration.conftest import ROOT, SMALL
from tests.integration.processes import samples

OPTIONS = ("trainer.max_steps=3", "trainer.checkpoint_every=1", "evaluation.source=null", "reward.clip_length=false")

Case = tuple[str, type[Any], str, Callable[[Any], Any], type[ExprlError], str]


def with_score(score: Any) -> Callable[[Any], Any]:
    return lambda judgements: [Judgement(score=score) for _ in judgements]


def with_value(value: Any) -> Callable[[Any], Any]:
    def change(groups: Any) -> Any:
        return [tuple(RolloutReward(value=value, length=own.length) for own in group) for group in groups]

    return change


def first_of_first(value: Any) -> Callable[[Any], Any]:
    return lambda groups: [[(value, *own[1:]) for own in group] for group in groups]


def each(made: Any, **changes: Callable[[Any], Any]) -> Any:
    """The rollouts that an engine made, changed."""
    for index, rollout in made:
        yield index, replace(rollout, **{name: of(getattr(rollout, name)) for name, of in changes.items()})


JUDGED = [
    (with_score(7), r"^judge 'mine': a Likert score is a number in \[1, 5\], but got 7 \(int\)\. Map a scale from low"),
    (with_score(0.0), r"but got 0\.0 \(float\)"),
    (with_score(math.nan), r"but got nan \(float\)"),
    (with_score("4"), r"but got '4' \(str\)"),
    (with_score(True), r"but got True \(bool\)"),
    (with_score(torch.tensor(4.0)), r"but got tensor\(4\.\) \(Tensor\)"),
    (lambda judgements: [Judgement(score=None, status="lost") for _ in judgements], "status is one of ok, unparseable"),
    (lambda judgements: [Judgement(score=3.0, rationale=None) for _ in judgements], r"rationale is text, but got None"),
]
SLICED = [
    (lambda segments: segments[1:], r"^slicer 'mine': gave \[.*segments must be contiguous and cover all \d+ tokens"),
    (lambda segments: (*segments, segments[-1]), "segments must be contiguous"),
    (lambda segments: (), "gave no segment: segments must be contiguous"),
    (lambda segments: [(s.start, s.end) for s in segments], r"gave \[\(0, .* must return a tuple of Segment"),
    (lambda segments: (Segment(0, 0),), r"^slicer 'mine': a segment needs 0 <= start < end, but got \[0, 0\)"),
]
REWARDED = [
    (
        with_value(2.5),
        ContractError,
        r"^reward 'mine': a reward is a number in \[0, 1\].* 2\.5 \(float\)\. Scale it",
    ),
    (with_value(-1), ContractError, r"but got -1 \(int\)\. Scale it"),
    (with_value("right"), ContractError, r"^reward 'mine': a reward is a number in \[0, 1\].* got 'right' \(str\)"),
    (with_value(math.nan), ContractError, r"^reward 'mine': a reward is a number in \[0, 1\].* got nan \(float\)"),
    (lambda groups: groups[:-1], RewardError, "returned rewards of 3 groups for 4"),
    (lambda groups: iter(groups), RewardError, r"returned <list_iterator .*for 4"),
    (lambda groups: [None for _ in groups], RewardError, r"returned None \(NoneType\) for the 4 rollouts"),
]
ESTIMATED = [
    (lambda groups: groups[:-1], ContractError, r"^advantage 'mine': gave .* for 4 groups: it must give one list"),
    (lambda groups: [group[:-1] for group in groups], ContractError, "for a group of 4 rollouts with scores"),
    (lambda groups: [[own[:-1] for own in g] for g in groups], ContractError, "must give a number for each segment"),
    (first_of_first("much"), ContractError, r"^advantage 'mine': an advantage is a finite number, but got 'much'"),
    (first_of_first(math.nan), ContractError, r"^advantage 'mine': an advantage is a finite number, but got nan"),
]
SAMPLED = [
    (lambda made: each(made, token_ids=torch.tensor), r"^engine 'mine': token_ids: a tuple of whole numbers.*tolist"),
    (lambda made: each(made, place=lambda place: min(place, 2)), r"^engine 'mine': place: the 4 rollouts.* say 0 to 3"),
    (lambda made: each(made, place=lambda place: place or None), r"^engine 'mine': place: .*all of them None"),
    (lambda made: each(made, token_ends=lambda ends: ends[::-1]), r"^engine 'mine': token_ends: where each token's"),
    (
        lambda made: each(made, prompt=lambda prompt: replace(prompt, problem_id="other")),
        r"^engine 'mine': a group holds rollouts of one problem, here '.*', but got one of 'other'",
    ),
]
VERIFIED = [
    (lambda verdicts: verdicts[:-1], r"^verifier 'mine': gave \[.*a verdict for each of 16 responses"),
    (lambda verdicts: None, r"gave None \(NoneType\)"),
    (lambda verdicts: ["yes" for _ in verdicts], r"gave 'yes' \(str\): a verdict must be True or False"),
    (lambda verdicts: [0.5 for _ in verdicts], r"gave 0\.5 \(float\)"),
]
CASES: list[Case] = [
    *[("reward.judge.name", ReferenceStepsJudge, "judge", change, ContractError, said) for change, said in JUDGED],
    *[("reward.slicer.name", DelimiterSlicer, "slice", change, ContractError, said) for change, said in SLICED],
    *[("reward.name", SparseReward, "score", *rest) for rest in REWARDED],
    *[("rollout.name", TransformersEngine, "generate", change, ContractError, said) for change, said in SAMPLED],
    *[("advantage.name", SegmentDelta, "of_batch", *rest) for rest in ESTIMATED],
    *[("verifier.name", ExactVerifier, "verify_batch", change, ContractError, said) for change, said in VERIFIED],
]
FAMILIES = {
    "reward.judge.name": JUDGES,
    "reward.slicer.name": SLICERS,
    "reward.name": REWARDS,
    "rollout.name": ENGINES,
    "advantage.name": ADVANTAGES,
    "verifier.name": VERIFIERS,
}


def component(base: type[Any], method: str, change: Callable[[Any], Any], good: list[int]) -> type[Any]:
    """`base`, whose method gives something else once `good` is used up; `good` holds the calls that go well."""

    def changed(self: Any, *args: Any, **options: Any) -> Any:
        given = getattr(base, method)(self, *args, **options)
        if good[0] > 0:
            good[0] -= 1
            return given
        return change(given)

    return type("Mine", (base,), {method: changed})


@pytest.fixture
def mine(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, type[Any]], None]:
    """Registers a class as `mine` for the length of a test."""

    def register(key: str, cls: type[Any]) -> None:
        FAMILIES[key].names()
        cls.registered_name = "mine"
        monkeypatch.setitem(FAMILIES[key]._classes, "mine", cls)

    return register


@pytest.mark.parametrize(("key", "base", "method", "change", "error", "said"), CASES)
def test_it_is_named_with_what_it_gave(
    small: Any, run: Any, mine: Any, key: str, base: type[Any], method: str, change: Any, error: Any, said: str
) -> None:
    mine(key, component(base, method, change, [0]))
    with pytest.raises(error, match=said) as caught:
        run(small(*OPTIONS, f"{key}=mine"))
    assert isinstance(caught.value, ExprlError)


def test_finished_steps_are_kept_and_the_command_ends_in_one_line(
    mine: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine("reward.judge.name", component(ReferenceStepsJudge, "judge", with_score(7), [2]))
    never = "trainer.checkpoint_every=0"
    command = ["train", str(ROOT / "configs/quickstart.yaml"), *SMALL, *OPTIONS, never, "reward.judge.name=mine"]
    with pytest.raises(SystemExit) as ended:
        main([*command, f"run_dir={tmp_path}/run"])
    assert ended.value.code == 2
    assert [path.name for path in (tmp_path / "run/checkpoints").glob("*.ckpt")] == ["step-000002.ckpt"]
    said = capsys.readouterr().err
    assert "error: judge 'mine': a Likert score is a number in [1, 5], but got 7 (int)." in " ".join(said.split())
    assert "Traceback" not in said


def test_groups_of_an_engine_that_says_no_places_are_as_they_came(
    small: Any, run: Any, mine: Any, tmp_path: Path
) -> None:
    came: list[Rollout] = []

    def unplaced(made: Any) -> Any:
        for index, rollout in each(made, place=lambda _: None):
            came.append(rollout)
            yield index, rollout

    mine("rollout.name", component(TransformersEngine, "generate", unplaced, [1]))  # after the start check
    run(small(*OPTIONS, "trainer.max_steps=1", "rollout.name=mine"))
    groups = load_rollouts(tmp_path / "run")[1]
    expected = [[one for one in came if one.prompt.problem_id == group.problem_id] for group in groups]
    assert [list(group.rollouts) for group in groups] == expected


def test_scalars_of_numpy_are_numbers_like_any_other(small: Any, run: Any, mine: Any, tmp_path: Path) -> None:
    mine("reward.judge.name", component(ReferenceStepsJudge, "judge", with_score(np.float32(3.0)), [0]))
    mine("verifier.name", component(ExactVerifier, "verify_batch", lambda given: [np.bool_(v) for v in given], [0]))
    run(small(*OPTIONS, "trainer.max_steps=1", "reward.judge.name=mine", "verifier.name=mine"))
    assert any(segment["score"] == 3.0 for sample in samples(tmp_path / "run") for segment in sample["segments"])


def test_a_process_reward_of_ones_own_must_cut_whole_rollouts(small: Any, run: Any, mine: Any) -> None:
    def halved(groups: Any) -> Any:
        return [
            tuple(SegmentRewards(segments=(Segment(1, own.length),), values=(0.5,)) for own in group)
            for group in groups
        ]

    mine("reward.name", component(ProcessReward, "score", halved, [0]))
    with pytest.raises(ContractError, match=r"^reward 'mine': rewards need segments that follow each other from 0 on"):
        run(small(*OPTIONS, "reward.name=mine"))


def test_a_judge_that_gives_too_few_is_named_as_before(small: Any, run: Any, mine: Any) -> None:
    mine("reward.judge.name", component(ReferenceStepsJudge, "judge", lambda given: given[:-1], [0]))
    with pytest.raises(JudgeError, match=r"^judge 'mine' returned \d+ for \d+ requests"):
        run(small(*OPTIONS, "reward.judge.name=mine"))


@pytest.mark.parametrize(
    ("key", "base", "method"),
    [("reward.judge.name", ReferenceStepsJudge, "judge"), ("verifier.name", ExactVerifier, "verify_batch")],
)
def test_the_end_of_an_iterator_of_theirs_is_not_the_end_of_the_data(
    small: Any, run: Any, mine: Any, tmp_path: Path, key: str, base: type[Any], method: str
) -> None:
    mine(key, component(base, method, lambda _: next(iter([])), [1]))
    with pytest.raises(RuntimeError, match="a StopIteration was not caught where it was raised"):
        run(small(*OPTIONS, f"{key}=mine"))
    assert [path.name for path in (tmp_path / "run/checkpoints").glob("*.ckpt")] == ["step-000001.ckpt"]
