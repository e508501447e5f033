"""A finished step leaves all of its records, wherever writing them is cut: lines, TensorBoard, console."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from exprl.commands.train import TrainingRun
from exprl.engines.transformers import TransformersEngine
from exprl.errors import EngineError, PathError
from exprl.rollouts import RolloutStore
from exprl.training import evaluation_log, interruption, result, step_log
from exprl.training.interruption import Interrupted
from exprl.training.step_log import StepLog
from exprl.training.tensorboard import EventFiles
from tests.integration.processes import lines, samples, steps

OPTIONS = ("evaluation.source=null", "trainer.print_samples=1", "trainer.checkpoint_every=0", "trainer.max_steps=3")
FAULTY = 2

POINTS = {
    "the metrics' line": (step_log, "append_line", 0),
    "the rollouts": (RolloutStore, "put", 0),
    "TensorBoard": (EventFiles, "log_metrics", 0),
    "the printed sample": (step_log, "print_sample", 0),
    "the printed line": (StepLog, "line", 0),
}
"""What is called in writing a step, and how often before the fault comes."""


def cut(monkeypatch: pytest.MonkeyPatch, point: str, fault: Callable[[], None]) -> None:
    """Let `fault` happen once, in step `FAULTY`, half way through what is written at `point`."""
    owner, name, before = POINTS[point]
    original, calls, now = getattr(owner, name), Counter[int](), {"step": 0}
    pay = StepLog.pay

    def noted(self: StepLog, trainer: Any, module: Any) -> None:
        now["step"] = module.steps_done
        pay(self, trainer, module)

    def faulty(*args: Any, **kwargs: Any) -> Any:
        step = now["step"]
        calls[step] += 1
        if step == FAULTY and calls[step] == before + 1:
            fault()
        return original(*args, **kwargs)

    monkeypatch.setattr(StepLog, "pay", noted)
    monkeypatch.setattr(owner, name, faulty)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def interrupt_twice() -> None:
    interrupt()
    interrupt()


def no_room() -> None:
    raise PathError("cannot write it (No space left on device).")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, small: Any) -> Path:
    from exprl.commands.train import train
    from exprl.terminal.console import Console

    folder = tmp_path_factory.mktemp("straight") / "run"
    train(small(*OPTIONS), folder, resume=False, console=Console(quiet=True))
    return folder


def points(folder: Path) -> dict[str, list[int]]:
    """The steps of every scalar in TensorBoard's files, whichever file they are in."""
    found: dict[str, list[int]] = {}
    for file in folder.glob("events.*"):
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                if not value.tag.startswith("_hparams_/"):
                    found.setdefault(value.tag, []).append(event.step)
    return found


def assert_whole(folder: Path, straight: Path, last: int) -> None:
    """Every step up to `last` has its records once, and none else is there."""
    for read in (lambda run: lines(run / "metrics.jsonl"), samples):
        assert read(folder) == [line for line in read(straight) if line["step"] <= last]
    drawn = points(folder / "tensorboard")
    assert {"reward/mean", "time/step_seconds"} <= set(drawn)
    for tag, found in drawn.items():
        assert sorted(found) == list(range(1, last + 1)), tag
    printed = folder.with_name("run.log").read_text()
    for step in range(1, last + 1):
        assert printed.count(f"step {step}/3  reward") == 1
        assert printed.count(f"step {step} · ") == 1


@pytest.mark.parametrize("point", POINTS)
def test_a_signal_waits_until_the_step_is_written(
    small: Any, run: Any, tmp_path: Path, straight: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    with monkeypatch.context() as patched:
        cut(patched, point, interrupt)
        with pytest.raises(Interrupted):
            run(small(*OPTIONS))
    assert steps(tmp_path / "run") == [FAULTY]
    assert_whole(tmp_path / "run", straight, FAULTY)
    run(small(*OPTIONS), resume=True)
    assert_whole(tmp_path / "run", straight, 3)


@pytest.mark.parametrize(
    ("point", "fault", "error"),
    [
        ("the metrics' line", no_room, PathError),
        ("the rollouts", no_room, PathError),
        ("the rollouts", interrupt_twice, Interrupted),
        ("TensorBoard", interrupt_twice, Interrupted),
        ("the printed line", interrupt_twice, Interrupted),
    ],
)
def test_a_step_whose_writing_failed_is_written_when_the_run_goes_on(
    small: Any,
    run: Any,
    tmp_path: Path,
    straight: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    point: str,
    fault: Callable[[], None],
    error: type[BaseException],
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(interruption, "SAME_REQUEST", 0.0)
        cut(patched, point, fault)
        with pytest.raises(error):
            run(small(*OPTIONS))
    assert steps(tmp_path / "run") == [FAULTY]
    run(small(*OPTIONS), resume=True)
    assert lines(tmp_path / "run/metrics.jsonl") == lines(straight / "metrics.jsonl")
    assert samples(tmp_path / "run") == samples(straight)
    assert "damaged" not in caplog.text
    assert "lost" not in caplog.text
    assert (tmp_path / "run.log").read_text().count(f"step {FAULTY}/3  reward") == 1


# ------------------------------------------------------------------ evaluations


EVALUATED = ("evaluation.every=1", "trainer.print_samples=1", "trainer.checkpoint_every=0", "trainer.max_steps=2")
WRITING = {
    "TensorBoard": (EventFiles, "log_metrics"),
    "the metrics' line": (evaluation_log, "append_line"),
    "its file": (result, "write_json"),
    "the printed table": (result, "result_table"),
}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory, small: Any) -> Path:
    from exprl.commands.train import train
    from exprl.terminal.console import Console

    folder = tmp_path_factory.mktemp("evaluated") / "run"
    train(small(*EVALUATED), folder, resume=False, console=Console(quiet=True))
    return folder


@pytest.mark.parametrize("point", WRITING)
@pytest.mark.parametrize("name", ["before", "step-000001"])
def test_a_signal_waits_until_an_evaluation_is_written(
    small: Any, run: Any, tmp_path: Path, evaluated: Path, monkeypatch: pytest.MonkeyPatch, point: str, name: str
) -> None:
    owner, attribute = WRITING[point]
    original, log, state = getattr(owner, attribute), TrainingRun.log_evaluation, {"now": ""}

    def noted(self: TrainingRun, now: str, *rest: Any) -> None:
        state["now"] = now
        log(self, now, *rest)

    def faulty(*args: Any, **kwargs: Any) -> Any:
        if state["now"] == name:
            state["now"] = "interrupted"
            interrupt()
        return original(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(TrainingRun, "log_evaluation", noted)
        patched.setattr(owner, attribute, faulty)
        with pytest.raises(Interrupted):
            run(small(*EVALUATED))
    folder = tmp_path / "run"
    assert state["now"] == "interrupted"
    assert sorted(path.stem for path in (folder / "evaluation").iterdir()) == sorted({"before", name})
    run(small(*EVALUATED), resume=True)
    assert lines(folder / "metrics.jsonl") == lines(evaluated / "metrics.jsonl")
    drawn = points(folder / "tensorboard")
    assert sorted(drawn["evaluation/pass@1"]) == [0, 1, 2]
    assert (tmp_path / "run.log").read_text().count(f"{name}: 4 problems") == 1


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_step_without_an_update_that_the_engine_does_not_end_is_not_saved_without_its_records(
    small: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: int
) -> None:
    """Its weights are those of the step before, but neither its metrics nor the data's place are known yet."""
    sync = TransformersEngine.sync

    def lost(self: TransformersEngine, version: int) -> None:
        if version == FAULTY:
            raise EngineError("no server is left")
        sync(self, version)

    nothing = ("reward={name: sparse}", "advantage={name: group}", "rollout.max_new_tokens=2")
    every = "trainer.checkpoint_every=1"
    experiment = small(*OPTIONS, *nothing, every, f"rollout.lookahead={ahead}")
    monkeypatch.setattr(TransformersEngine, "sync", lost)
    with pytest.raises(EngineError, match="no server is left"):
        run(experiment)
    assert steps(tmp_path / "run") == [1]
    monkeypatch.setattr(TransformersEngine, "sync", sync)
    run(experiment, resume=True)
    assert [line["step"] for line in lines(tmp_path / "run/metrics.jsonl")] == [1, 2, 3]
