"""The declared metrics are those that runs log, no more and no less."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from exprl.training.glossary import METRICS, metric_of
from tests.integration.test_methods import EXACT
from tests.integration.test_train import lines, scalars

RUNS = {
    "rl": ("evaluation.every=1",),
    "sft": ("method.name=sft", "evaluation.source=null"),
    "self_distillation": (*EXACT, "evaluation.source=null"),
}


def test_every_logged_metric_is_declared_and_the_other_way_round(small: Any, run: Any, tmp_path: Path) -> None:
    logged: set[str] = set()
    for name, options in RUNS.items():
        run(small(*options, "trainer.max_steps=1", "trainer.checkpoint_every=0"), name)
        written = {key for line in lines(tmp_path / name / "metrics.jsonl") for key in line} - {"step"}
        drawn = set(scalars(tmp_path / name))
        assert written <= drawn, "one name everywhere"
        logged |= written | drawn
    assert {name for name in logged if metric_of(name) is None} == set()
    assert {metric.name for metric in METRICS} == {metric.name for name in logged if (metric := metric_of(name))}
