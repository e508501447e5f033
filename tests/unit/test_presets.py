"""Algorithms by one name: what each sets, over which configs, and how it is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from exprl.config import to_node
from exprl.config.shipped import shipped
from exprl.errors import ConfigError
from exprl.experiment import Experiment, load_experiment

GRPO = {"name": "group", "scale": "none", "std": True, "baseline": "mean"}
EXPECTED: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[str, int | None]]] = {
    "grpo": (GRPO, {"name": "clipped", "clip_low": 0.2, "clip_high": 0.2, "kl_coef": 0.04}, ("sequence", None)),
    "dapo": (GRPO, {"name": "clipped", "clip_low": 0.2, "clip_high": 0.28, "kl_coef": 0.0}, ("token", None)),
    "dr_grpo": (
        {**GRPO, "std": False},
        {"name": "clipped", "clip_low": 0.2, "clip_high": 0.2, "kl_coef": 0.0},
        ("constant", None),
    ),
    "gspo": (
        GRPO,
        {"name": "gspo", "sequence_clip_low": 3e-4, "sequence_clip_high": 4e-4, "kl_coef": 0.0},
        ("sequence", None),
    ),
    "rloo": (
        {**GRPO, "std": False, "baseline": "leave_one_out"},
        {"name": "reinforce", "kl_coef": 0.001},  # that of the config
        ("constant", 1),
    ),
}


def test_every_preset_is_tested() -> None:
    assert sorted(EXPECTED) == [name.partition("/")[2] for name in shipped() if name.startswith("presets/")]


def chosen(experiment: Experiment) -> tuple[dict[str, Any], dict[str, Any], tuple[str, int | None]]:
    node, update = to_node(experiment), experiment.update
    return node["advantage"], node["objective"], (update.aggregation, update.aggregation_length)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_preset_is_one_name_over_any_config(name: str, tmp_path: Path) -> None:
    """By an override and in a file; what it says nothing of stays."""
    advantage, objective, aggregation = EXPECTED[name]
    file = tmp_path / "mine.yaml"
    file.write_text(f"extends: [qwen3_4b/sparse_grpo, presets/{name}]\nobjective: {{correction: {{name: icepop}}}}\n")
    overrides = [f"extends=presets/{name}", "objective.correction.name=icepop"]
    for experiment in (load_experiment(file), load_experiment("qwen3_4b/sparse_grpo", overrides)):
        found = chosen(experiment)
        assert {key: found[0][key] for key in advantage} == advantage
        assert {key: found[1][key] for key in objective} == objective
        assert found[1]["correction"]["name"] == "icepop"
        assert found[2] == aggregation


def test_a_preset_leaves_nothing_of_another_algorithm_in_place() -> None:
    """The quickstart divides by the batch's root mean square, which none of these does."""
    for name, (advantage, *_) in EXPECTED.items():
        found = load_experiment("quickstart", ["reward.name=sparse", f"extends=presets/{name}"])
        assert found.advantage.config.scale == advantage["scale"] == "none"


def test_dapo_alone_samples_fresh_prompts() -> None:
    rounds = {name: load_experiment("qwen3_4b/sparse_grpo", [f"extends=presets/{name}"]).update for name in EXPECTED}
    assert {name: update.dynamic_sampling for name, update in rounds.items()} == {
        **dict.fromkeys(EXPECTED, 0),
        "dapo": 2,
    }


def test_overrides_win_over_the_preset_and_the_preset_over_the_config() -> None:
    experiment = load_experiment("qwen3_4b/sparse_grpo", ["objective.clip_high=0.4", "extends=presets/dapo"])
    assert (experiment.objective.config.clip_high, experiment.objective.config.kl_coef) == (0.4, 0.0)


def test_a_preset_for_whole_rollouts_is_refused_over_a_reward_of_segments() -> None:
    with pytest.raises(ConfigError, match=r"advantage\.name: 'group' takes one reward a rollout, but reward 'process'"):
        load_experiment("quickstart", ["extends=presets/dapo"])
    again = load_experiment("quickstart", ["extends=presets/gspo", "advantage.name=segment_delta"])
    assert (again.objective.name, again.advantage.name) == ("gspo", "segment_delta")


def test_an_unknown_preset_is_told_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"Did you mean 'presets/dapo'"):
        load_experiment("quickstart", ["extends=presets/dapoo"])
    with pytest.raises(ConfigError, match=r"^extends"):
        load_experiment("quickstart", ["extends=3"])
