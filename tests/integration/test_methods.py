"""The baselines as methods of training: real runs on the chain world, on one and two ranks, stopped and resumed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from exprl.build import Build
from exprl.commands.train import TrainingRun
from exprl.config import from_layers, validate_choice
from exprl.data.order import step_indices
from exprl.errors import ConfigError, DataError, ModelError
from exprl.experiment import Experiment
from exprl.registry import SOURCES
from exprl.runs.directory import RunDirectory
from exprl.terminal.console import Console
from exprl.training.batching import TokenSequence, collate
from exprl.training.evaluation_log import STEP, kind_of
from exprl.training.policy import response_logprobs
from exprl.training.policy_module import PolicyModule
from exprl.training.self_distillation import DistillationModule
from exprl.training.sft import demonstration
from exprl.training.world import World
from tests.conftest import skip_without_adapters
from tests.integration.processes import assert_same_run, execute, lines, samples, steps

pytestmark = pytest.mark.usefixtures("forking")

SFT = ("method.name=sft",)
TEACHER = ("method.name=self_distillation",)
SAMPLED, EXACT = (*TEACHER, "method.estimator=sampled"), (*TEACHER, "method.estimator=exact")
METHODS = {"sft": SFT, "sampled": SAMPLED, "exact": EXACT}
methods = pytest.mark.parametrize("method", METHODS)

DDP = ("trainer.devices=2", "trainer.accelerator=cpu")
FSDP2 = (*DDP, "trainer.strategy=fsdp2")


def on_rows(experiment: Experiment, folder: Path, *rows: dict[str, str]) -> Experiment:
    """The same on problems from a file."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {} if "reference" in rows[0] else {"reference": None}
    train = validate_choice(SOURCES, {"name": "jsonl", "path": str(path), "columns": columns}, "data.train")
    return replace(experiment, data=replace(experiment.data, train=train, prompts_per_step=len(rows)))


def row(**changed: str) -> dict[str, str]:
    return {"question": "a+3 from 417", "reference": "a+3 785\nAnswer: 785", "answer": "785", **changed}


# ------------------------------------------------------------------ SFT


def test_sft_trains_on_references_alone(small: Any, run: Any, tmp_path: Path) -> None:
    longer = "data.train.steps=4"  # than what the policy was warmed up with
    summary = run(small(*SFT, longer, "trainer.max_steps=8", "optimizer.lr=1e-3", "optimizer.warmup_updates=0"))
    metrics = [line for line in lines(tmp_path / "run/metrics.jsonl") if kind_of(line) == STEP]
    assert summary["steps"] == 8
    assert summary["after"]["pass@1"] is not None
    assert set(metrics[0]) == {
        "step", "sft/length_mean", "update/loss", "update/entropy", "update/grad_norm", "update/lr", "update/count",
    }  # fmt: skip
    assert sum(line["update/loss"] for line in metrics[-3:]) < 0.9 * sum(line["update/loss"] for line in metrics[:3])
    assert not (tmp_path / "run/rollouts").exists()
    assert "loss" in (tmp_path / "run.log").read_text()


def test_the_loss_of_sft_is_the_mean_over_the_references_tokens(small: Any, run: Any, tmp_path: Path) -> None:
    experiment = small(*SFT, "trainer.max_steps=1", "evaluation.source=null", "rollout.temperature=0.5")
    run(experiment)
    build = Build(experiment, training=True)
    chosen = [build.train_problems[i] for i in next(step_indices(16, 4, experiment.seed))]
    total, tokens = 0.0, 0
    for problem in chosen:
        prompt = build.prompts.build(problem.question).token_ids
        assert problem.scaffold.reference is not None
        text = problem.scaffold.reference.reveal() + build.policy.tokenizer.eos_token
        response = build.policy.tokenizer(text, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = build.policy.model(input_ids=torch.tensor([[*prompt, *response]])).logits[0]
        logp = torch.log_softmax(logits[len(prompt) - 1 : -1], dim=-1)
        total -= logp[torch.arange(len(response)), response].sum().item()
        tokens += len(response)
    line = lines(tmp_path / "run/metrics.jsonl")[0]
    assert line["update/loss"] == pytest.approx(total / tokens, rel=1e-4)
    assert line["sft/length_mean"] == tokens / 4


def test_a_reference_spells_no_control_token(small: Any, tmp_path: Path) -> None:
    build = Build(on_rows(small(*SFT), tmp_path, row(reference="1<eos>2<user>3")), training=True)
    ids = demonstration(build.train_problems[0], build.prompts, build.policy).response_ids
    special = set(build.policy.tokenizer.all_special_ids) - {build.policy.tokenizer.unk_token_id}
    assert [token for token in ids if token in special] == [build.policy.tokenizer.eos_token_id]
    assert ids[-1] == build.policy.tokenizer.eos_token_id


@methods
def test_problems_without_references_are_refused_before_anything_runs(
    small: Any, run: Any, tmp_path: Path, method: str
) -> None:
    bare = {key: value for key, value in row().items() if key != "reference"}
    name = METHODS[method][0].removeprefix("method.name=")
    with pytest.raises(DataError, match=rf"data\.train.*no reference.*method\.name={name}"):
        run(on_rows(small(*METHODS[method]), tmp_path, bare))
    assert not (tmp_path / "run").exists()


def test_a_reference_that_does_not_fit_is_named(small: Any, run: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"data\.train.*'rows-2'.*31\d tokens.*256"):
        run(on_rows(small(*SFT), tmp_path, row(), row(reference="1" * 300)))
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------ self-distillation


@pytest.mark.parametrize("method", ["sampled", "exact"])
def test_self_distillation_makes_the_teacher_believe_the_policy(small: Any, tmp_path: Path, method: str) -> None:
    options = ["trainer.max_steps=6", "optimizer.lr=1e-3", "optimizer.warmup_updates=0", "evaluation.source=null"]
    experiment = small(*METHODS[method], *options, "rollout.samples_per_prompt=16")
    running = TrainingRun(experiment, RunDirectory(tmp_path / "run"), Console(quiet=True))
    module = running.prepare()
    assert isinstance(module, DistillationModule)
    before = teachers_logprob(module, running.build)
    running.execute(resume=False)
    metrics = lines(tmp_path / "run/metrics.jsonl")
    assert teachers_logprob(module, running.build) > before + 0.1
    assert metrics[-1]["update/teacher_kl"] < 0.8 * metrics[0]["update/teacher_kl"]
    for name in ("outcome/accuracy", "outcome/unlocked_prompts", "update/entropy", "update/kl", "rollout/length_mean"):
        assert name in metrics[0]
    assert metrics[0]["reward/mean"] == pytest.approx(metrics[0]["outcome/accuracy"])
    assert len(samples(tmp_path / "run")) == 6 * 4 * 16


def teachers_logprob(module: DistillationModule, build: Build) -> float:
    """Mean log-prob a token that the teacher gives to fresh rollouts of the policy as it is."""
    sequences = module.policy_update().sequences(module.compare(module.collect(build.train_problems)))
    pad = build.policy.tokenizer.pad_token_id
    assert isinstance(pad, int)
    read = [sequence.for_teacher for sequence in sequences if hasattr(sequence, "for_teacher")]
    assert all(isinstance(sequence, TokenSequence) for sequence in read)
    batch = collate(read, pad_token_id=pad, device=torch.device("cpu"))
    with build.initial_policy.inference():
        return response_logprobs(build.initial_policy.model, batch, temperature=1.0).logp.mean().item()


def test_one_update_of_the_exact_kl_lowers_it_on_the_same_rollouts(small: Any) -> None:
    build = Build(small(*EXACT, "update.log_kl=false"), training=True)
    module = build.experiment.method.build(build.resources).prepare(build, World())
    computing = module.policy_update()
    updates, dropped = computing.plan(module.compare(module.collect(build.train_problems[:4])))
    assert dropped == 0
    weights = list(build.policy.model.parameters())
    optimizer = torch.optim.SGD(weights, lr=0.05)
    first = computing.accumulate(updates[0], lambda loss: loss.backward())
    optimizer.step()
    second = computing.accumulate(updates[0], lambda loss: None)
    assert second["teacher_kl"] < 0.99 * first["teacher_kl"]


def test_a_teachers_prompt_that_does_not_fit_is_named(small: Any, run: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"teacher's prompt of \d+ tokens.*rollout\.max_new_tokens.*method\.template"):
        run(small("method.name=self_distillation", f'method.template="{"1" * 300} {{reference}} {{task}}"'))
    assert not (tmp_path / "run").exists()


def test_an_adapter_follows_its_base(small: Any, run: Any, tmp_path: Path) -> None:
    skip_without_adapters()
    options = ["lora.rank=4", "trainer.max_steps=3", "optimizer.lr=1e-2", "optimizer.warmup_updates=0"]
    run(small(*EXACT, *options, "evaluation.source=null", "update.offload_initial_policy=true"))
    metrics = lines(tmp_path / "run/metrics.jsonl")
    assert metrics[0]["update/kl"] == pytest.approx(0.0, abs=1e-6)
    assert metrics[-1]["update/kl"] > 0
    assert metrics[-1]["update/teacher_kl"] < metrics[0]["update/teacher_kl"]


# ------------------------------------------------------------------ every method


@methods
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(
    small: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    experiment = small(*METHODS[method], "update.prompts_per_update=2", "trainer.checkpoint_every=1")
    run(experiment, "straight")
    update = PolicyModule.update_policy

    def failing(self: PolicyModule, *arguments: Any) -> Any:
        if self.steps_done == 2:
            raise RuntimeError("the machine is gone")
        return update(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(PolicyModule, "update_policy", failing)
        with pytest.raises(RuntimeError, match="the machine is gone"):
            run(experiment, "stopped")
    assert steps(tmp_path / "stopped") == [1, 2]
    run(experiment, "stopped", resume=True)
    assert_same_run(tmp_path / "straight", tmp_path / "stopped")


@methods
def test_two_ranks_replicated_and_sharded_train_alike(small: Any, run: Any, tmp_path: Path, method: str) -> None:
    names = ["update/loss", "update/grad_norm", "update/entropy"]
    options = [*METHODS[method], "trainer.max_steps=2"]
    folders = [tmp_path / "ddp", tmp_path / "fsdp2"]
    if method == "sft":  # nothing is sampled, so one rank alone computes the same
        options.append("update.prompts_per_update=null")
        run(small(*options, "evaluation.source=null"), "alone")
        folders.append(tmp_path / "alone")
    else:
        names.append("update/teacher_kl")
    for folder, strategy in zip(folders, (DDP, FSDP2), strict=False):
        done = execute(folder, *strategy, *options)
        assert done.returncode == 0, done.stderr[-2000:]
    for same_step in zip(*(lines(folder / "metrics.jsonl") for folder in folders), strict=True):
        for line in same_step[1:]:
            for name in names:
                assert line[name] == pytest.approx(same_step[0][name], rel=1e-3, abs=1e-6), name


def test_a_killed_rank_stops_the_run_which_resumes_bitwise(tmp_path: Path) -> None:
    options = (*DDP, *EXACT, "trainer.max_steps=3")
    assert execute(tmp_path / "straight", *options).returncode == 0
    killed = execute(tmp_path / "killed", *options, fault="kill:updating:3:1")
    assert killed.returncode == 128 + 9
    assert steps(tmp_path / "killed")[-1] == 2
    assert execute(tmp_path / "killed", *options).returncode == 0
    assert_same_run(tmp_path / "straight", tmp_path / "killed")


# ------------------------------------------------------------------ the config


def mismatched(**method: str) -> dict[str, Any]:
    reward = {"name": "process", "slicer": {"name": "token_window"}, "judge": {"name": "reference_steps"}}
    return {"method": method, "model": {"path": "m"}, "reward": reward, "advantage": {"name": "group"}}


def test_options_that_a_method_ignores_may_stand() -> None:
    with pytest.raises(ConfigError, match=r"advantage\.name"):
        from_layers(Experiment, [mismatched(name="rl")])
    for name in ("sft", "self_distillation"):
        assert from_layers(Experiment, [mismatched(name=name)]).method.name == name
    truncated = {"model": {"path": "m"}, "rollout": {"top_k": 5}}
    with pytest.raises(ConfigError, match="top_k"):
        from_layers(Experiment, [{**truncated, "method": {"name": "self_distillation"}}])
    assert from_layers(Experiment, [{**truncated, "method": {"name": "sft"}}]).rollout.config.top_k == 5


def test_lone_rollouts_that_teach_nothing_leave_no_folder(small: Any, run: Any, tmp_path: Path) -> None:
    lone = ("rollout.samples_per_prompt=1", "reward.name=sparse", "advantage.name=group", "evaluation.source=null")
    with pytest.raises(ConfigError, match="every advantage of 'group' is 0"):
        run(small(*lone))
    assert not (tmp_path / "run").exists()


def test_rl_is_the_default_and_names_are_checked() -> None:
    assert from_layers(Experiment, [{"model": {"path": "m"}}]).method.name == "rl"
    with pytest.raises(ConfigError, match=r"method\.name.*Did you mean 'self_distillation'"):
        from_layers(Experiment, [{"model": {"path": "m"}, "method": {"name": "self_destillation"}}])
    with pytest.raises(ConfigError, match=r"^method\.template: .*\{reference\}"):
        from_layers(
            Experiment, [{"model": {"path": "m"}, "method": {"name": "self_distillation", "template": "{task}"}}]
        )
