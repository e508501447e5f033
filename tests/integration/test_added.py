"""Loggers and callbacks that a config names: made before any work, once in every file, and never from elsewhere."""

from __future__ import annotations

import csv
import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger

from exprl.build import Build
from exprl.config import to_yaml
from exprl.errors import ConfigError
from exprl.experiment import Experiment, load_run
from exprl.runs.preflight import check_evaluation
from exprl.training.policy_module import PolicyModule
from tests.integration.test_lightning import logged_in_tensorboard

HERE = __name__
NO_EVALUATION = "evaluation.source=null"


class Counting(Callback):
    """Counts steps, over resumes; fails once after so many, if its file is not there yet."""

    def __init__(self, once: str, fail_after: int) -> None:
        self.once, self.fail_after, self.count = Path(once), fail_after, 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.count += 1

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        assert isinstance(pl_module, PolicyModule)
        if pl_module.steps_done == self.fail_after and not self.once.exists():
            self.once.touch()
            raise RuntimeError("once")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.once.write_text(str(self.count))

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.count = state_dict["count"]


class Refusing(CSVLogger):
    """A logger that cannot write."""

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        raise ConnectionError("no network")


class Choosy(Callback):
    """A callback that does not take every value."""

    def __init__(self, rate: float) -> None:
        raise ValueError(f"{rate} is too much")


def added(class_path: str, **init_args: Any) -> str:
    return json.dumps({"class_path": class_path, "init_args": init_args})


def in_csv(path: Path) -> list[dict[str, float]]:
    return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(path.open())]


def test_every_logger_has_each_line_of_a_resumed_run_once_and_callbacks_keep_their_state(
    small: Any, run: Any, tmp_path: Path
) -> None:
    counting = added(f"{HERE}.Counting", once=str(tmp_path / "once"), fail_after=2)
    experiment = small(
        "trainer.max_steps=3",
        "trainer.loggers=[csv, tensorboard]",
        f"trainer.callbacks=[{counting}]",
        "evaluation.every=2",
        "trainer.checkpoint_every=1",
    )
    with pytest.raises(RuntimeError, match="once"):
        run(experiment)
    assert run(experiment, resume=True)["steps"] == 3
    folder = tmp_path / "run"
    written = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(written) == 3 + 3  # the evaluations before, after step 2 and at the end
    assert in_csv(folder / "csv/metrics.csv") == written
    curves = logged_in_tensorboard(folder / "tensorboard")
    assert {step for step, metrics in curves.items() if "reward/mean" in metrics} == {1, 2, 3}
    assert (tmp_path / "once").read_text() == "3"


def test_a_run_that_a_callback_ends_is_finished_and_stays_so(small: Any, run: Any, tmp_path: Path) -> None:
    stopping = added(
        "exprl.training.early_stopping.StepEarlyStopping", monitor="reward/mean", mode="max", stopping_threshold=-1.0
    )
    experiment = small(f"trainer.callbacks=[{stopping}]", "trainer.checkpoint_every=0")
    summary = run(experiment)
    assert summary["steps"] == 1
    assert summary["stopped_early"]
    assert "A callback ended the run" in (tmp_path / "run.log").read_text()
    assert run(experiment, resume=True) == summary
    for name in ("summary.json", "evaluation/after.json"):  # as if it had been killed before they were written
        (tmp_path / "run" / name).unlink()
    again = run(experiment, resume=True)
    assert again["steps"] == 1
    assert again["after"] == summary["after"]


def test_bars_monitors_and_checkpoints_of_lightnings_stand_beside_the_runs_own(
    small: Any, run: Any, tmp_path: Path
) -> None:
    saving = added("ModelCheckpoint", dirpath=str(tmp_path / "best"), monitor="reward/mean", every_n_train_steps=1)
    callbacks = f"trainer.callbacks=[{saving}, {added('LearningRateMonitor')}, {added('TQDMProgressBar')}]"
    run(small("trainer.max_steps=2", NO_EVALUATION, callbacks))
    assert list((tmp_path / "best").glob("*.ckpt"))
    assert "lr-AdamW" in logged_in_tensorboard(tmp_path / "run/tensorboard")[1]


@pytest.mark.parametrize("none", ["none", "[]"])
def test_without_loggers_there_is_metrics_jsonl_alone(none: str, small: Any, run: Any, tmp_path: Path) -> None:
    run(small("trainer.max_steps=1", NO_EVALUATION, f"trainer.loggers={none}"))
    assert (tmp_path / "run/metrics.jsonl").is_file()
    assert not (tmp_path / "run/tensorboard").exists()
    assert "tensorboard" not in (tmp_path / "run.log").read_text()


def test_a_logger_that_fails_ends_no_run(
    small: Any, run: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    refusing = added(f"{HERE}.Refusing", save_dir=str(tmp_path / "refused"))
    with caplog.at_level(logging.WARNING, logger="exprl"):
        summary = run(small("trainer.max_steps=1", NO_EVALUATION, f"trainer.loggers=[{refusing}, csv]"))
    assert summary["steps"] == 1
    assert "step 1 is not in Refusing (ConnectionError: no network)" in caplog.text
    assert len(in_csv(tmp_path / "run/csv/metrics.csv")) == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (f"trainer.callbacks=[{added('LearningRateMonitr')}]", r"callbacks\[0\]\.class_path.*'LearningRateMonitor'"),
        (f"trainer.callbacks=[{added('no_such_module.Thing')}]", r"callbacks\[0\]\.class_path.*no_such_module"),
        (f"trainer.callbacks=[{added('pathlib.Path')}]", r"pathlib\.Path is no Callback"),
        (f"trainer.callbacks=[{added('LearningRateMonitor', every=2)}]", r"init_args.*'every'.*logging_interval"),
        (f"trainer.callbacks=[{added(f'{HERE}.Choosy', rate=2)}]", r"Choosy \(ValueError: 2 is too much\)"),
        (f"trainer.callbacks=[{added('EarlyStopping', monitor='reward/mean')}]", r"StepEarlyStopping"),
        (f"trainer.loggers=[csv, {added('Logger')}]", r"loggers\[1\].*must define"),
        (f"trainer.loggers=[{added('LearningRateMonitor')}]", r"loggers\[0\]\.class_path.*no such class"),
        ("trainer.loggers=[wandb]", r"loggers\[0\]: wandb is not installed: pip install wandb"),
        ("trainer.loggers=[csv, mlflow]", r"loggers\[1\]: mlflow is not installed: pip install mlflow"),
    ],
)
def test_what_cannot_be_made_is_told_before_a_model_is_loaded(
    override: str, message: str, small: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Build, "policy", property(lambda _: pytest.fail("the model was loaded")))
    for package in ("wandb", "mlflow"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=message):
        run(small(override))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.loggers=[tensorbord]", r"trainer\.loggers\[0\].*'tensorboard'.*'tensorbord'"),
        ("trainer.callbacks=[LearningRateMonitor]", r"trainer\.callbacks\[0\]"),
        ("trainer.callbacks=[{class_path: 'os; system'}]", r"trainer\.callbacks\[0\]\.class_path.*module\.Class"),
        ("trainer.callbacks=[{class_path: A, init_arg: {}}]", r"trainer\.callbacks\[0\]\.init_arg.*init_args"),
    ],
)
def test_other_forms_are_refused_as_the_config_is_read(override: str, message: str, small: Any) -> None:
    with pytest.raises(ConfigError, match=message):
        small(override)


def test_a_runs_folder_from_elsewhere_imports_nothing(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evil_class.py").write_text("raise SystemExit('ran')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    evil = added("evil_class.Evil")
    (tmp_path / "config.yaml").write_text(to_yaml(small(f"trainer.callbacks=[{evil}]", f"trainer.loggers=[{evil}]")))
    experiment = load_run(tmp_path / "config.yaml")
    assert isinstance(experiment, Experiment)
    check_evaluation(experiment)
    assert "evil_class" not in sys.modules
