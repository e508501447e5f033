"""A process reward that finds one segment a rollout is an outcome reward: a run says so once, and what to change."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from exprl.slicers import DelimiterSlicer
from exprl.training.advice import about_advantage, about_cut_off, about_updates
from exprl.types import RolloutGroup
from tests.rollouts import problem_of, rollout_of

OPTIONS = ("trainer.max_steps=5", "evaluation.source=null", "reward.clip_length=false")
DELIMITER = 'reward.slicer={name: delimiter, delimiter: "###"}'


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "one segment" in record.getMessage()]


def rates(folder: Path) -> list[float]:
    return [
        json.loads(line)["reward/single_segment_rate"]
        for line in (folder / "metrics.jsonl").read_text().split("\n")[:-1]
    ]


@pytest.mark.parametrize(
    ("option", "advice"),
    [
        (
            DELIMITER,
            r"Let the prompt ask for the delimiter, '###' (End every step with '###'; the key is prompt.template",
        ),
        ("reward.slicer.name=token_window", "Set reward.slicer.window, 512 tokens now"),
    ],
)
def test_said_once_in_the_first_step_with_the_numbers(
    small: Any, run: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, option: str, advice: str
) -> None:
    run(small(*OPTIONS, option))
    assert rates(tmp_path / "run") == [1.0] * 5
    [only] = said(caplog)
    assert only.startswith("step 1: 16 of 16 rollouts (of ")
    assert advice in only
    assert "reward.slicer" in only


@pytest.mark.parametrize("option", ["reward.show=prefix", "reward.slicer={name: token_window, window: 4}"])
def test_not_where_there_are_segments(
    small: Any, run: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, option: str
) -> None:
    run(small(*OPTIONS, option))
    assert max(rates(tmp_path / "run")) < 0.95
    assert said(caplog) == []


def test_the_verb_is_that_of_the_position() -> None:
    assert "(End every step with '\\n';" in DelimiterSlicer(delimiter="\n", position="end").advice


def test_the_length_is_told_first_where_it_is_the_cause() -> None:
    cut = rollout_of("a", "b", finish="length")
    half = [RolloutGroup(problem=problem_of("p"), rollouts=(cut, rollout_of("a")))]
    assert "1 of the step's 2 rollouts were cut off" in about_cut_off(half)
    assert about_cut_off([*half, replace(half[0], rollouts=(rollout_of("a"), rollout_of("b")))]) == ""


def test_not_for_a_reward_of_whole_rollouts_which_is_told_of_its_advantage(
    small: Any, run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    experiment = small(*OPTIONS, "trainer.max_steps=1", "reward.name=outcome")
    run(experiment)
    assert said(caplog) == []
    told = about_advantage(experiment)
    assert told is not None
    assert [record.getMessage() for record in caplog.records].count(told) == 1


def test_not_for_what_a_policy_learns_later(small: Any, run: Any, caplog: pytest.LogCaptureFixture) -> None:
    from exprl.training.module import ExpRLModule

    late: list[int] = []
    original = ExpRLModule.compare

    def compare(self: ExpRLModule, rewarded: Any) -> Any:
        late.append(self.steps_done)
        if self.steps_done >= 3:
            self.parts.reward.slicer.config = type(self.parts.reward.slicer.config)(delimiter="###")  # type: ignore[attr-defined]
        return original(self, rewarded)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ExpRLModule, "compare", compare)
        with caplog.at_level(logging.WARNING):
            run(small(*OPTIONS))
    assert late == [0, 1, 2, 3, 4]
    assert said(caplog) == []


@pytest.mark.parametrize(
    ("options", "updates"),
    [
        (["update.epochs=3"], 3),
        (["update.prompts_per_update=2"], 2),
        (["update.epochs=2", "update.prompts_per_update=1"], 8),
        (["update.epochs=1"], None),
        (["update.prompts_per_update=4"], None),
    ],
)
def test_an_objective_without_a_ratio_is_for_one_update_a_step(
    small: Any, options: list[str], updates: int | None
) -> None:
    told = about_updates(small("data.prompts_per_step=4", "objective.name=reinforce", *options))
    assert (told is None) if updates is None else f"each step makes {updates} updates" in (told or "")
    for name in ("clipped", "cispo", "gspo", "dppo"):
        assert about_updates(small("data.prompts_per_step=4", f"objective.name={name}", *options)) is None


@pytest.mark.parametrize(
    ("method", "times"),
    [
        ("method.name=rl", 1),
        ("method={name: self_distillation, estimator: sampled}", 1),
        ("method={name: self_distillation, estimator: exact}", 0),  # which ignores the objective
    ],
)
def test_several_updates_without_a_ratio_are_told_once_at_the_start(
    small: Any, run: Any, caplog: pytest.LogCaptureFixture, method: str, times: int
) -> None:
    run(small(*OPTIONS, "trainer.max_steps=1", "objective.name=reinforce", "update.epochs=2", method))
    told = [record.getMessage() for record in caplog.records if "has no ratio" in record.getMessage()]
    assert len(told) == times
