"""The declared metrics are those that runs log, no more and no less."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from exprl.experiment import load_experiment
from exprl.runs.directory import RunDirectory
from exprl.training.glossary import METRICS, metric_of
from exprl.training.room import checkpoint_bytes
from tests.integration.conftest import MIXED
from tests.integration.test_methods import EXACT
from tests.integration.test_train import lines, scalars

RUNS = {
    "rl": ("evaluation.every=1", "update.dynamic_sampling=1", "rollout.lookahead=1"),
    "sft": ("method.name=sft", "evaluation.source=null"),
    "self_distillation": (*EXACT, "evaluation.source=null"),
}

PROGRAMS = (
    *("data.train.columns.tests=tests", "data.train.columns.partial=true"),
    "reward.domains.code={name: execution, clip_length: false, sandbox: {name: none}}",  # no reply holds a program
)


def test_every_logged_metric_is_declared_and_the_other_way_round(
    small: Any, mixed: Path, run: Any, tmp_path: Path
) -> None:
    logged: set[str] = set()
    short = ("trainer.max_steps=1", "trainer.checkpoint_every=0")
    runs = {name: small(*options, *short) for name, options in RUNS.items()}
    rows = lines(tmp_path / "train.jsonl")
    tested = [{**row, "tests": {"form": "stdio", "cases": [{"input": "1", "output": "1"}]}} for row in rows]
    (tmp_path / "train.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in tested))
    for name, experiment in {**runs, "mixed": load_experiment(mixed, [*MIXED, *PROGRAMS, *short])}.items():
        run(experiment, name)
        written = {key for line in lines(tmp_path / name / "metrics.jsonl") for key in line} - {"step"}
        drawn = set(scalars(tmp_path / name))
        assert written <= drawn, "one name everywhere"
        logged |= written | drawn
    assert {name for name in logged if metric_of(name) is None} == set()
    expected = {metric.name for metric in METRICS if not metric.engine}  # tests/vllm looks at the others
    assert expected == {metric.name for name in logged if (metric := metric_of(name))}


def test_the_first_checkpoint_s_size_is_told_once_and_was_foreseen(small: Any, run: Any, tmp_path: Path) -> None:
    run(small("trainer.max_steps=3", "trainer.checkpoint_every=1", "evaluation.source=null"))
    console = (tmp_path / "run.log").read_text()
    checkpoint = RunDirectory(tmp_path / "run").checkpoint(3)
    assert console.count("checkpoint /") == 1
    size = checkpoint.stat().st_size
    assert f"{RunDirectory(tmp_path / 'run').checkpoint(1)}: {size / 1e6:.1f} MB; the latest 2 are kept" in console
    policy: dict[str, torch.Tensor] = torch.load(checkpoint, weights_only=True)["state_dict"]
    weights = torch.nn.ParameterList([torch.nn.Parameter(tensor) for tensor in policy.values()])
    assert checkpoint_bytes(weights) == pytest.approx(size, rel=0.02)
