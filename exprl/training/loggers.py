"""The loggers of a run: Lightning's, by name or class, which have a copy of what is in `metrics.jsonl`."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import loggers as home
from lightning.pytorch.loggers import CSVLogger, Logger

from exprl.errors import first_line
from exprl.experiment import ClassPath, TrainerConfig
from exprl.files.lines import read_lines
from exprl.runs.directory import RunDirectory
from exprl.training.class_paths import make
from exprl.training.tensorboard import EventFiles

log = logging.getLogger(__name__)

PROJECT = "exprl"
"""What runs are under where a service has several projects."""

MLFLOW = os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
"""Where MLflow itself keeps runs; Lightning's default is a folder, which MLflow 3 refuses."""

NAMED: dict[str, Callable[[RunDirectory], tuple[str, dict[str, Any]]]] = {
    "tensorboard": lambda run: (
        f"{EventFiles.__module__}.EventFiles",
        {"folder": run.path, "name": run.tensorboard.name},
    ),
    "csv": lambda run: ("CSVLogger", {"save_dir": run.path, "name": "", "version": "csv"}),
    "wandb": lambda run: ("WandbLogger", {"project": PROJECT, "name": _name(run), "save_dir": run.path}),
    "mlflow": lambda run: (
        "MLFlowLogger",
        {"experiment_name": PROJECT, "run_name": _name(run), "tracking_uri": MLFLOW},
    ),
}
"""The classes and arguments that the names of `trainer.loggers` stand for."""


def make_loggers(options: TrainerConfig, run: RunDirectory) -> list[Logger]:
    """Those of `trainer.loggers`, in its order; raises `ConfigError` naming the one that cannot be made."""
    named = () if options.loggers == "none" else options.loggers
    return [
        make(_class_path(logger, run), Logger, home, f"trainer.loggers[{number}]")  # type: ignore[type-abstract]
        for number, logger in enumerate(named)
    ]


def _class_path(logger: str | ClassPath, run: RunDirectory) -> ClassPath:
    if isinstance(logger, ClassPath):
        return logger
    class_path, arguments = NAMED[logger](run)
    return ClassPath(class_path=class_path, init_args=arguments)


def _name(run: RunDirectory) -> str:
    return run.path.resolve().name


def start_loggers(loggers: Sequence[Logger], options: Mapping[str, Any], metrics: Sequence[str], *, after: int) -> None:
    """Tell loggers the run's options, by which runs are compared, and after which step it goes on."""
    for logger in loggers:
        if isinstance(logger, EventFiles):
            logger.go_on_after(after)
            logger.log_options(options, metrics)
        else:
            _attempt(logger, partial(logger.log_hyperparams, dict(options)), "the options are")


def log_to(loggers: Sequence[Logger], metrics: Mapping[str, float], step: int) -> None:
    """Give loggers the metrics of a step, written through; what one of them raises is warned of and ends no run."""
    for logger in loggers:
        _attempt(logger, partial(_log, logger, metrics, step), f"step {step} is")


def _log(logger: Logger, metrics: Mapping[str, float], step: int) -> None:
    logger.log_metrics(dict(metrics), step=step)
    logger.save()


def _attempt(logger: Logger, write: Callable[[], None], what: str) -> None:
    try:
        write()
    except Exception as error:  # noqa: BLE001 - a network, a disk, anybody's code
        log.warning("%s not in %s (%s); the run's own files have it", what, type(logger).__name__, first_line(error))


def replay(loggers: Sequence[Logger], metrics: Path) -> None:
    """Give each `CSVLogger`, whose file of before Lightning deletes, what `metrics.jsonl` has up to here."""
    files = [logger for logger in loggers if isinstance(logger, CSVLogger)]
    if files and metrics.exists():
        for line in read_lines(metrics, "Move it away, then go on with --resume."):
            step = line.pop("step")
            log_to(files, line, step)
