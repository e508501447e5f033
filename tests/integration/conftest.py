"""A whole experiment small enough for a test: the chain world with two steps, and a policy warmed up for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import yaml

from exprl.experiment import Experiment, load_experiment
from exprl.terminal.console import Console
from exprl.types import RolloutGroup

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


MIXED = [item for item in SMALL if not item.startswith(("data.train", "evaluation.source"))]
"""The same for the fixture `mixed`."""

JUDGE = {"name": "reference_steps"}
REWARDS: dict[str, dict[str, Any]] = {
    "math": {"name": "process", "slicer": {"name": "delimiter", "delimiter": "\n", "position": "end"}, "judge": JUDGE},
    "science": {"name": "outcome", "judge": JUDGE, "clip_length": False},
    "code": {"name": "sparse"},
}


@pytest.fixture(scope="session")
def small() -> Callable[..., Experiment]:
    """The quickstart, shrunk, with further overrides."""
    return lambda *overrides: load_experiment(ROOT / "configs/quickstart.yaml", [*SMALL, *overrides])


def failing_after(steps: int | Callable[[], int]) -> Callable[..., Any]:
    """`Collector.score`, but for the rollouts of the policy that has been trained for so many steps."""
    from exprl.training.collecting import Collector

    score = Collector.score

    def failing(self: Collector, groups: Sequence[RolloutGroup]) -> Any:
        if groups[0].rollouts[0].policy_version == (steps if isinstance(steps, int) else steps()):
            raise RuntimeError("the machine is gone")
        return score(self, groups)

    return failing


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Train an experiment in `tmp_path / name`; returns its summary."""
    from exprl.commands.train import train

    def execute(experiment: Experiment, name: str = "run", *, resume: bool = False) -> dict[str, Any]:
        with (tmp_path / f"{name.replace('/', '-')}.log").open("a") as log:
            return train(experiment, tmp_path / name, resume=resume, console=Console(file=log, width=120))

    return execute


def write_problems(path: Path, count: int) -> None:
    """Problems of the small world, in turn of the domains of `REWARDS`."""
    from exprl.chain.source import ChainSource
    from exprl.commands.mine import row
    from exprl.evaluation.rates import Count

    domains = cycle(REWARDS)
    rows = [
        {**row(problem, Count(id="", content="", samples=1, correct=0)), "domain": next(domains)}
        for problem in ChainSource(steps=2, count=count).load()
    ]
    path.write_text("".join(f"{json.dumps(one)}\n" for one in rows))


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """The config of a small run on problems of several domains, each with a reward of its own; beside `MIXED`."""
    write_problems(tmp_path / "train.jsonl", 12)
    write_problems(tmp_path / "held-out.jsonl", 6)
    columns = {name: name for name in ("id", "domain", "steps")}
    template = {"name": "template", "template": "{question}", "max_prompt_tokens": 64}
    config = {
        "extends": str(ROOT / "configs/quickstart.yaml"),
        "data": {"train": {"name": "jsonl", "path": str(tmp_path / "train.jsonl"), "columns": columns}},
        "evaluation": {"source": {"name": "jsonl", "path": str(tmp_path / "held-out.jsonl"), "columns": columns}},
        "reward": {"name": "by_domain", "domains": REWARDS},
        "verifier": {"name": "by_domain", "domains": {"code": {"name": "math"}}, "default": {"name": "exact"}},
        "prompt": {"name": "by_domain", "domains": {"code": template}, "default": {"name": "template"}},
    }
    (tmp_path / "mixed.yaml").write_text(yaml.safe_dump(config))
    return tmp_path / "mixed.yaml"
