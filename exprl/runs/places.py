"""What a path that a user gave is: a run, a checkpoint, a model, or none of these, such as a config."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from exprl.config.shipped import located
from exprl.errors import ConfigError, ModelError, RunDirectoryError
from exprl.files.disk import local_path
from exprl.runs.directory import CHECKPOINT_SUFFIX, RunDirectory, is_run

_ZIP = b"PK\x03\x04"
"""How a file of `torch.save` begins, whatever it is called."""
_WEIGHTS = (".safetensors", ".gguf", ".bin", ".pt", ".pth")
_MODEL_FILES = ("config.json", "adapter_config.json", "*.safetensors", "*.gguf")

TYPE_INSTEAD = {
    "train": (
        "To go on with its run: exprl train {config} run_dir={run} --resume. To begin a new run with its weights: "
        "exprl train CONFIG model.name=pretrained model.path={path}."
    ),
    "mine": (
        "To mine with its policy: exprl mine {config} model.name=pretrained model.path={path} --output FILE.jsonl."
    ),
    "rubric": "To make the rubrics of its run: exprl rubric {config} --output FILE.jsonl.",
    "config": "The config of its run: exprl config {config}.",
}
"""For a run or checkpoint where a config belongs, by command."""


@dataclass(frozen=True)
class Place:
    """What lies at a path.

    Attributes:
        kind: what it is; `other` may be a config.
        path: the run's folder, the checkpoint, the model's folder, or the path as it was given.
    """

    kind: Literal["run", "checkpoint", "model", "other"]
    path: Path

    @property
    def run(self) -> Path | None:
        """The folder of the run, or of the one that the checkpoint lies in."""
        if self.kind == "run":
            return self.path
        return _run_around(self.path) if self.kind == "checkpoint" else None

    @property
    def in_words(self) -> str:
        """For messages."""
        return {"run": "a run", "checkpoint": "a checkpoint", "model": "a model", "other": "something else"}[self.kind]


def place_of(given: Path) -> Place:
    """What `given` means; its files, and the folder of its checkpoints, mean the run or checkpoint that they are of."""
    try:
        return _place_of(given)
    except OSError:  # it cannot be looked at; who opens it says why
        return Place("other", given)


def _place_of(given: Path) -> Place:
    if is_run(given):
        return Place("run", given)
    if given.absolute().name == "checkpoints" and is_run(given.parent):
        return Place("run", given.parent)
    whole = given.resolve()  # digests lie beside the file, not beside a link to it
    for path in (whole, whole.parent / whole.stem, whole.parent):
        if path.suffix == CHECKPOINT_SUFFIX and (path.exists() or _run_around(path)):
            return Place("checkpoint", path)
    if given.is_dir() and any(any(given.glob(name)) for name in _MODEL_FILES):
        return Place("model", given)
    if given.is_file() and given.suffix in _WEIGHTS:
        return Place("model", given.parent)
    return Place("checkpoint", whole) if given.is_file() and _begins_as_saved(given) else Place("other", given)


def find_checkpoint(path: Path) -> tuple[RunDirectory, Path]:
    """The run and the checkpoint that `path` means: a checkpoint of a run, or a run folder, whose latest is taken.

    Nothing is read of it yet: see `newest_whole` in `exprl.runs.checkpoints`.

    Raises:
        ModelError: there is nothing, no checkpoint yet, or no run around the checkpoint.
    """
    if not path.exists():
        raise ModelError(f"no run or checkpoint {path}. Give a run folder, or a .ckpt of its checkpoints/ folder.")
    place = place_of(path)
    if place.run is None:
        raise ModelError(f"{path} is {_no_checkpoint(place, path)}")
    run = RunDirectory(place.run)
    if place.kind == "checkpoint":
        return run, place.path
    latest = run.latest_checkpoint()
    if latest is None:
        raise ModelError(
            f"the run {place.path} has no checkpoint yet. Wait for its first one; trainer.checkpoint_every says when."
        )
    return run, latest


def _no_checkpoint(place: Place, path: Path) -> str:
    if place.kind == "model":
        return "a model already, as transformers, vLLM and model.path take it: no run, nor a checkpoint of one."
    return (
        f"no run folder, nor a checkpoint in one: {path.resolve().parent.parent / 'config.yaml'} is missing. Give a "
        "run folder, or a .ckpt where the run left it."
    )


def require_there(checkpoint: Path) -> None:
    """Raise `ModelError` unless there is something where a checkpoint is named."""
    if not checkpoint.exists():
        raise ModelError(f"no checkpoint {checkpoint}. Give a .ckpt of a run's checkpoints/ folder.")


def check_config(given: str, command: str) -> None:
    """Raise `ConfigError`, with what to type, where a run, checkpoint or model was given as CONFIG of a command."""
    place = place_of(local_path(given, "CONFIG"))
    if place.kind == "other":
        return
    advice = f"To use it: exprl {command} CONFIG model.name=pretrained model.path={quoted(place.path)}."
    if place.run is not None:
        advice = TYPE_INSTEAD[command].format(
            config=quoted(place.run / "config.yaml"), run=quoted(place.run), path=quoted(place.path)
        )
    raise ConfigError(f"{given} is {place.in_words}, where a config is expected. {advice}")


def check_resumed(given: str) -> None:
    """Raise `ConfigError` where a path stands among the overrides of `exprl train`, as if --resume took one."""
    place = place_of(local_path(given, "run_dir"))
    if place.run is None:
        return
    start = "" if place.kind == "run" else f" To begin a new run with its weights: model.path={quoted(place.path)}."
    raise ConfigError(
        f"{given} is {place.in_words}, but overrides are key=value and --resume takes no path: it goes on with the "
        f"newest checkpoint of run_dir. Write run_dir={quoted(place.run)} --resume.{start}"
    )


def checkpoint_to_evaluate(place: Place | None, option: str | None) -> Place | None:
    """The run or checkpoint whose weights are evaluated, by what is given first and by `--checkpoint`; None without.

    Raises:
        ConfigError: both name one, or what is given has no weights of a run, or is no config; with what to type.
    """
    if place is not None:
        _check_evaluated(place)
    named = None if option is None else place_of(local_path(option, "--checkpoint"))
    if named is None:
        return place if place is not None and place.kind != "other" else None
    if place is not None and place.kind == "checkpoint":
        raise ConfigError(f"--checkpoint: {option} is given, but so is the checkpoint {place.path}. Give one of them.")
    if named.kind == "model":
        raise ConfigError(
            f"--checkpoint: {option} is a model, no checkpoint. Leave the option out and set "
            f"model.name=pretrained model.path={quoted(named.path)}."
        )
    return named


def check_no_weights(place: Place | None, option: str | None) -> None:
    """Raise `ConfigError` where weights are named beside `--responses`, with which nothing is sampled."""
    checkpoint = option or (place.path if place is not None and place.kind == "checkpoint" else None)
    if checkpoint is not None:
        raise ConfigError(
            f"--responses: responses are graded, nothing is sampled, but the checkpoint {checkpoint} is given too. "
            "Leave one of them out; the verifier and the problems are those of a config or a run."
        )


def _check_evaluated(place: Place) -> None:
    here = quoted(place.path)
    if place.kind == "model":
        raise ConfigError(
            f"{place.path} is a model, which does not say what to evaluate it on. Type: exprl evaluate CONFIG "
            f"model.name=pretrained model.path={here}, or without a config: exprl evaluate model.path={here} "
            "evaluation.source.name=jsonl evaluation.source.path=FILE.jsonl."
        )
    if place.kind == "checkpoint" and place.run is None:
        raise ConfigError(
            f"{place.path} is a checkpoint, but lies in no run's checkpoints/ folder, so nothing says which model it "
            f"is of. Type: exprl evaluate CONFIG --checkpoint {here}, CONFIG being what it was trained with."
        )
    if place.kind == "other" and located(place.path).is_dir():
        raise ConfigError(
            f"{place.path} is a folder, but neither a run, which has config.yaml and checkpoints/, nor a model. Give a "
            "YAML, a run or a checkpoint."
        )


def check_run_dir(given: Path) -> None:
    """Raise `RunDirectoryError` where what is to be a run's folder lies within one or is a model's."""
    place = place_of(given)
    if place.run is not None and place.run != given:
        raise RunDirectoryError(
            f"run_dir {given}: it is within the run {place.run}. Give the run's own folder, "
            f"run_dir={quoted(place.run)}, or a new one."
        )


def quoted(path: Path) -> str:
    """A path as it can be typed in a shell."""
    return shlex.quote(str(path))


def _run_around(checkpoint: Path) -> Path | None:
    folder = checkpoint.parent.parent
    return folder if checkpoint.parent.name == "checkpoints" and is_run(folder) else None


def _begins_as_saved(file: Path) -> bool:
    with file.open("rb") as content:
        return content.read(len(_ZIP)) == _ZIP
