"""Runs in which fresh prompts take the place of groups without a signal."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from lightning import Trainer
from torch.utils.data import DataLoader

from exprl.build import Build
from exprl.data.datamodule import ExpRLDataModule
from exprl.data.leakage import leaked_ngram
from exprl.engines.transformers import TransformersEngine
from exprl.errors import ConfigError
from exprl.experiment import Experiment, load_experiment
from exprl.training.collecting import Collector
from exprl.training.world import World
from exprl.types import Prompt
from tests.integration.conftest import MIXED, failing_after
from tests.integration.processes import execute, samples
from tests.integration.test_train import lines, untimed

SPARSE = ("reward.name=sparse", "advantage.name=group", "evaluation.source=null", "trainer.checkpoint_every=1")
DYNAMIC = (*SPARSE, "update.dynamic_sampling=2")

ALWAYS = ("update.dynamic_sampling=2", "update.signal_tolerance=1.0", "advantage.scale=none", "evaluation.source=null")
"""Of rewards in [0, 1], no advantage is as large as that, so every place is given a fresh problem twice."""

Small = Callable[..., Experiment]


def places(folder: Path) -> dict[int, list[str]]:
    """The problems of each step's groups, in order."""
    found: dict[int, list[str]] = {}
    for sample in samples(folder):
        step = found.setdefault(sample["step"], [])
        if sample["problem_id"] not in step:
            step.append(sample["problem_id"])
    return found


def steps_of(experiment: Experiment) -> ExpRLDataModule:
    """The problems of the run's steps."""
    build = Build(experiment)
    return ExpRLDataModule(
        build.train_problems,
        prompts_per_step=experiment.data.prompts_per_step,
        max_steps=experiment.trainer.max_steps,
        seed=experiment.seed,
        parts=build.train_parts,
    )


def test_groups_without_a_signal_are_replaced_counted_and_never_there_twice(
    small: Small, run: Any, tmp_path: Path
) -> None:
    experiment = small(*DYNAMIC)
    run(experiment)
    data, rewards = steps_of(experiment), dict[tuple[int, str], set[float]]()
    for sample in samples(tmp_path / "run"):
        rewards.setdefault((sample["step"], sample["problem_id"]), set()).add(sample["segments"][-1]["reward"])
    replaced = 0
    for line in lines(tmp_path / "run/metrics.jsonl"):
        step = line["step"]
        kept, fresh = places(tmp_path / "run")[step], data.step_replacements(step - 1, 2)
        assert len(set(kept)) == len(kept) == 4
        rounds = [
            [problem.id, *(other.id for other in others)].index(name)
            for name, problem, others in zip(kept, data.step_problems(step - 1), fresh, strict=True)
        ]
        assert line["update/replaced_groups"] == sum(rounds)
        assert line["update/sampling_rounds"] == 1 + max(rounds)
        without = [name for name in kept if len(rewards[step, name]) == 1]
        assert line["update/dropped_groups"] == len(without)
        assert {rounds[kept.index(name)] for name in without} <= {2}, "only after the last round is one kept"
        replaced += sum(rounds)
    assert replaced > 0


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(
    small: Small, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = small(*DYNAMIC)
    run(experiment, "straight")
    with monkeypatch.context() as patched:
        patched.setattr(Collector, "score", failing_after(2))
        with pytest.raises(RuntimeError, match="the machine is gone"):
            run(experiment, "stopped")
    run(experiment, "stopped", resume=True)
    assert untimed(tmp_path / "stopped/metrics.jsonl") == untimed(tmp_path / "straight/metrics.jsonl")
    assert samples(tmp_path / "stopped") == samples(tmp_path / "straight")


@pytest.mark.usefixtures("forking")
def test_two_ranks_replace_what_one_does(tmp_path: Path) -> None:
    options = ("trainer.accelerator=cpu", "trainer.max_steps=2", *DYNAMIC)
    for name, devices in (("one", ()), ("two", ("trainer.devices=2",))):
        done = execute(tmp_path / name, *options, *devices)
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = (
        sorted((s["step"], s["problem_id"], s["response"]) for s in samples(tmp_path / name)) for name in ("one", "two")
    )
    assert one[: 4 * 4] == two[: 4 * 4], "step 1: the weights are the same"
    first, second = (lines(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    for alone, shared in zip(first, second, strict=True):
        for metric in ("update/replaced_groups", "update/sampling_rounds", "update/dropped_groups", "reward/mean"):
            assert alone[metric] == shared[metric]
    assert sum(line["update/replaced_groups"] for line in first) > 0


def test_fresh_prompts_are_made_of_questions_alone(
    small: Small, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = small(*ALWAYS)
    generate, given = TransformersEngine.generate, list[Prompt]()

    def recording(self: TransformersEngine, prompts: Sequence[Prompt], sampling: Any) -> Any:
        given.extend(prompts)
        return generate(self, prompts, sampling)

    build = Build(experiment)
    monkeypatch.setattr(TransformersEngine, "generate", recording)
    run(experiment)
    metrics = lines(tmp_path / "run/metrics.jsonl")
    assert [line["update/replaced_groups"] for line in metrics] == [8.0] * 4
    problems = {problem.id: problem for problem in build.train_problems}
    asked = [prompt for prompt in given if prompt.problem_id in problems]
    assert len(asked) >= 4 * 3 * 4
    for prompt in asked:
        problem = problems[prompt.problem_id]
        assert prompt == build.prompts.build(problem.question, problem.domain)
        assert problem.scaffold.reference is not None
        assert leaked_ngram(problem.scaffold.reference.reveal(), problem.question.text, prompt.text) is None


def test_a_mix_keeps_its_weights(mixed: Path, run: Any, tmp_path: Path) -> None:
    whole, half = (
        {"name": "jsonl", "path": str(tmp_path / name), "columns": {"id": "id", "domain": "domain", "steps": "steps"}}
        for name in ("train.jsonl", "held-out.jsonl")
    )
    source = {"name": "mix", "sources": {"a": whole, "b": half}, "weights": {"a": 2.0}}
    options = ["data.prompts_per_step=6", "evaluation.source=null", "update.dynamic_sampling=2"]
    experiment = load_experiment(mixed, [*MIXED, *options, f"data.train={json.dumps(source)}"])
    run(experiment)
    assert sum(line["update/replaced_groups"] for line in lines(tmp_path / "run/metrics.jsonl")) > 0
    for kept in places(tmp_path / "run").values():
        assert Counter(name[0] for name in kept) == {"a": 4, "b": 2}


def test_a_step_without_an_update_says_how_often_it_tried(small: Small, run: Any, tmp_path: Path) -> None:
    run(small(*ALWAYS, "trainer.max_steps=1"))
    assert (
        "no update: 4 of 4 groups without signal after 2 rounds of fresh prompts" in (tmp_path / "run.log").read_text()
    )


def test_where_it_does_nothing_that_is_said(small: Small, run: Any, caplog: pytest.LogCaptureFixture) -> None:
    one = ("trainer.max_steps=1", "evaluation.source=null", "update.dynamic_sampling=2")
    run(small(*one, "method.name=sft"), "sft")
    run(small(*one, "method.name=self_distillation", "method.estimator=sampled"), "self")
    run(small(*one, "data.prompts_per_step=16", "rollout.samples_per_prompt=2"), "all")
    said = [record.getMessage() for record in caplog.records if "dynamic_sampling" in record.getMessage()]
    assert [message.partition(":")[0] for message in said] == [
        "update.dynamic_sampling=2 is ignored",
        "update.dynamic_sampling=2 is ignored",
        "update.dynamic_sampling=2 does nothing",
    ]
    assert "method.name=sft" in said[0]
    assert "all of the 16 training problems" in said[2]


def test_other_loaders_are_refused_before_any_work(small: Small) -> None:
    build = Build(small(*DYNAMIC, "model.target_accuracy=0.0"), training=True)
    module = build.experiment.method.build(build.resources).prepare(build, World())
    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    loader: Any = DataLoader(build.train_problems, batch_size=4, collate_fn=list)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"update\.dynamic_sampling: needs to know the problems of any step"):
        trainer.fit(module, loader)


def test_facts_are_looked_for_in_what_was_trained_on(small: Small, run: Any, tmp_path: Path) -> None:
    from exprl.commands.leaks import Audited
    from exprl.runs.directory import RunDirectory

    experiment = small("leak.canaries=1.0", *ALWAYS)
    run(experiment)
    checkpoint = tmp_path / "run/checkpoints/step-000004.ckpt"
    audited = Audited(experiment, RunDirectory(tmp_path / "run"), checkpoint)
    assert audited.visits == Counter(name for kept in places(tmp_path / "run").values() for name in kept)
    next((tmp_path / "run/rollouts").iterdir()).unlink()
    with pytest.raises(ConfigError, match=r"has those of 3 of 4 steps\. Keep all of them: trainer\.rollouts_every=1"):
        Audited(experiment, RunDirectory(tmp_path / "run"), checkpoint).check()
