"""The folder of a run: created once, resumed on request, never overwritten."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from exprl.errors import RunDirectoryError

FREE = (
    "run_dir",
    "trainer.max_steps",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.timeout",
    "trainer.checkpoint_every",
    "trainer.keep_checkpoints",
    "trainer.print_samples",
)
"""What may be another when a run is resumed."""


class RunDirectory:
    """Paths and atomic writes of one run.

    Holds `config.yaml`, `metrics.jsonl` (one line a step), `samples.jsonl`, `summary.json`, `evaluation/`,
    `checkpoints/` and `tensorboard/`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.samples = self.path / "samples.jsonl"
        self.summary = self.path / "summary.json"
        self.checkpoints = self.path / "checkpoints"
        self.tensorboard = self.path / "tensorboard"

    def check(self, config_yaml: str, *, resume: bool) -> None:
        """Whether a run of this config may use the folder; creates nothing.

        Raises:
            RunDirectoryError: the folder holds something and `resume` is False, or its config is another.
        """
        if self.path.exists() and any(self.path.iterdir()):
            self._check_resumable(config_yaml, resume)

    def create(self, config_yaml: str) -> None:
        """The folder, if it is not there yet, with its config; raises `RunDirectoryError` if it cannot be written."""
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            write_text(self.config, config_yaml)  # on a resume, what may change has changed
        except OSError as error:
            raise RunDirectoryError(f"run_dir {self.path}: cannot be written ({error}). Set run_dir=...") from error

    def _check_resumable(self, config_yaml: str, resume: bool) -> None:
        if not resume:
            raise RunDirectoryError(
                f"run_dir {self.path} already holds a run. Add --resume to go on with it, or set run_dir=... for a new "
                "one; nothing is overwritten."
            )
        if not self.config.is_file():
            raise RunDirectoryError(
                f"run_dir {self.path} exists but has no config.yaml, so it is no run to resume. Set run_dir=..."
            )
        found = differences(self.config.read_text(), config_yaml)
        if found:
            raise RunDirectoryError(
                f"run_dir {self.path} was started with another config ({'; '.join(found)}). "
                f"Resume with the same config, or set run_dir=... for a new run. Only {', '.join(FREE)} may change."
            )

    def all_checkpoints(self) -> list[Path]:
        """Complete checkpoints, the oldest first; a file each, or a folder where ranks hold parts of the weights."""
        return sorted(self.checkpoints.glob("step-*.ckpt"))

    def latest_checkpoint(self) -> Path | None:
        """The checkpoint with the highest step, if there is one."""
        found = self.all_checkpoints()
        return found[-1] if found else None

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint after `step` steps lies."""
        return self.checkpoints / f"step-{step:06d}.ckpt"

    def evaluation(self, name: str) -> Path:
        """Where an evaluation's figures and per-problem counts lie."""
        return self.path / "evaluation" / f"{name}.json"

    def drop_lines_after(self, step: int) -> None:
        """Cut `metrics.jsonl` and `samples.jsonl` back to `step`: what a killed run wrote past its checkpoint."""
        for path in (self.metrics, self.samples):
            if not path.is_file():
                continue
            lines = [line for line in path.read_text().splitlines() if _step_of(line) is not None]
            kept = [line for line in lines if (_step_of(line) or 0) <= step]
            write_text(path, "".join(f"{line}\n" for line in kept))


def _step_of(line: str) -> int | None:
    try:
        return int(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError, TypeError):
        return None  # the last line of a killed run may be half written


def differences(old: str, new: str, free: Sequence[str] = FREE) -> list[str]:
    """Where two configs differ, as `key: old -> new`, apart from keys that change nothing of what a step computes.

    >>> differences("{seed: 0, trainer: {max_steps: 1}}", "{seed: 1, trainer: {max_steps: 2}}")
    ['seed: 0 -> 1']
    """
    before, after = (_flat(OmegaConf.to_container(OmegaConf.create(text))) for text in (old, new))
    return [
        f"{key}: {before.get(key, '(nothing)')} -> {after.get(key, '(nothing)')}"
        for key in {**before, **after}
        if before.get(key) != after.get(key) and key not in free
    ]


def _flat(node: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(node, dict):
        return {path: node}
    return {k: v for key, value in node.items() for k, v in _flat(value, f"{path}.{key}" if path else key).items()}


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing: a killed process or a full disk leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def append_line(path: Path, value: Mapping[str, Any]) -> None:
    """Append one JSON line; NaN (no update, no valid reward) and infinity become null, as JSON has neither."""
    line = {key: None if isinstance(item, float) and not math.isfinite(item) else item for key, item in value.items()}
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
