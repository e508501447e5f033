"""A whole experiment small enough for a test: the chain world with two steps, and a policy warmed up for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from exprl.experiment import Experiment, load_experiment
from exprl.terminal.console import Console

ROOT = Path(__file__).parents[2]

SMALL = [
    "model.max_steps=2",
    "model.target_accuracy=0.3",
    "model.reads_references=false",  # a teacher that reads well takes a longer warm-up, and mechanics need none
    "data.train.count=16",
    "data.train.steps=2",
    "data.prompts_per_step=4",
    "rollout.samples_per_prompt=4",
    "rollout.max_new_tokens=24",
    "rollout.batch_size=16",
    "evaluation.source.count=4",
    "evaluation.source.steps=2",
    "evaluation.samples_per_prompt=4",
    "evaluation.k=[1,4]",
    "optimizer.lr=1.0e-4",
    "trainer.max_steps=4",
]


@pytest.fixture(scope="session")
def small() -> Callable[..., Experiment]:
    """The quickstart, shrunk, with further overrides."""
    return lambda *overrides: load_experiment(ROOT / "configs/quickstart.yaml", [*SMALL, *overrides])


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Train an experiment in `tmp_path / name`; returns its summary."""
    from exprl.commands.train import train

    def execute(experiment: Experiment, name: str = "run", *, resume: bool = False) -> dict[str, Any]:
        with (tmp_path / f"{name.replace('/', '-')}.log").open("a") as log:
            return train(experiment, tmp_path / name, resume=resume, console=Console(file=log, width=120))

    return execute
