"""What is asked about a run, from the command line and from YAML, and what is refused before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from exprl import config as configuration
from exprl.errors import ConfigError
from exprl.experiment import load_experiment
from exprl.study.alternatives import Plan, given_alternatives, grading, name_of
from tests.integration.conftest import ROOT


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return run_of(tmp_path / "run")


def run_of(folder: Path, *overrides: str) -> Path:
    """The folder of a quickstart run, of which the config is all that is read here."""
    (folder / "checkpoints").mkdir(parents=True)
    experiment = load_experiment(ROOT / "configs/quickstart.yaml", list(overrides))
    (folder / "config.yaml").write_text(configuration.to_yaml(experiment))
    return folder


def planned(run: Path, *items: str, overrides: tuple[str, ...] = ()) -> Plan:
    return Plan.load(run, overrides, given_alternatives(None, [], items))


def test_names_and_flags() -> None:
    found = given_alternatives(
        None,
        [["outcome", "reward.name=outcome", "advantage.name=group"]],
        ["reward.judge.name=wrong_reference", "reward.clip_length=false"],
    )
    assert found == {
        "outcome": [{"reward": {"name": "outcome"}, "advantage": {"name": "group"}}],
        "wrong_reference-clip_length-false": [{"reward": {"judge": {"name": "wrong_reference"}, "clip_length": False}}],
    }
    assert name_of(["reward.judge.path=a/b"]) == "path-a_b"


def test_a_file_and_what_it_extends(tmp_path: Path, run: Path) -> None:
    (tmp_path / "base.yaml").write_text("alternatives: {a: {reward: {judge: {name: wrong_reference}}}}")
    (tmp_path / "mine.yaml").write_text(
        "extends: base.yaml\nalternatives: {a: {reward: {show: segment}}, b: {advantage: {name: segment_end}}}"
    )
    plan = Plan.load(run, [], given_alternatives(str(tmp_path / "mine.yaml"), [], []))
    first, second = plan.alternatives
    assert (first.experiment.reward.config.show, first.experiment.reward.config.judge.name) == (
        "segment",
        "wrong_reference",
    )
    assert first.asked == ("reward.judge.name=wrong_reference", "reward.show=segment")
    assert first.regrades
    assert not second.regrades, "the rewards are the run's"
    assert first.digest != second.digest


@pytest.mark.parametrize(
    ("named", "items", "message"),
    [
        ([["reward.name=outcome"]], [], "a name must come first"),
        ([["a"]], [], "what is chosen otherwise"),
        ([["a", "reward.name=outcome"], ["a", "reward.name=sparse"]], [], "two alternatives are named a"),
        ([["a", "b"]], [], "write key.path=value"),
    ],
)
def test_what_is_no_alternative(named: list[list[str]], items: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        given_alternatives(None, named, items)


def test_a_file_without_any_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("reward: {name: outcome}")
    with pytest.raises(ConfigError, match="it has no alternatives"):
        given_alternatives(str(tmp_path / "mine.yaml"), [], [])


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ((), "no alternative is given"),
        (("advantage.name=group",), "alternative group: advantage.name: 'group' takes one reward a rollout"),
        (("reward.judge.name=nobody",), "alternative nobody: reward.judge.name: Unknown judge 'nobody'"),
        (("rollout.temperature=0.5",), "the rollouts are there already"),
        (("method.name=sft",), "the rollouts are there already"),
        (
            ("reward.judge.name=same_model", "reward.judge.weights=live"),
            "reward.judge.weights: live were the policy's at each step, which are gone",
        ),
    ],
)
def test_what_cannot_be_asked(run: Path, items: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        planned(run, *items)


def test_a_live_judge_may_have_another_advantage(tmp_path: Path) -> None:
    run = run_of(tmp_path / "live", "reward.judge.name=same_model", "reward.judge.weights=live")
    [one] = planned(run, "advantage.name=segment_end").alternatives
    assert not one.regrades


@pytest.mark.parametrize("override", ["reward.name=outcome", "seed=3", "update.epochs=2", "rollout.temperature=0.5"])
def test_no_override_says_that_the_run_was_another(run: Path, override: str) -> None:
    with pytest.raises(ConfigError, match="it is part of what the run did"):
        planned(run, "advantage.name=segment_end", overrides=(override,))


def test_overrides_say_how_to_compute_here(run: Path) -> None:
    plan = planned(run, "advantage.name=segment_end", overrides=("update.micro_batch_tokens=64",))
    assert plan.experiment.update.micro_batch_tokens == 64
    again = planned(run, "advantage.name=segment_end")
    assert grading(plan, plan.alternatives[0]) == grading(again, again.alternatives[0]), "goes on with what was graded"


@pytest.mark.parametrize("method", ["sft", "self_distillation"])
def test_a_run_that_scored_nothing_is_refused(tmp_path: Path, method: str) -> None:
    run = run_of(tmp_path / "other", f"method.name={method}")
    with pytest.raises(ConfigError, match=f"method.name={method}, which learns from no rewards"):
        planned(run, "reward.name=outcome")


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Give the folder of a run"):
        planned(tmp_path, "reward.name=outcome")
