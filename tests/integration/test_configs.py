"""Every shipped YAML loads, validates and stays short; the one-name ablations work on every one that has a judge."""

from __future__ import annotations

from pathlib import Path

import pytest

from exprl.config import from_layers, to_node, to_yaml
from exprl.errors import ConfigError
from exprl.experiment import Experiment, load_experiment
from exprl.study.plan import Plan

ROOT = Path(__file__).parents[2]
PARTS = ("studies", "calibration", "presets")
SHIPPED = sorted(path for path in ROOT.glob("configs/**/*.yaml") if path.parent.name not in PARTS)
STUDIES = sorted(ROOT.glob("configs/studies/*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_shipped_config_loads_and_survives_saving(path: Path) -> None:
    experiment = load_experiment(path)
    assert from_layers(Experiment, [to_node(experiment)]) == experiment
    assert "reference_solution" not in to_yaml(experiment)
    assert len(path.read_text().splitlines()) <= 40


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.name)
def test_a_shipped_study_plans(path: Path) -> None:
    plan = Plan.load(path)
    assert plan.study.baseline in plan.arms
    assert len(path.read_text().splitlines()) <= 45


def test_the_papers_settings() -> None:
    process = load_experiment(ROOT / "configs/qwen3_4b/process_delta.yaml")
    outcome = load_experiment(ROOT / "configs/qwen3_4b/outcome.yaml")
    sparse = load_experiment(ROOT / "configs/qwen3_4b/sparse_grpo.yaml")
    for run in (process, outcome, sparse):
        assert (run.optimizer.lr, run.rollout.config.temperature, run.trainer.max_steps) == (1e-6, 0.8, 230)
        assert (run.rollout.config.max_new_tokens, run.prompt.config.max_prompt_tokens) == (16384, 4096)
        assert (run.objective.config.kl_coef, run.objective.config.kl) == (0.001, "k3")
    assert (process.data.prompts_per_step, process.rollout.config.samples_per_prompt) == (36, 10)
    assert (process.objective.config.clip_low, process.objective.config.clip_high) == (0.2, 0.26)
    assert (outcome.update.prompts_per_update, outcome.objective.config.clip_high) == (18, 0.28)
    assert (sparse.data.prompts_per_step, sparse.rollout.config.samples_per_prompt) == (32, 16)
    assert sparse.update.prompts_per_update == 16


def test_the_routes_of_the_mixed_runs() -> None:
    judged, executed = (load_experiment(f"qwen3_8b_mixed/{name}").reward.config for name in ("judged", "executed"))
    assert (judged.default.name, {name: one.name for name, one in judged.domains.items()}) == (
        "process",
        {"science": "outcome", "code": "outcome"},
    )
    judges = [judged.default.config.judge, *(one.config.judge for one in judged.domains.values())]
    assert [judge.config.prompt for judge in judges] == ["math", "science", "code"]
    assert {judge.config.model.config.path for judge in judges} == {"Qwen/Qwen3-4B"}
    assert executed.domains["code"].name == "execution"
    assert (executed.default, executed.domains["science"]) == (judged.default, judged.domains["science"])


def test_rubrics_in_the_mixed_run_are_those_of_one_file_for_all_judges() -> None:
    reward = load_experiment("qwen3_8b_mixed/rubric", ["reward.judge.rubrics=r.jsonl"]).reward.config
    judges = [reward.domains["science"].config.judge, reward.default.config.judge]
    assert [(judge.name, judge.config.rubrics, judge.config.monotone) for judge in judges] == [
        ("rubric", "r.jsonl", True)
    ] * 2
    assert {judge.config.model.config.path for judge in judges} == {"Qwen/Qwen3-4B"}
    assert reward.domains["code"].name == "execution"


@pytest.mark.parametrize("config", ["mixed", "qwen3_8b_mixed/executed"])
@pytest.mark.parametrize("judge", ["no_reference", "wrong_reference"])
def test_an_ablation_of_a_route_is_one_name(config: str, judge: str) -> None:
    science = load_experiment(config, [f"reward.domains.science.judge.name={judge}"]).reward.config.domains["science"]
    assert (science.config.judge.name, science.config.judge.config.around.config.prompt) == (judge, "science")


def test_the_baselines_of_the_paper() -> None:
    sft = load_experiment(ROOT / "configs/qwen3_4b/sft.yaml")
    distilled = load_experiment(ROOT / "configs/qwen3_4b/self_distillation.yaml")
    assert (sft.method.name, sft.optimizer.lr, sft.data.prompts_per_step) == ("sft", 1e-6, 32)
    assert (distilled.method.name, distilled.method.config.estimator) == ("self_distillation", "sampled")
    assert (distilled.optimizer.lr, distilled.rollout.config.temperature) == (1e-7, 0.8)


@pytest.mark.parametrize(
    "override",
    [
        "reward.judge.name=no_reference",
        "reward.judge.name=wrong_reference",
        "reward.name=outcome",
        "reward.name=sparse",
        "reward.slicer.name=token_window",
        "advantage.name=segment_end",
        "advantage.name=segment_return",
        "advantage.name=segment_group",
        "advantage.name=segment_batch",
        "objective.name=reinforce",
        "method.name=sft",
        "method.name=self_distillation",
    ],
)
@pytest.mark.parametrize("config", ["quickstart.yaml", "smollm2_champ.yaml", "qwen3_4b/process_delta.yaml"])
def test_an_ablation_is_one_name(config: str, override: str) -> None:
    key, name = override.split("=")
    node = to_node(load_experiment(ROOT / "configs" / config, [override]))
    for part in key.split("."):
        node = node[part]
    assert node == name


def test_a_study_is_no_experiment_and_an_experiment_no_study() -> None:
    with pytest.raises(ConfigError, match=r"miniature\.yaml is a study, not an experiment: exprl study"):
        load_experiment(ROOT / "configs/studies/miniature.yaml")
    with pytest.raises(ConfigError, match=r"this is an experiment, not a study .*: exprl train FILE"):
        Plan.load(ROOT / "configs/quickstart.yaml", [])


def test_the_advantages_that_fit_a_reward_are_named() -> None:
    with pytest.raises(ConfigError, match=r"Set advantage\.name to one of: segment_batch, segment_delta, "):
        load_experiment(ROOT / "configs/quickstart.yaml", ["advantage.name=group"])
