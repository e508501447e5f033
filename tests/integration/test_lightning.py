"""exprl under a Trainer of one's own: loggers, callbacks, resume, and what is refused before any work."""

from __future__ import annotations

import csv
import importlib.util
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
    RichProgressBar,
    TQDMProgressBar,
    WeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.profilers import SimpleProfiler
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from exprl.build import Build
from exprl.data.datamodule import ExpRLDataModule
from exprl.errors import ConfigError
from exprl.training.early_stopping import StepEarlyStopping
from exprl.training.module import ExpRLModule
from exprl.training.policy_module import PolicyModule
from exprl.training.records import existing
from exprl.training.trainer_checks import check_precision
from exprl.training.update import PolicyUpdate
from exprl.training.world import World
from tests.integration.conftest import ROOT

Make = Callable[..., tuple[PolicyModule, ExpRLDataModule]]


@pytest.fixture
def make(small: Any) -> Make:
    """A module whose steps have two optimizer updates each, and `steps` steps of data."""

    def made(steps: int) -> tuple[PolicyModule, ExpRLDataModule]:
        build = Build(small("update.prompts_per_update=2", "optimizer.lr=1e-3"), training=True)
        module = build.experiment.method.build(build.resources).prepare(build, World())
        return module, ExpRLDataModule(build.train_problems, prompts_per_step=4, max_steps=steps)

    return made


def trainer(callbacks: Sequence[Callback] = (), **options: Any) -> Trainer:
    """A Trainer of somebody's own."""
    usual = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "log_every_n_steps": 1,
        "logger": False,
        "enable_checkpointing": any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(callbacks=list(callbacks), **{**usual, **options})


class Watching(Callback):
    """Keeps what each step came to."""

    def __init__(self) -> None:
        self.steps: dict[int, dict[str, float]] = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, PolicyModule)
        self.steps[pl_module.steps_done] = existing(pl_module.last_metrics)


def logged_in_csv(folder: Path) -> dict[int, dict[str, float]]:
    """The metrics of each step, without what other callbacks logged between them."""
    rows = csv.DictReader((folder / "metrics.csv").open())
    steps = {int(row["step"]): {k: float(v) for k, v in row.items() if v} for row in rows if row["time/step_seconds"]}
    return {step: {k: v for k, v in row.items() if k != "step"} for step, row in steps.items()}


def logged_in_tensorboard(folder: Path) -> dict[int, dict[str, float]]:
    events = EventAccumulator(str(folder)).Reload()
    found: dict[int, dict[str, float]] = {}
    for tag in events.Tags()["scalars"]:
        points = events.Scalars(tag)
        assert len({point.step for point in points}) == len(points), f"{tag} has a step twice"
        for point in points:
            found.setdefault(point.step, {})[tag] = point.value
    return found


def test_lightning_asks_for_no_workers_where_nothing_is_loaded(make: Make) -> None:
    module, data = make(1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer().fit(module, datamodule=data)
    said = [str(warning.message) for warning in caught if "lightning" in warning.filename]
    known = ("eval mode", "LeafSpec", "GPU available but not used")
    assert not [line for line in said if not any(part in line for part in known)]


def test_the_example_logs_the_same_everywhere(small: Any, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("own_trainer", ROOT / "examples/own_trainer.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    example.main(tmp_path, Build(small(), training=True).policy, steps=3)
    in_csv = logged_in_csv(tmp_path / "csv/version_0")
    in_tensorboard = logged_in_tensorboard(tmp_path / "tensorboard/version_0")
    assert list(in_csv) == [1, 2, 3]
    assert {"reward/mean", "judge/ok_rate", "update/count", "time/step_seconds"} <= set(in_csv[1])
    for step, metrics in in_csv.items():
        curves = {tag: value for tag, value in in_tensorboard[step].items() if not tag.startswith(("lr-", "epoch"))}
        assert metrics == pytest.approx(curves, rel=1e-6)
    assert list(tmp_path.glob("*.ckpt"))


def test_loggers_have_each_step_as_it_was_and_nothing_from_before(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = PolicyUpdate.plan
    module, data = make(3)

    def no_update_in_the_second(self: PolicyUpdate, scored: Any) -> Any:
        return ([], len(scored)) if module.steps_done == 1 else plan(self, scored)

    monkeypatch.setattr(PolicyUpdate, "plan", no_update_in_the_second)
    watching = Watching()
    trainer([watching], logger=CSVLogger(tmp_path, name="csv")).fit(module, datamodule=data)
    logged = logged_in_csv(tmp_path / "csv/version_0")
    assert logged == watching.steps
    assert "update/entropy" in logged[1]
    assert "update/entropy" not in logged[2]
    assert logged[2]["update/count"] == 0
    assert module.trainer.global_step > 3, "Lightning's own count is that of optimizer updates"


def test_a_run_of_exprl_logs_once(small: Any, run: Any, tmp_path: Path) -> None:
    run(small("trainer.max_steps=2", "evaluation.source=null", "update.prompts_per_update=2"))
    logged = logged_in_tensorboard(tmp_path / "run/tensorboard")
    assert sorted(logged) == [1, 2]
    assert "step" not in logged[1]


def test_a_checkpoint_of_lightnings_goes_on_bit_for_bit_and_may_be_the_end_of_a_shorter_run(
    make: Make, tmp_path: Path
) -> None:
    checkpoints = ModelCheckpoint(
        tmp_path, filename="{step}", monitor="reward/mean", mode="max", every_n_train_steps=1, save_top_k=-1
    )
    module, data = make(2)
    short = trainer([checkpoints])
    short.fit(module, datamodule=data)
    short.save_checkpoint(tmp_path / "end.ckpt")  # by now Lightning counts the epoch as over
    whole, data = make(4)
    watching = Watching()
    trainer([watching]).fit(whole, datamodule=data)
    assert checkpoints.best_model_score == max(watching.steps[step]["reward/mean"] for step in (1, 2))
    for name, first in (("step=1.ckpt", 2), ("step=2.ckpt", 3), ("end.ckpt", 3)):
        module, data = make(4)
        resumed = Watching()
        trainer([resumed]).fit(module, datamodule=data, ckpt_path=tmp_path / name)
        assert list(resumed.steps) == list(range(first, 5)), name
        for step, metrics in resumed.steps.items():
            assert untimed(metrics) == untimed(watching.steps[step]), (name, step)
        assert all(torch.equal(a, b) for a, b in zip(weights(module), weights(whole), strict=True)), name


def untimed(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith("time/")}


def weights(module: LightningModule) -> list[torch.Tensor]:
    return [parameter.detach() for parameter in module.parameters()]


def test_early_stopping_looks_after_each_step(make: Make) -> None:
    module, data = make(5)
    # the first step's reward is above the threshold, as no reward is below 0
    trainer([StepEarlyStopping("reward/mean", mode="max", stopping_threshold=-1.0)]).fit(module, datamodule=data)
    assert module.steps_done == 1
    module, data = make(4)
    # a metric that never gets better; the first step is the best so far, then two are waited for
    stopping = StepEarlyStopping("judge/count", mode="max", patience=2)
    trainer([stopping]).fit(module, datamodule=data)
    assert module.steps_done == 3


@pytest.mark.parametrize("bar", [RichProgressBar, TQDMProgressBar])
def test_bars_monitors_and_profilers_work(bar: Any, make: Make, tmp_path: Path) -> None:
    module, data = make(2)
    profiler = SimpleProfiler(dirpath=tmp_path, filename="profile")
    callbacks = [bar(), LearningRateMonitor()]
    own = trainer(callbacks, enable_progress_bar=True, profiler=profiler, logger=CSVLogger(tmp_path, name="csv"))
    own.fit(module, datamodule=data)
    assert {"reward/mean", "update/kl"} <= set(own.progress_bar_metrics)
    assert "run_training_batch" in next(tmp_path.glob("*profile*")).read_text()
    rates = [row["lr-AdamW"] for row in csv.DictReader((tmp_path / "csv/version_0/metrics.csv").open())]
    assert len([rate for rate in rates if rate]) == 2


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "bf16-true"}, r"bf16-true.*bf16-mixed"),
        ({"precision": "16-true"}, r"16-true.*bf16-mixed"),
        ({"precision": "64-true"}, r"64-true.*32-true"),
        ({"plugins": [MixedPrecision("16-mixed", device="cpu")]}, r"16-mixed.*bf16-mixed"),
        ({"max_epochs": None}, r"max_epochs=1000.*max_epochs=1"),
        ({"max_epochs": -1, "max_steps": 2}, r"max_steps=2.*ExpRLDataModule"),
        ({"callbacks": [EarlyStopping("reward/mean")]}, r"EarlyStopping.*StepEarlyStopping"),
        ({"callbacks": [WeightAveraging()]}, r"WeightAveraging.*Leave it out"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value,  # objects show addresses: others in each process
)
def test_what_cannot_train_a_policy_is_refused_before_any_work(
    options: dict[str, Any], message: str, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ExpRLModule, "setup", lambda *_: pytest.fail("work began"))
    module, data = make(1)
    with pytest.raises(ConfigError, match=message):
        trainer(**options).fit(module, datamodule=data)


@pytest.mark.parametrize("precision", ["transformer-engine", "transformer-engine-float16", "8-true"])
def test_precisions_that_need_other_machines_are_refused(precision: str) -> None:
    with pytest.raises(ConfigError, match=precision):
        check_precision(precision)


def test_mixed_precision_trains_what_was_loaded_without_it(make: Make) -> None:
    module, data = make(1)
    assert module.language_model.compute_dtype is None
    trainer(precision="bf16-mixed").fit(module, datamodule=data)
    assert module.steps_done == 1
    assert module.policy.dtype == torch.float32
    assert module.language_model.compute_dtype == torch.bfloat16
