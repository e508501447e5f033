"""What problems lack is told before any model is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from exprl.config import from_layers, validate_choice
from exprl.errors import DataError, ExprlError, JudgeError
from exprl.experiment import Experiment
from exprl.models.pretrained import PretrainedModel
from exprl.registry import REWARDS
from exprl.resources import Resources
from exprl.types import Hidden, Problem, Scaffold
from exprl.verifiers import ExactVerifier
from tests.rollouts import problem_of

RUBRIC = '{"milestones": [{"title": "a", "what": "b"}, {"title": "c", "what": "d"}]}'
OUTCOME: Callable[[Any], dict[str, Any]] = lambda judge: {"name": "outcome", "judge": judge}  # noqa: E731
SAME = {"name": "same_model", "weights": "frozen"}


def check(reward: dict[str, Any], *problems: Problem) -> None:
    choice = validate_choice(REWARDS, reward, "reward")
    known = Resources(problems=problems, verifier=ExactVerifier())
    choice.cls.check_data(choice.config, problems, known)


def bare(problem_id: str = "p", **scaffold: Any) -> Problem:
    return replace(problem_of(problem_id), scaffold=Scaffold(**{k: Hidden(v) for k, v in scaffold.items()}))


@pytest.mark.parametrize(
    ("reward", "kind", "said"),
    [
        ({"name": "execution"}, DataError, "tests"),
        ({"name": "sparse"}, DataError, "no final answer"),
        (OUTCOME(SAME), JudgeError, "no reference solution, but judge 'same_model' needs one"),
        (OUTCOME({"name": "reference_steps"}), JudgeError, "no reference solution"),
        (OUTCOME({**SAME, "name": "rubric"}), JudgeError, "1 of 1 problems have no rubric"),
        (
            {"name": "by_domain", "domains": {"law": {"name": "sparse"}}, "default": {"name": "execution"}},
            DataError,
            r"^reward\.default: problem 'p'",
        ),
    ],
)
def test_what_a_reward_needs(reward: dict[str, Any], kind: type[ExprlError], said: str) -> None:
    with pytest.raises(kind, match=said):
        check(reward, bare())


@pytest.mark.parametrize("judge", ["no_reference", "wrong_reference"])
def test_a_judge_that_shows_no_reference_of_the_problem_s_own_needs_none(judge: str) -> None:
    check(OUTCOME({"name": judge, "around": SAME}), bare())


def test_a_rubric_may_stand_for_the_reference() -> None:
    check(OUTCOME({**SAME, "name": "rubric"}), bare(rubric=RUBRIC))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"reward": {"name": "execution"}}, "has no tests"),
        ({"reward": {"name": "sparse"}}, "no final answer"),
        ({"reward": OUTCOME(SAME)}, "no reference solution"),
        ({"method": {"name": "sft"}}, r"no reference solution, but method\.name=sft"),
        ({"method": {"name": "self_distillation"}}, "no reference solution"),
    ],
)
def test_a_run_looks_before_its_model_is_loaded(
    options: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from exprl.commands.train import train
    from exprl.terminal.console import Console

    def load(self: PretrainedModel) -> None:
        raise AssertionError("the model is loaded")

    monkeypatch.setattr(PretrainedModel, "load", load)
    (tmp_path / "rows.jsonl").write_text('{"question": "What is it?"}\n' * 2)
    source = {"name": "jsonl", "path": str(tmp_path / "rows.jsonl"), "columns": {"reference": None, "answer": None}}
    base = {"model": {"name": "pretrained", "path": "nowhere"}, "data": {"train": source, "prompts_per_step": 1}}
    experiment = from_layers(Experiment, [base, {"rollout": {"samples_per_prompt": 2}}, options])
    with pytest.raises(ExprlError, match=said):
        train(experiment, tmp_path / "run", resume=False, console=Console(quiet=True))


def test_a_run_tells_of_held_out_problems_that_are_trained_on_before_its_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from exprl.commands.train import train
    from exprl.terminal.console import Console

    class Stopped(Exception):
        """Where the model would be loaded."""

    def load(self: PretrainedModel) -> None:
        raise Stopped

    monkeypatch.setattr(PretrainedModel, "load", load)
    (tmp_path / "rows.jsonl").write_text(
        "".join(f'{{"question": "{n} + 1?", "answer": "{n + 1}"}}\n' for n in range(4))
    )
    source = {"name": "jsonl", "path": str(tmp_path / "rows.jsonl"), "columns": {"reference": None}}
    base = {"model": {"name": "pretrained", "path": "nowhere"}, "data": {"train": source, "prompts_per_step": 1}}
    held_out = {"source": {**source, "offset": 3}, "samples_per_prompt": 1, "k": [1]}
    with pytest.raises(Stopped):
        train(
            from_layers(Experiment, [base, {"evaluation": held_out}]),
            tmp_path / "run",
            resume=False,
            console=Console(quiet=True),
        )
    assert "1 of 1 held-out problems are training problems too (first: " in caplog.text
