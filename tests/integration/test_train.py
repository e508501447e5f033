"""The whole path on the chain world: files, figures, ablations, resuming, refusing."""

from __future__ import annotations

import json
import math
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only

from exprl.chain import tokenizer as chain_tokenizer
from exprl.errors import ConfigError, JudgeError, OutOfMemoryError, RunDirectoryError
from exprl.rollouts import load_rollouts
from exprl.terminal.phases import Phases
from exprl.training.collecting import Collector
from exprl.training.evaluation_log import EVALUATION, STEP, kind_of
from exprl.training.update import PolicyUpdate
from tests.integration.conftest import failing_after
from tests.integration.processes import samples


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def untimed(path: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines(path)]


def test_a_run_leaves_its_whole_story(small: Any, run: Any, tmp_path: Path) -> None:
    summary = run(small("trainer.checkpoint_every=1", "evaluation.every=2"))
    folder = tmp_path / "run"
    assert set(summary["before"]) >= {"pass@1", "pass@4", "progress", "interval_95", "guess_rate"}
    assert summary["steps"] == 4
    assert {"prepare", "sampling", "judging", "updating", "total"} <= set(summary["seconds"])
    metrics = [line for line in lines(folder / "metrics.jsonl") if kind_of(line) == STEP]
    assert [line["step"] for line in metrics] == [1, 2, 3, 4]
    expected = {
        "reward/mean", "reward/std", "reward/within_group_variance", "judge/ok_rate", "judge/score_1",
        "outcome/all_0", "outcome/all_1", "outcome/mixed", "outcome/unlocked_prompts", "update/entropy", "update/kl",
        "update/clipped", "update/grad_norm", "update/dropped_groups", "rollout/length_mean", "rollout/cut_off_rate",
        "rollout/entropy",
        "time/tokens_per_second", "time/sampling_seconds", "time/judging_seconds", "time/updating_seconds",
    }  # fmt: skip
    assert expected <= set(metrics[0])
    found = samples(folder)
    assert len(found) == 4 * 4 * 4
    judged = next(s for s in found if s["finish_reason"] == "stop")
    assert "".join(segment["text"] for segment in judged["segments"]) == judged["response"]
    assert all(segment["status"] == "ok" and 1 <= segment["score"] <= 5 for segment in judged["segments"])
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == [
        *("step-000003.ckpt", "step-000003.ckpt.sha256", "step-000004.ckpt", "step-000004.ckpt.sha256")
    ]
    assert {p.stem for p in (folder / "evaluation").iterdir()} == {"before", "after", "step-000002", "step-000004"}
    assert list((folder / "tensorboard").glob("events.*"))


def test_a_rollout_s_place_in_its_group_depends_on_no_batch(small: Any, run: Any, tmp_path: Path) -> None:
    """Nor on its length: whoever pairs or shows rollouts by their places has no more of the short ones."""
    sampling = ("rollout.samples_per_prompt=8", "rollout.max_new_tokens=60", "rollout.temperature=1.3")
    for size in (3, 64):
        run(small("trainer.max_steps=1", "evaluation.source=null", *sampling, f"rollout.batch_size={size}"), str(size))
    few, many = (load_rollouts(tmp_path / str(size))[1] for size in (3, 64))
    for one, other in zip(few, many, strict=True):
        assert [(r.token_ids, r.text) for r in one.rollouts] == [(r.token_ids, r.text) for r in other.rollouts]
        assert one.verdicts == other.verdicts
    lengths = [[len(rollout) for rollout in group.rollouts] for group in many]
    assert any(own != sorted(own) for own in lengths), lengths


def test_a_task_of_a_job_is_a_run_of_its_own(
    small: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the second of `srun --ntasks=2`, whose rank Lightning reads from SLURM_PROCID when it is imported
    job = {"NTASKS": "2", "JOB_ID": "1", "JOB_NAME": "sweep", "PROCID": "1", "LOCALID": "1", "NODEID": "0"}
    for name, value in job.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    assert run(small("trainer.max_steps=1", "evaluation.source=null"))["steps"] == 1
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))


def test_an_existing_run_is_resumed_or_refused_but_never_overwritten(small: Any, run: Any, tmp_path: Path) -> None:
    experiment = small("trainer.max_steps=1")
    first = run(experiment)
    with pytest.raises(RunDirectoryError, match="--resume"):
        run(experiment)
    assert run(experiment, resume=True) == first
    with pytest.raises(RunDirectoryError, match="another config"):
        run(small("trainer.max_steps=1", "seed=1"), resume=True)
    follows = r"another config \(objective\.name: clipped -> gspo \(and \d+ options of it\)\)"
    with pytest.raises(RunDirectoryError, match=follows):
        run(small("trainer.max_steps=1", "objective.name=gspo"), resume=True)
    with pytest.raises(RunDirectoryError, match=r"finished after 1 step:.*model\.path="):
        run(small("trainer.max_steps=2"), resume=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(RunDirectoryError, match=r"no config\.yaml"):
        run(experiment, "other", resume=True)


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(
    small: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_scores = ("reward.slicer.name=change_point", "reward.slicer.every=1", "reward.slicer.fit=level")
    experiment = small("update.prompts_per_update=2", *by_scores)
    run(experiment, "straight")
    monkeypatch.setattr(Collector, "score", failing_after(2))
    with pytest.raises(RuntimeError, match="the machine is gone"):
        run(experiment, "stopped")
    monkeypatch.undo()
    run(experiment, "stopped", resume=True)
    straight, stopped = (
        torch.load(tmp_path / name / "checkpoints/step-000004.ckpt", weights_only=False)
        for name in ("straight", "stopped")
    )
    assert all(torch.equal(w, stopped["state_dict"][n]) for n, w in straight["state_dict"].items())
    assert straight["exprl"]["unlocked"] == stopped["exprl"]["unlocked"]
    assert untimed(tmp_path / "straight/metrics.jsonl") == untimed(tmp_path / "stopped/metrics.jsonl")
    assert samples(tmp_path / "straight") == samples(tmp_path / "stopped")


def test_a_stopped_run_may_go_on_with_less_memory(
    small: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(small("evaluation.source=null"), "straight")
    token_loss, calls = PolicyUpdate.token_loss, count()

    def too_large(self: PolicyUpdate, *args: Any) -> Any:
        if next(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 is full. Try this.")
        return token_loss(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(PolicyUpdate, "token_loss", too_large)
        with pytest.raises(OutOfMemoryError, match=r"^updating: .*2\.00 GiB.*micro_batch_tokens.*--resume"):
            run(small("evaluation.source=null"), "stopped")
    less = ["rollout.batch_size=4", "update.micro_batch_tokens=60", "update.activation_checkpointing=true"]
    run(small(*less, "evaluation.source=null"), "stopped", resume=True)
    assert samples(tmp_path / "straight") == samples(tmp_path / "stopped")
    straight, stopped = (untimed(tmp_path / name / "metrics.jsonl") for name in ("straight", "stopped"))
    assert [line["reward/mean"] for line in straight] == [line["reward/mean"] for line in stopped]
    for before, after in zip(straight, stopped, strict=True):
        assert after["update/grad_norm"] == pytest.approx(before["update/grad_norm"], rel=1e-3)


def test_a_stopped_run_may_be_given_more_steps(
    small: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(small("trainer.max_steps=3", "evaluation.source=null"), "straight")
    with monkeypatch.context() as patched:
        patched.setattr(Collector, "score", failing_after(1))
        with pytest.raises(RuntimeError, match="the machine is gone"):
            run(small("trainer.max_steps=2", "evaluation.source=null"), "longer")
    changed = ["trainer.max_steps=3", "trainer.print_samples=0", "trainer.checkpoint_every=1"]
    assert run(small(*changed, "evaluation.source=null"), "longer", resume=True)["steps"] == 3
    assert untimed(tmp_path / "longer/metrics.jsonl") == untimed(tmp_path / "straight/metrics.jsonl")


def test_the_time_of_a_resumed_run_is_that_of_all_its_processes(
    small: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A phase counts 100 s in the first process, 1000 s in the second, 10000 s in the third; each makes one step."""
    phase = Phases.run
    slow = {"seconds": 100.0, "stop": 1}

    @contextmanager
    def timed(self: Phases, name: str, *args: Any, **kwargs: Any) -> Any:
        with phase(self, name, *args, **kwargs) as on_progress:
            yield on_progress
        self.total[name] += slow["seconds"]

    monkeypatch.setattr(Collector, "score", failing_after(lambda: int(slow["stop"])))
    monkeypatch.setattr(Phases, "run", timed)
    options = ("trainer.max_steps=3", "evaluation.source=null")
    with pytest.raises(RuntimeError, match="the machine is gone"):
        run(small(*options))
    slow.update(seconds=1000.0, stop=2)
    with pytest.raises(RuntimeError, match="the machine is gone"):
        run(small(*options), resume=True)
    slow.update(seconds=10000.0, stop=99)
    summary = run(small(*options), resume=True)
    assert 11100 < summary["seconds"]["updating"] < 11200
    assert summary["processes"] == 3
    assert summary["seconds_of_last_process"] < summary["seconds"]["total"]
    assert "in 3 processes (" in (tmp_path / "run.log").read_text()


def test_a_run_is_not_resumed_with_another_chat_template(
    small: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("trainer.max_steps=2", "evaluation.source=null")
    with monkeypatch.context() as patched:
        patched.setattr(Collector, "score", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(small(*options))
    template = chain_tokenizer._CHAT_TEMPLATE
    monkeypatch.setattr(chain_tokenizer, "_CHAT_TEMPLATE", template.replace("{{ bos_token }}", ""))
    with pytest.raises(RunDirectoryError, match=r"another text: the policy's chat template, line 1 was .*bos_token"):
        run(small(*options), resume=True)
    monkeypatch.undo()
    assert run(small(*options), resume=True)["steps"] == 2


def test_a_run_killed_before_its_last_evaluation_makes_it(small: Any, run: Any, tmp_path: Path) -> None:
    first = run(small())
    (tmp_path / "run/summary.json").unlink()
    (tmp_path / "run/evaluation/after.json").unlink()
    again = run(small(), resume=True)
    for key in ("before", "after", "difference", "steps"):
        assert again[key] == first[key]


def test_a_run_that_cannot_start_leaves_no_folder(small: Any, run: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        run(small("trainer.devices=8"))
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written_is_named(small: Any, run: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunDirectoryError, match="run_dir"):
        run(small("evaluation.source=null"), "file/run")


@pytest.mark.parametrize(
    "override",
    [
        "reward.name=outcome",
        "reward.name=sparse",
        "reward.slicer.name=token_window",
        "reward.show=segment",
        "reward.judge.name=wrong_reference",
        "advantage.name=segment_end",
        "advantage.name=segment_batch",
        "objective.name=reinforce",
        "reward.normalization=extremes_only",
    ],
)
def test_a_one_word_ablation_trains(small: Any, run: Any, override: str) -> None:
    summary = run(small(override, "trainer.max_steps=1", "evaluation.source=null"))
    assert summary["steps"] == 1


def test_kl_and_several_updates_a_step(small: Any, run: Any, tmp_path: Path) -> None:
    run(small("objective.kl_coef=0.01", "update.prompts_per_update=1", "update.epochs=2", "evaluation.source=null"))
    steps = [line for line in lines(tmp_path / "run" / "metrics.jsonl") if line["update/count"] > 1]
    assert steps
    assert all(math.isfinite(line["update/loss"]) for line in steps)
    assert any(line["update/kl"] > 0 for line in steps)
    assert any(line["update/ratio"] != 1 for line in steps)


def test_a_delimiter_that_never_occurs_gives_one_segment_and_is_counted(small: Any, run: Any, tmp_path: Path) -> None:
    run(small("reward.slicer.delimiter=nowhere", "trainer.max_steps=1", "evaluation.source=null"))
    assert lines(tmp_path / "run" / "metrics.jsonl")[0]["reward/single_segment_rate"] == 1.0


def test_a_judge_that_always_fails_stops_the_run_and_shows_its_replies(
    small: Any, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from exprl.judges import ReferenceStepsJudge
    from exprl.types import Judgement

    def mumbling(self: ReferenceStepsJudge, requests: Any, on_progress: Any = None) -> list[Judgement]:
        return [Judgement(score=None, status="unparseable", rationale="well, hm") for _ in requests]

    monkeypatch.setattr(ReferenceStepsJudge, "judge", mumbling)
    with pytest.raises(JudgeError, match="well, hm") as caught:
        run(small("reward.clip_length=false"))
    assert "max_failure_rate" in str(caught.value)


def test_lengths_are_checked_before_any_sampling(small: Any, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Collector, "sample", lambda *_: pytest.fail("sampled"))
    with pytest.raises(Exception, match="context"):
        run(small("rollout.max_new_tokens=4000", "evaluation.source=null"))


def test_training_needs_problems(small: Any, run: Any) -> None:
    with pytest.raises(ConfigError, match=r"data\.train"):
        run(small("data.train=null"))


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a run: (step, value) by name."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_a_run_without_updates_says_why_and_logs_no_values_it_does_not_have(
    small: Any, run: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sparse = ("reward.name=sparse", "advantage.name=group", "rollout.max_new_tokens=1", "evaluation.source=null")
    summary = run(small(*sparse, "trainer.checkpoint_every=0"))
    console = (tmp_path / "run.log").read_text()
    reason = "no update: 4 of 4 groups without signal, all 16 rollouts were cut off at the length limit"
    assert console.count(reason) == 4
    assert "nan" not in console
    assert "4 of 4 steps made no update. What may help: " in console
    assert summary["steps_without_update"] == 4
    assert caplog.text.count("3 steps in a row made no update") == 1
    for line in lines(tmp_path / "run/metrics.jsonl"):
        assert line["update/count"] == 0
        assert None not in line.values()
        assert not set(line) & {"update/loss", "update/entropy", "update/kl", "update/lr", "update/grad_norm"}
    shown = scalars(tmp_path / "run")
    assert "update/entropy" not in shown
    assert [step for step, _ in shown["reward/mean"]] == [step for step, _ in shown["rollout/entropy"]] == [1, 2, 3, 4]
    assert not any(math.isnan(value) for points in shown.values() for _, value in points)


def test_arms_that_leave_out_other_groups_of_the_same_rollouts_have_one_entropy(
    small: Any, run: Any, tmp_path: Path
) -> None:
    options = ("trainer.max_steps=1", "evaluation.source=null", "advantage={name: group}")
    for name, reward in (("outcome", "{name: outcome}"), ("sparse", "{name: sparse}")):
        run(small(*options, f"reward={reward}"), name)
    [one], [other] = (lines(tmp_path / name / "metrics.jsonl") for name in ("outcome", "sparse"))
    assert one["update/dropped_groups"] != other["update/dropped_groups"]
    assert one["update/entropy"] != other.get("update/entropy"), "of the tokens that are left"
    assert one["rollout/entropy"] == other["rollout/entropy"]
    every = [p for group in load_rollouts(tmp_path / "sparse")[1] for r in group.rollouts for p in r.sampler_logprobs]
    assert one["rollout/entropy"] == pytest.approx(-sum(every) / len(every))


def test_evaluations_are_logged_once_under_one_name_with_their_step(small: Any, run: Any, tmp_path: Path) -> None:
    folder, experiment = tmp_path / "run", small("evaluation.every=2", "trainer.checkpoint_every=1")
    summary = run(experiment)
    logged = [line for line in lines(folder / "metrics.jsonl") if kind_of(line) == EVALUATION]
    assert [line["step"] for line in logged] == [0, 2, 4]
    for line, name in zip(logged, ("before", "step-000002", "after"), strict=True):
        figures = json.loads((folder / "evaluation" / f"{name}.json").read_text())["summary"]
        assert line["evaluation/pass@1"] == figures["pass@1"]
        assert line["evaluation/cut_off_rate"] == figures["cut_off_rate"]
    expected = [(line["step"], pytest.approx(line["evaluation/pass@4"])) for line in logged]
    assert scalars(folder)["evaluation/pass@4"] == expected
    before = (folder / "metrics.jsonl").read_bytes()
    (folder / "summary.json").unlink()
    (folder / "evaluation/after.json").unlink()
    again = run(experiment, resume=True)  # makes the last evaluation anew
    assert again["after"] == summary["after"]
    assert (folder / "metrics.jsonl").read_bytes() == before
    assert scalars(folder)["evaluation/pass@4"] == expected


def test_the_options_and_last_figures_are_on_tensorboard_s_page_of_hparams(
    small: Any, run: Any, tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    run(small("trainer.max_steps=1", "optimizer.lr=2e-4"))
    events = EventAccumulator(str(tmp_path / "run/tensorboard"))
    events.Reload()
    content = events.PluginTagToContent("hparams")
    start = HParamsPluginData.FromString(content["_hparams_/session_start_info"]).session_start_info.hparams
    assert start["optimizer.lr"].number_value == 2e-4
    assert start["reward.judge.name"].string_value == "reference_steps"
    assert start["evaluation.k"].string_value == "[1, 4]"
    experiment = HParamsPluginData.FromString(content["_hparams_/experiment"]).experiment
    metrics = {info.name.tag for info in experiment.metric_infos}
    assert {"evaluation/pass@1", "evaluation/pass@4", "reward/mean"} <= metrics
    assert metrics <= set(events.Tags()["scalars"])
    assert "optimizer.lr: 0.0002" in (tmp_path / "run/tensorboard/hparams.yaml").read_text()
