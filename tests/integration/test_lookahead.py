"""`rollout.lookahead: 1`: which policy samples what, beside the update or before it, killed, failing and resumed."""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from exprl.build import Build
from exprl.data.datamodule import ExpRLDataModule
from exprl.engines.base import Sampling
from exprl.errors import ConfigError, EngineError, JudgeError, NonFiniteError
from exprl.evaluation.evaluate import EvaluationResult
from exprl.judges import ReferenceStepsJudge
from exprl.rollouts import load_rollouts
from exprl.training.collecting import Collector
from exprl.training.interruption import Interrupted, Interruption
from exprl.training.lookahead import Background
from exprl.training.policy_module import PolicyModule
from exprl.training.world import World
from exprl.types import Judgement, Prompt, Rollout
from tests.integration.ahead_engine import ElsewhereEngine
from tests.integration.processes import assert_equal, assert_same_run, execute, final_state, lines, steps
from tests.integration.test_lightning import trainer
from tests.waiting import LONG

AHEAD = "rollout.lookahead=1"
ELSEWHERE = ("plugins=[tests.integration.faults,tests.integration.ahead_engine]", "rollout.name=elsewhere", AHEAD)
NO_EVALUATION = ("evaluation.source=null", "trainer.checkpoint_every=1")
ONE_REWARD = ("advantage={name: group}",)
KILLED = -9
FRESH = "update.dynamic_sampling=1"
"""In runs that are killed: what the next batch holds may be of other problems than the step's own."""


# ------------------------------------------------------------------ which policy samples what


def test_each_step_learns_from_rollouts_of_the_policy_before_the_last_update(
    small: Any, run: Any, tmp_path: Path
) -> None:
    run(small(AHEAD, *NO_EVALUATION))
    run(small(*NO_EVALUATION), "without")
    ahead, without = load_rollouts(tmp_path / "run"), load_rollouts(tmp_path / "without")
    assert {step: {r.policy_version for g in ahead[step] for r in g.rollouts} for step in ahead} == {
        1: {0}, 2: {0}, 3: {1}, 4: {2},
    }  # fmt: skip
    assert [line["update/staleness"] for line in lines(tmp_path / "run/metrics.jsonl")] == [0.0, 1.0, 1.0, 1.0]
    assert ahead[1] == without[1], "the first batch is fresh in both"
    for step in ahead:
        assert [g.problem_id for g in ahead[step]] == [g.problem_id for g in without[step]]
    assert "update/staleness" not in lines(tmp_path / "without/metrics.jsonl")[0]


def test_a_second_step_ahead_is_what_the_initial_policy_samples(small: Any, run: Any, tmp_path: Path) -> None:
    """With the seeds and problems of step 2: a run whose update does nothing samples the same there."""
    run(small(AHEAD, *NO_EVALUATION, "trainer.max_steps=2"))
    run(small(*NO_EVALUATION, "trainer.max_steps=2", "optimizer.lr=1e-18"), "still")
    assert tokens(tmp_path / "run", 2) == [(0, ids) for _, ids in tokens(tmp_path / "still", 2)]


@pytest.mark.parametrize("method", ["rl", "self_distillation"])
def test_beside_the_update_or_before_it_is_the_same_run(
    small: Any, run: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    options = (AHEAD, *NO_EVALUATION, f"method.name={method}", "trainer.max_steps=3")
    run(small(*options))
    assert "engine 'transformers' computes in this process" in caplog.text
    caplog.clear()
    run(small(*options, ELSEWHERE[0], "rollout.name=elsewhere"), "beside")
    assert "in this process" not in caplog.text
    assert_same_run(tmp_path / "run", tmp_path / "beside")


def test_evaluations_between_steps_ask_the_present_policy_and_leave_the_next_batch_alone(
    small: Any, run: Any, tmp_path: Path
) -> None:
    """With an engine that has weights of its own a stale one would answer otherwise."""
    for name, options in (
        ("plain", ("evaluation.every=1", "trainer.checkpoint_every=2")),
        ("without", ("evaluation.source=null",)),
    ):
        run(small(*ELSEWHERE, *options, "optimizer.lr=1e-2"), name)
    assert_equal(final_state(tmp_path / "plain")["state_dict"], final_state(tmp_path / "without")["state_dict"])
    build = Build(small("optimizer.lr=1e-2"))
    content = torch.load(tmp_path / "plain/checkpoints/step-000002.ckpt")
    weights = {name.removeprefix("policy."): value for name, value in content["state_dict"].items()}
    for name in ("before", "step-000002"):
        made = EvaluationResult.read(tmp_path / f"plain/evaluation/{name}.json", "")
        assert build.evaluate(lambda _: None).to_json() == made.to_json()
        build.policy.model.load_state_dict(weights)


def test_a_judge_hears_of_new_weights_after_it_has_judged_the_next_step(
    small: Any, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So one with live weights is the policy that sampled, and its cache knows which."""
    seen: list[str] = []
    for name in ("judge", "sync"):
        original = getattr(ReferenceStepsJudge, name)

        def noted(self: Any, *arguments: Any, name: str = name, original: Any = original) -> Any:
            seen.append(name)
            return original(self, *arguments)

        monkeypatch.setattr(ReferenceStepsJudge, name, noted)
    for options in ((AHEAD,), ELSEWHERE):
        seen.clear()
        run(small(*options, *NO_EVALUATION), f"run-{len(options)}")
        assert seen == ["judge", *["judge", "sync"] * 3, "sync"]


def test_a_run_that_was_to_end_samples_anew_where_it_is_made_longer(
    small: Any, run: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(small(AHEAD, *NO_EVALUATION, "trainer.max_steps=2"))
    (tmp_path / "run/summary.json").unlink()  # as if it had been killed before it wrote that
    run(small(AHEAD, *NO_EVALUATION), resume=True)
    assert "lacks rollouts of step 3" in caplog.text
    assert [line["update/staleness"] for line in lines(tmp_path / "run/metrics.jsonl")] == [0.0, 1.0, 0.0, 1.0]


def test_a_callback_ends_a_run_whose_next_step_is_sampled(small: Any, run: Any, tmp_path: Path) -> None:
    stopping = (
        "{class_path: exprl.training.early_stopping.StepEarlyStopping, init_args: {monitor: reward/mean, mode: max, "
    )
    options = (*ELSEWHERE, *NO_EVALUATION, f"trainer.callbacks=[{stopping}stopping_threshold: -1.0}}}}]")
    assert run(small(*options))["stopped_early"]
    assert steps(tmp_path / "run") == [1]
    assert run(small(*options), resume=True)["stopped_early"], "it stays ended"


# ------------------------------------------------------------------ beside the update


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What began and ended, in order; sampling beside an update goes on only when the update is under way, and back."""
    seen: list[str] = []
    sampling, updating = threading.Event(), threading.Event()
    generate, update = ElsewhereEngine.generate, PolicyModule.update_policy

    def generating(self: Any, prompts: Sequence[Prompt], options: Sampling) -> Iterator[tuple[int, Rollout]]:
        beside = threading.current_thread() is not threading.main_thread()
        if beside:
            seen.append("sampling")
            sampling.set()
            assert updating.wait(LONG), "the update never began"
            updating.clear()
        yield from generate(self, prompts, options)
        if beside:
            seen.append("sampled")

    def update_policy(self: PolicyModule, *arguments: Any) -> dict[str, float]:
        if self.steps_done < 3:  # the last step has no next
            assert sampling.wait(LONG), "sampling never began"
            sampling.clear()
        seen.append("updating")
        updating.set()
        return update(self, *arguments)

    monkeypatch.setattr(ElsewhereEngine, "generate", generating)
    monkeypatch.setattr(PolicyModule, "update_policy", update_policy)
    sync = ElsewhereEngine.sync

    def syncing(self: ElsewhereEngine, version: int) -> None:
        seen.append("synced")
        sync(self, version)

    monkeypatch.setattr(ElsewhereEngine, "sync", syncing)
    return seen


def test_the_next_step_is_sampled_while_the_policy_updates(small: Any, run: Any, events: list[str]) -> None:
    run(small(*ELSEWHERE, *NO_EVALUATION))
    step = ["sampling", "updating", "sampled", "synced"]
    assert events == ["synced", *step, *step, *step, "updating", "synced"]


def test_what_fails_beside_an_update_ends_the_run_with_that_step_saved(
    small: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    generate = ElsewhereEngine.generate
    versions: list[int] = []

    def failing(self: Any, prompts: Sequence[Prompt], options: Sampling) -> Iterator[tuple[int, Rollout]]:
        versions.append(self._policy_version)
        if threading.current_thread() is not threading.main_thread() and self._policy_version == 1:
            raise EngineError("no server is left")
        return generate(self, prompts, options)

    monkeypatch.setattr(ElsewhereEngine, "generate", failing)
    experiment = small(*ELSEWHERE, "evaluation.every=1", "trainer.checkpoint_every=0")
    with pytest.raises(EngineError, match="no server is left"):
        run(experiment)
    assert steps(tmp_path / "run") == [2], "the update was made, so it is kept"
    written = [line["step"] for line in lines(tmp_path / "run/metrics.jsonl") if "update/loss" in line]
    assert written == [1, 2]
    assert not (tmp_path / "run/evaluation/step-000002.json").exists(), "with which weights?"
    monkeypatch.setattr(ElsewhereEngine, "generate", generate)
    run(experiment, resume=True)
    assert "lacks rollouts of step 3" in caplog.text
    ages = [line["update/staleness"] for line in lines(tmp_path / "run/metrics.jsonl") if "update/loss" in line]
    assert ages == [0.0, 1.0, 0.0, 1.0], "the lost batch is sampled anew, by the policy as it is"


@pytest.mark.parametrize("spoiled", ["verdicts", "logprobs"])
def test_a_batch_that_stops_its_step_is_made_anew_once_the_run_goes_on(
    small: Any,
    run: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    spoiled: str,
) -> None:
    """It is in the checkpoint of the step before, and a judge that is there again cannot help what is judged."""
    collect = Collector.collect

    def spoil(self: Collector, *arguments: Any) -> Any:
        batch = collect(self, *arguments)
        if batch[0][0].rollouts[0].policy_version < 1:
            return batch
        if spoiled == "verdicts":
            failed = Judgement(score=None, status="error", rationale="503")
            return [(group, tuple(replace(r, judgements=(failed,)) for r in rewards)) for group, rewards in batch]
        return [
            (
                replace(
                    group, rollouts=tuple(replace(r, sampler_logprobs=(math.nan,) * len(r)) for r in group.rollouts)
                ),
                own,
            )
            for group, own in batch
        ]

    experiment = small(AHEAD, *NO_EVALUATION, "reward={name: outcome, judge: {name: reference_steps}}", *ONE_REWARD)
    monkeypatch.setattr(Collector, "collect", spoil)
    for resume in (False, True):
        with pytest.raises((JudgeError, NonFiniteError)):
            run(experiment, resume=resume)
    assert steps(tmp_path / "run") == [1, 2]
    monkeypatch.setattr(Collector, "collect", collect)
    run(experiment, resume=True)
    assert "of the checkpoint's rollouts of step 3 nothing can be learned" in caplog.text
    ages = [line["update/staleness"] for line in lines(tmp_path / "run/metrics.jsonl")]
    assert ages == [0.0, 1.0, 0.0, 1.0]


def test_a_silent_sampler_is_waited_for_no_longer_than_the_timeout(
    small: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()
    generate = ElsewhereEngine.generate

    def silent(self: Any, prompts: Sequence[Prompt], options: Sampling) -> Iterator[tuple[int, Rollout]]:
        if threading.current_thread() is not threading.main_thread():
            over.wait(LONG)
        return generate(self, prompts, options)

    monkeypatch.setattr(ElsewhereEngine, "generate", silent)
    monkeypatch.setattr("exprl.training.lookahead.ENDING", 0.1)
    with pytest.raises(EngineError, match=r"nothing came of the next step's rollouts and verdicts for 0.5 s"):
        run(small(*ELSEWHERE, *NO_EVALUATION, "trainer.timeout=0.5"))
    over.set()
    assert steps(tmp_path / "run") == [1]


def test_an_update_that_fails_gives_up_the_batch_beside_it_and_saves_the_step_before_with_its_own(
    small: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = PolicyModule.update_once

    def failing(self: PolicyModule, *arguments: Any) -> dict[str, float]:
        if self.steps_done == 2:
            raise RuntimeError("out of memory")
        return original(self, *arguments)

    run(small(*ELSEWHERE, *NO_EVALUATION), "straight")
    monkeypatch.setattr(PolicyModule, "update_once", failing)
    experiment = small(*ELSEWHERE, "evaluation.source=null", "trainer.checkpoint_every=0")
    with pytest.raises(RuntimeError, match="out of memory"):
        run(experiment)
    assert steps(tmp_path / "run") == [2]
    assert not [thread for thread in threading.enumerate() if thread.name == "exprl-next-step"]
    monkeypatch.setattr(PolicyModule, "update_once", original)
    run(experiment, resume=True)
    assert_same_run(tmp_path / "run", tmp_path / "straight")


@pytest.mark.parametrize(("signals", "saved"), [(1, [2]), (2, [])])
def test_a_signal_waits_for_the_next_batch_and_a_second_one_does_not(
    small: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signals: int, saved: list[int]
) -> None:
    updated, heard, over = threading.Event(), threading.Event(), threading.Event()
    generate, wait, handle = ElsewhereEngine.generate, Background.wait, Interruption._handle

    def interrupted(self: Any, prompts: Sequence[Prompt], options: Sampling) -> Iterator[tuple[int, Rollout]]:
        if threading.current_thread() is not threading.main_thread() and self._policy_version == 1:
            assert updated.wait(LONG)
            for _ in range(signals):
                heard.clear()
                os.kill(os.getpid(), signal.SIGTERM)
                assert heard.wait(LONG), "two that come at once are one"
            over.wait(LONG if signals > 1 else 0)
        return generate(self, prompts, options)

    def waiting(self: Background, limit: float) -> None:
        updated.set()
        wait(self, limit)
        updated.clear()

    def handling(self: Interruption, *arguments: Any) -> None:
        heard.set()
        handle(self, *arguments)

    monkeypatch.setattr(Interruption, "_handle", handling)
    monkeypatch.setattr(Background, "wait", waiting)
    monkeypatch.setattr(ElsewhereEngine, "generate", interrupted)
    monkeypatch.setattr("exprl.training.interruption.SAME_REQUEST", 0.0)
    monkeypatch.setattr("exprl.training.lookahead.ENDING", 0.1)
    experiment = small(*ELSEWHERE, "evaluation.source=null", "trainer.checkpoint_every=0")
    with pytest.raises(Interrupted):
        run(experiment)
    over.set()
    assert steps(tmp_path / "run") == saved
    monkeypatch.setattr(ElsewhereEngine, "generate", generate)
    run(experiment, resume=True)
    ages = [line["update/staleness"] for line in lines(tmp_path / "run/metrics.jsonl")]
    assert ages == [0.0, 1.0, 1.0, 1.0], "its next batch was saved with it"


# ------------------------------------------------------------------ what is refused, and what stops


def test_a_broken_engine_still_stops_the_run(
    small: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A little off with fresh rollouts is too much; with those of the policy before it takes more."""
    sample = Collector.sample

    def shifted(by: float, after: int) -> Any:
        def sampling(self: Collector, *arguments: Any) -> Any:
            groups = sample(self, *arguments)
            version = groups[0].rollouts[0].policy_version
            if version < after:
                return groups
            return [
                replace(
                    group,
                    rollouts=tuple(
                        replace(r, sampler_logprobs=tuple(p - by for p in r.sampler_logprobs)) for r in group.rollouts
                    ),
                )
                for group in groups
            ]

        return sampling

    monkeypatch.setattr(Collector, "sample", shifted(0.01, 0))
    with pytest.raises(EngineError, match=r"step 1.*raise update.gap_tolerance"):
        run(small(AHEAD, *NO_EVALUATION))
    monkeypatch.setattr(Collector, "sample", shifted(2.0, 1))
    with pytest.raises(EngineError, match=r"step 3.*where 1 is allowed.*rollout.lookahead=0"):
        run(small(AHEAD, *NO_EVALUATION), "later")
    assert steps(tmp_path / "later") == [1, 2]
    with pytest.raises(EngineError, match=r"stops here again unless update\.gap_tolerance is above"):
        run(small(AHEAD, *NO_EVALUATION), "later", resume=True)
    run(small(AHEAD, *NO_EVALUATION, "update.gap_tolerance=3"), "later", resume=True)
    assert steps(tmp_path / "later") == [3, 4]


def test_a_loader_of_another_kind_is_refused(small: Any) -> None:
    build = Build(small(AHEAD), training=True)
    module = build.experiment.method.build(build.resources).prepare(build, World())
    loader = DataLoader(build.train_problems, batch_size=4, collate_fn=list)  # type: ignore[arg-type, var-annotated]
    with pytest.raises(ConfigError, match=r"rollout.lookahead: needs to know the problems of any step"):
        trainer().fit(module, loader)


def test_a_trainer_of_ones_own_looks_ahead_and_ends_where_the_next_batch_fails(
    small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody says there that a step was logged, so the next one raises."""
    generate = ElsewhereEngine.generate

    def failing(self: Any, prompts: Sequence[Prompt], options: Sampling) -> Iterator[tuple[int, Rollout]]:
        if threading.current_thread() is not threading.main_thread() and self._policy_version == 1:
            raise EngineError("no server is left")
        return generate(self, prompts, options)

    monkeypatch.setattr(ElsewhereEngine, "generate", failing)
    build = Build(small(*ELSEWHERE), training=True)
    module = build.experiment.method.build(build.resources).prepare(build, World())
    data = ExpRLDataModule(build.train_problems, prompts_per_step=4, max_steps=4)
    with pytest.raises(EngineError, match="no server is left"):
        trainer().fit(module, datamodule=data)
    module.close()
    assert module.steps_done == 2
    assert module.last_metrics["update/staleness"] == 1.0


def test_a_run_that_looks_ahead_is_not_resumed_without(small: Any, run: Any, tmp_path: Path) -> None:
    from exprl.errors import RunDirectoryError

    run(small(AHEAD, *NO_EVALUATION, "trainer.max_steps=1"))
    with pytest.raises(RunDirectoryError, match=r"rollout.lookahead: 1 -> 0"):
        run(small(*NO_EVALUATION), resume=True)


# ------------------------------------------------------------------ killed and resumed


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ahead") / "run"
    done = execute(folder, AHEAD, FRESH)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.mark.usefixtures("forking")
@pytest.mark.parametrize("where", ["sampling", "judging", "gradients", "syncing", "writing"])
def test_a_killed_run_goes_on_as_if_it_had_not_been(straight: Path, tmp_path: Path, where: str) -> None:
    folder = tmp_path / "run"
    killed = execute(folder, AHEAD, FRESH, fault=f"kill:{where}:3")
    assert killed.returncode == KILLED, killed.stderr[-2000:]
    assert steps(folder)[-1] == 2
    resumed = execute(folder, AHEAD, FRESH)
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert_same_run(folder, straight)


@pytest.mark.usefixtures("forking")
@pytest.mark.parametrize("where", ["sampling", "gradients"])
def test_killed_while_sampling_beside_an_update(straight: Path, tmp_path: Path, where: str) -> None:
    folder = tmp_path / "run"
    assert execute(folder, *ELSEWHERE, FRESH, fault=f"kill:{where}:3").returncode == KILLED
    resumed = execute(folder, *ELSEWHERE, FRESH)
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert_same_run(folder, straight)


@pytest.mark.usefixtures("forking")
@pytest.mark.parametrize(("where", "saved"), [("judging", [2]), ("gradients", [3])])
def test_sigterm_saves_the_finished_steps_with_their_next_batch(
    straight: Path, tmp_path: Path, where: str, saved: list[int]
) -> None:
    folder = tmp_path / "run"
    stopped = execute(folder, AHEAD, FRESH, "trainer.checkpoint_every=0", fault=f"terminate:{where}:3")
    assert stopped.returncode == 128 + 15, stopped.stderr[-2000:]
    assert steps(folder) == saved
    assert execute(folder, AHEAD, FRESH, "trainer.checkpoint_every=0").returncode == 0
    assert_same_run(folder, straight)


# ------------------------------------------------------------------ ranks


def tokens(folder: Path, step: int) -> list[tuple[int, tuple[int, ...]]]:
    """Of a step's rollouts; log-probs differ by rounding with what else is in a batch."""
    return [(r.policy_version, r.token_ids) for group in load_rollouts(folder)[step] for r in group.rollouts]


DDP = ("trainer.devices=2", "trainer.accelerator=cpu")


@pytest.mark.usefixtures("forking")
@pytest.mark.parametrize(
    "options", [pytest.param((AHEAD,), marks=pytest.mark.slow), ELSEWHERE], ids=["before", "beside"]
)
def test_two_ranks_look_ahead_as_one_and_resume_bitwise(
    straight: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    folder, whole = tmp_path / "run", tmp_path / "whole"
    done = execute(whole, *DDP, *options, FRESH)
    assert done.returncode == 0, done.stderr[-2000:]
    killed = execute(folder, *DDP, *options, FRESH, fault="kill:gradients:3:1")
    assert killed.returncode == 128 + 9
    resumed = execute(folder, *DDP, *options, FRESH)
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert_same_run(folder, whole)
    assert tokens(whole, 2) == tokens(straight, 2)


@pytest.mark.usefixtures("forking")
def test_another_number_of_devices_takes_the_batch_over(straight: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert execute(folder, *DDP, AHEAD, FRESH, fault="kill:sampling:2:0").returncode == 128 + 9
    assert steps(folder) == [1]
    resumed = execute(folder, "trainer.devices=1", AHEAD, FRESH)
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert "lacks rollouts" not in resumed.stderr
    assert tokens(folder, 2) == tokens(straight, 2)


@pytest.mark.usefixtures("forking")
def test_a_rank_whose_next_batch_fails_stops_both_with_the_step_saved(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = execute(folder, *DDP, *ELSEWHERE, "trainer.checkpoint_every=0", fault="fail:judging:2:1")
    assert done.returncode == 1, done.stderr[-2000:]
    assert done.stderr.count("RuntimeError: this machine is on fire") == 1
    assert steps(folder) == [2]
