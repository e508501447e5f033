"""`exprl list` shows all that an experiment may say, and the declared metrics are those of the page about them."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from exprl.commands import listing
from exprl.config.fields import fields_of
from exprl.errors import ConfigError
from exprl.experiment import Experiment
from exprl.terminal.console import Console
from exprl.training.glossary import METRICS, markdown, metric_of

ROOT = Path(__file__).parents[2]


def shown(topic: str | None) -> str:
    file = io.StringIO()
    listing.show(topic, Console(file=file))
    return file.getvalue()


def keys(schema: type[Any]) -> Iterator[tuple[str, str]]:
    """Every option of an experiment's own with its section."""
    for section, config in listing.sections_of(schema).items():
        for name, spec in fields_of(config).items():
            if spec.dataclass is None:
                yield section, name


@pytest.mark.parametrize(("section", "name"), list(keys(Experiment)))
def test_every_option_is_listed_in_its_section_and_among_all(section: str, name: str) -> None:
    own = shown(section)
    assert f"      {name} = " in own
    assert own in shown(None)


def test_defaults_and_ranges_are_as_in_yaml() -> None:
    trainer = shown("trainer")
    assert "checkpoint_every = 10  steps between checkpoints; " in trainer
    assert "(int in [0, 1000000000])" in trainer
    assert 'precision = "32-true"  ' in trainer
    assert "cpu_offload = false  " in trainer
    assert '          question = "question"  ' in shown("source")


def test_a_study_is_listed_with_what_it_tunes_and_mines() -> None:
    study = shown("study")
    assert "      seeds = [0, 1, 2, 3, 4]  every arm is run with each of these" in study
    assert "          samples = 64  samples of each problem" in study
    assert "          key = required  the option, for example optimizer.lr" in study


def test_a_calibration_and_what_judges_are_tried_by_are_listed() -> None:
    assert "perturbed_problems = null  --attack, --perturb: the first so many problems alone" in shown("calibration")
    assert "      sentences = 20  how many (int in [1, 1000])" in shown("perturbation")


def test_a_key_names_its_family_and_a_mistake_its_neighbour() -> None:
    assert shown("rollout") == shown("engine")
    assert shown("engine").startswith("engine  chosen at `rollout`\n")
    with pytest.raises(ConfigError, match="Did you mean 'trainer'"):
        shown("trainr")


def test_the_page_about_metrics_has_the_declared_ones() -> None:
    assert markdown() in (ROOT / "docs/metrics.md").read_text(), f"put this table there:\n{markdown()}"
    assert shown("metrics").count("\n") == len(METRICS) + 1


def test_placeholders_stand_for_what_they_say() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for name in ("judge/unparseable_rate", "judge/score_5", "evaluation/pass@64", "evaluation/backtracking_rate"):
        assert metric_of(name) is not None, name
    for name in ("judge/odd_rate", "judge/score_6", "evaluation/pass@0", "evaluation/pass@1x", "update/losses"):
        assert metric_of(name) is None, name


def test_one_option_is_shown_by_its_key() -> None:
    assert "transformers" in shown("rollout.cuda_graphs").splitlines()[1], "with engines of other tests that have it"
    assert "      cuda_graphs = true  " in shown("rollout.cuda_graphs")
    assert shown("trainer.max_steps").startswith("trainer.max_steps\n      max_steps = 100  ")
    assert "slicer = " in shown("reward.slicer")
    assert "window = " in shown("reward.slicer.window")
    assert "window = " in shown("reward.domains.math.slicer.window"), "whatever the domain"
    assert shown("reward.judge.name") == shown("judge")
    nested = shown("data.train.columns")
    assert {"csv,", "hub,"} <= set(nested.split())
    assert "          question = " in nested
    assert "question = " in shown("evaluation.source.columns.question")


@pytest.mark.parametrize(
    ("topic", "message"),
    [
        ("rollout.cuda_graph", "no option 'rollout.cuda_graph'. Did you mean 'cuda_graphs'"),
        ("rolout.cuda_graphs", "nothing called 'rolout.cuda_graphs'. Did you mean 'rollout'"),
        ("cuda_graphs", "nothing called 'cuda_graphs'. It is an option: rollout.cuda_graphs."),
        ("seed.x", "no option 'seed.x'"),
        ("jude", "Did you mean 'judge'"),
    ],
)
def test_what_is_no_option_is_refused_with_what_is_near(topic: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        shown(topic)
