"""Real `exprl train` processes for tests, and what their runs leave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from exprl.rollouts import RolloutStore, load_rollouts
from exprl.rollouts.showing import records
from tests.integration.conftest import ROOT, SMALL
from tests.waiting import LONG

EXPRL = (sys.executable, "-m", "exprl")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "exprl")

OPTIONS = [
    *SMALL,
    "plugins=[tests.integration.faults]",
    "evaluation.source=null",
    "update.prompts_per_update=2",
    "objective.kl_coef=0.01",
    "trainer.checkpoint_every=1",
    "trainer.print_samples=0",
]


def command(
    folder: Path, *options: str, launcher: tuple[str, ...] = EXPRL, common: Sequence[str] = OPTIONS
) -> list[str]:
    """The command line of a small run in `folder`."""
    config = str(ROOT / "configs/quickstart.yaml")
    return [*launcher, "train", config, "--resume", *common, f"run_dir={folder}", *options]


def environment(fault: str | None = None) -> dict[str, str]:
    """This process's, with a fault to happen."""
    return {**os.environ, "OMP_NUM_THREADS": "1", **({"FAULT": fault} if fault else {})}


def execute(
    folder: Path,
    *options: str,
    fault: str | None = None,
    launcher: tuple[str, ...] = EXPRL,
    cwd: Path = ROOT,
    variables: Mapping[str, str] | None = None,
    common: Sequence[str] = OPTIONS,
) -> subprocess.CompletedProcess[str]:
    """Run to the end, whatever it is; `variables` are added to the environment."""
    return subprocess.run(
        command(folder, *options, launcher=launcher, common=common),
        cwd=cwd,
        env={**environment(fault), **(variables or {})},
        capture_output=True,
        text=True,
        timeout=LONG,
        check=False,
    )


def steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in a run's folder."""
    return [int(path.stem.removeprefix("step-")) for path in sorted((folder / "checkpoints").glob("step-*.ckpt"))]


def lines(path: Path) -> list[dict[str, Any]]:
    """JSON lines without times."""
    parsed = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith("time/")} for line in parsed]


def samples(folder: Path) -> list[dict[str, Any]]:
    """A run's rollouts as people read them, in the order of steps."""
    return [
        record for step, groups in load_rollouts(folder).items() for group in groups for record in records(group, step)
    ]


def final_state(folder: Path) -> dict[str, Any]:
    """Weights and optimizer state after the last step."""
    latest = sorted((folder / "checkpoints").glob("step-*.ckpt"))[-1]
    content = torch.load(latest, weights_only=False)
    return {key: content[key] for key in ("state_dict", "optimizer_states", "lr_schedulers", "exprl")}


def assert_equal(one: Any, other: Any, where: str = "") -> None:
    """Bit for bit, through nested containers."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_equal(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, (list, tuple)) and not isinstance(one, str):
        assert len(one) == len(other), where
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_equal(a, b, f"{where}/{index}")
    elif hasattr(one, "tolist"):
        assert one.tolist() == other.tolist(), where
    else:
        assert one == other, where


def assert_same_run(one: Path, other: Path) -> None:
    """Weights, optimizer, random states, metrics and samples are the same, bit for bit."""
    assert_equal(final_state(one), final_state(other))
    assert lines(one / "metrics.jsonl") == lines(other / "metrics.jsonl")
    assert dict(RolloutStore(one / "rollouts")) == dict(RolloutStore(other / "rollouts"))
