"""What is known to fail before anything is loaded: files and packages that are not there, parts that do not fit.

Each would be met later too, by whoever needs it: behind seconds of imports and minutes of loading a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path
from typing import Any

from exprl import config as configuration
from exprl.checks.compilers import check_compiler
from exprl.checks.packages import check_adapters
from exprl.component import Choice
from exprl.config.fields import choices_in
from exprl.data.order import check_share
from exprl.errors import ConfigError, ExprlError
from exprl.experiment import Experiment, TrainerConfig
from exprl.files.disk import check_can_write
from exprl.runs.directory import RunDirectory
from exprl.runs.places import check_run_dir


def check_training(experiment: Experiment) -> None:
    """Raise an `ExprlError` naming the key for what `exprl train` would end at."""
    if experiment.data.train is None:
        raise ConfigError("data.train: required for training, but missing. For example {name: jsonl, path: ...}.")
    if not experiment.rollout.cls.trains:
        raise ConfigError(
            f"rollout.name: the engine {experiment.rollout.name!r} only evaluates, its weights cannot follow the "
            "policy. Choose vllm or transformers, or vllm_server for servers that do follow it."
        )
    check_logger_packages(experiment.trainer)
    devices = experiment.trainer.devices
    check_share(experiment.data.prompts_per_step, devices if isinstance(devices, int) else 1)
    if experiment.update.compile_layers:
        check_compiler("update.compile_layers", "false")
    if experiment.update.kernels == "compile":
        check_compiler("update.kernels", "auto")
    _check_policy(experiment)
    check_parts(experiment, "data.train", *_SAMPLING, *(["reward"] if experiment.method.cls.scores else []))
    if experiment.evaluation.source is not None:
        check_parts(experiment, *_EVALUATION)


def check_logger_packages(options: TrainerConfig) -> None:
    """Raise `ConfigError` for a logger whose package is not installed, with the line that installs it."""
    for number, logger in enumerate(options.loggers):
        package = _PACKAGES.get(logger) if isinstance(logger, str) else None
        if package is not None and find_spec(package) is None:
            raise ConfigError(
                f"trainer.loggers[{number}]: {logger} is not installed: pip install {package}, or leave it out."
            )


_PACKAGES = {"wandb": "wandb", "mlflow": "mlflow"}


def check_evaluation(experiment: Experiment, output: Path | None = None) -> None:
    """The same for `exprl evaluate`, and where it is to write its figures."""
    check_grading(experiment, output)
    _check_policy(experiment)
    check_parts(experiment, *_SAMPLING)


def check_grading(experiment: Experiment, output: Path | None = None) -> None:
    """The same for responses that are given: no model is asked."""
    if experiment.evaluation.source is None:
        raise ConfigError("evaluation.source: required here, but missing. For example evaluation.source.name=champ.")
    check_parts(experiment, "verifier", *_EVALUATION)
    if output is not None:
        check_can_write(output, "--output")


def check_mining(experiment: Experiment, output: Path) -> None:
    """The same for `exprl mine`, and the data set it is to write."""
    if experiment.data.train is None:
        raise ConfigError("data.train: required for mining, but missing. For example {name: jsonl, path: ...}.")
    if output.suffix != ".jsonl":
        raise ConfigError(f"--output: {output} must end in .jsonl, the format it is written in.")
    _check_policy(experiment)
    check_parts(experiment, "data.train", *_SAMPLING)
    check_can_write(output, "--output")


def check_judging(experiment: Experiment) -> None:
    """The same for `exprl judge`: the problems, the reward, and that its judge is one that can still be asked."""
    if experiment.data.train is None and experiment.evaluation.source is None:
        raise ConfigError("data.train: required to grade by, but missing. For example {name: jsonl, path: ...}.")
    check_parts(experiment, "data.train", "evaluation.source", "verifier", "model", "reward")
    for path, choice in choices_in(experiment.reward, "reward"):
        if getattr(choice.config, "weights", None) == "live":
            raise ConfigError(
                f"{path}.weights: live were the policy's at each step, which are gone. Set {path}.weights=frozen for "
                "the initial policy, or a judge with a model of its own, such as that of a checkpoint."
            )


def check_planted(experiment: Experiment, run: Path) -> None:
    """The same for `exprl leaks`: a run must have had something planted, and its problems and model must be there."""
    if not experiment.leak.canaries:
        raise ConfigError(
            f"{run}: leak.canaries was 0 when it was trained, so no fact was planted that could be looked for. Train "
            "it anew, for example with leak.canaries=0.05 and another run_dir."
        )
    check_parts(experiment, "data.train", "model", "prompt")


def check_rubrics(experiment: Experiment, output: Path, judges: Sequence[tuple[str, Choice]]) -> None:
    """The same for `exprl rubric`: the problems, the file, and the `judges` by their keys that are to write rubrics."""
    if experiment.data.train is None:
        raise ConfigError("data.train: required for rubrics, but missing. For example {name: jsonl, path: ...}.")
    if output.suffix != ".jsonl":
        raise ConfigError(f"--output: {output} must end in .jsonl, the format it is written in.")
    check_parts(experiment, "data.train", "evaluation.source")
    if judges:
        _check_policy(experiment)
        check_parts(experiment, *_SAMPLING)
    for path, judge in judges:
        _check_choices(judge, path, experiment)
    check_can_write(output, "--output")


def check_place(directory: RunDirectory, experiment: Experiment, *, resume: bool) -> None:
    """Raise `RunDirectoryError` where this run cannot have the folder; it is left as it was."""
    check_run_dir(directory.path)
    with directory.used():
        directory.check(
            configuration.to_yaml(experiment),
            resume=resume,
            free=configuration.free_keys(experiment),
            mappings=configuration.mapping_keys(experiment),
        )


_SAMPLING = ("model", "prompt", "rollout", "verifier")
_EVALUATION = ("evaluation.source", "evaluation.behaviours")


def _check_policy(experiment: Experiment) -> None:
    if experiment.lora.rank:
        check_adapters()


def check_parts(experiment: Experiment, *keys: str) -> None:
    """Ask the components at `keys`, and those within them, what this machine lacks and what does not go together."""
    for key in keys:
        _check_choices(attrgetter(key)(experiment), key, experiment)


def _check_choices(part: Any, key: str, experiment: Experiment) -> None:
    for path, choice in choices_in(part, key):
        try:
            choice.cls.preflight(choice.config)
            choice.cls.check_fit(choice.config, experiment)
        except ExprlError as error:
            raise type(error)(f"{path}: {error}") from error
