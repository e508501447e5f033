"""The advantage that goes with a reward: the default follows the reward, and what is named stays and is told."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from exprl.advantages import GroupAdvantage
from exprl.commands import listing
from exprl.component import Choice
from exprl.config import from_layers, load, to_node
from exprl.errors import ConfigError
from exprl.experiment import Experiment, load_experiment
from exprl.registry import ADVANTAGES, JUDGES, MODELS, REWARDS
from exprl.rewards import Reward
from exprl.terminal.console import Console
from exprl.training.advice import about_advantage
from exprl.types import RolloutReward

JUDGE = {"name": "reference_steps"}
VALUES = [[1.0, 0.0, 0.0, 0.0], [0.75, 0.5, 0.25, 0.5]]


def experiment(reward: str, **node: Any) -> Experiment:
    judged = {"judge": JUDGE} if reward in ("outcome", "process") else {}
    return from_layers(Experiment, [{"model": {"name": "chain"}, "reward": {"name": reward, **judged}, **node}])


def of_rollouts(name: str, **options: Any) -> list[list[float]]:
    advantage = ADVANTAGES.get(name)(**options)
    rewards = [tuple(RolloutReward(value=value, length=3) for value in group) for group in VALUES]
    return [[own.values[0] for own in group] for group in advantage.estimate(rewards)]


@pytest.mark.parametrize("reward", [name for name in REWARDS.names() if name != "by_domain"])
def test_a_reward_brings_an_advantage_that_takes_it(reward: str) -> None:
    found = experiment(reward)
    assert found.reward.cls.granularity in found.advantage.cls.accepts
    assert found.advantage.name == {"rollout": "group", "segment": "segment_delta"}[found.reward.cls.granularity]
    assert about_advantage(found) is None
    assert from_layers(Experiment, [to_node(found)]) == found


@pytest.mark.parametrize("reward", [name for name in REWARDS.names() if name != "by_domain"])
def test_one_override_of_the_reward_takes_the_advantage_with_it(tmp_path: Path, reward: str) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        "model: {name: chain}\nreward: {name: process, judge: {name: reference_steps}}\nadvantage: {scale: rms}\n"
    )
    found = load(Experiment, mine, [f"reward.name={reward}"]).advantage
    assert (found.name, found.config.scale) == (experiment(reward).advantage.name, "rms")


def test_it_goes_with_a_reward_made_in_code() -> None:
    judge, model = Choice.of(JUDGES, "reference_steps"), Choice.of(MODELS, "chain")
    process, outcome = (Choice.of(REWARDS, name, judge=judge) for name in ("process", "outcome"))
    assert Experiment(model=model, reward=process).advantage.name == "segment_delta"
    assert Experiment(model=model, reward=outcome).advantage == Choice.of(ADVANTAGES, "group")
    assert Experiment(model=model).advantage.name == "group"


def test_the_list_of_options_says_on_what_it_depends() -> None:
    file = io.StringIO()
    listing.show("experiment", Console(file=file, width=200))
    [line] = [line for line in file.getvalue().splitlines() if line.strip().startswith("advantage = ")]
    assert line.strip().startswith("advantage = depends ")
    assert "group with one reward a rollout, segment_delta with one a segment" in line


def test_a_reward_that_does_not_say_what_it_scores_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unsaid(Reward):
        registered_name = "unsaid"

        def score(self, groups: Any, on_progress: Any = None) -> Any:
            raise AssertionError

    monkeypatch.setitem(REWARDS._classes, "unsaid", Unsaid)
    with pytest.raises(ConfigError, match=r"reward\.name: 'unsaid' .*Unsaid\) must define granularity as 'rollout' or"):
        load_experiment(None, ["model.name=chain", "reward.name=unsaid"])


@pytest.mark.parametrize("name", ADVANTAGES.names())
def test_what_is_named_stays_and_is_told_where_it_is_not_grpo(name: str) -> None:
    found = experiment("sparse", advantage={"name": name})
    assert found.advantage.name == name
    said = about_advantage(found)
    assert (said is None) == (name in ("group", "segment_sum"))
    if said is None:
        assert of_rollouts(name) == of_rollouts("group")
        return
    assert f"advantage.name={name} " in said
    assert "advantage.name=group" in said
    if name == "segment_batch":
        mean = sum(map(sum, VALUES)) / sum(map(len, VALUES))
        centred = [[value - mean for value in group] for group in VALUES]
    else:
        centred = of_rollouts("group", std=False)
    assert of_rollouts(name) == [pytest.approx(group) for group in centred]
    assert of_rollouts(name)[0] != pytest.approx(of_rollouts("group")[0])


def test_dr_grpo_is_grpo_times_the_deviation_of_the_group() -> None:
    scales = [
        delta[0] / grpo[0] for delta, grpo in zip(of_rollouts("segment_delta"), of_rollouts("group"), strict=True)
    ]
    assert scales == [pytest.approx(0.5, rel=1e-4), pytest.approx(0.2041241, rel=1e-4)]
    assert GroupAdvantage.Config().std
