"""A real run over problems with hostile ids, on a terminal that goes away."""

from __future__ import annotations

import io
import json
import subprocess
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from exprl.commands.train import train
from exprl.experiment import load_experiment
from exprl.terminal.console import Console
from tests.integration.conftest import ROOT, SMALL
from tests.integration.processes import command, environment
from tests.waiting import LONG

SHRUNK = [option for option in SMALL if not option.startswith("data.train.")]

QUESTIONS = ["a+3 b+9 from 417", "a+1 b+2 from 345", "a+5 b+6 from 789", "a+7 b+8 from 123"]
IDS = ["[/b] 0", "\x1b]52;c;cm0=\x07", "a\u202e\r\nstep 9/9", "ü:smile:"]


@pytest.fixture
def data(tmp_path: Path) -> list[str]:
    rows = [
        {"question": question, "id": name, "reference": "Answer: 1", "answer": "1"}
        for question, name in zip(QUESTIONS, IDS, strict=True)
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        *("data.train.name=jsonl", f"data.train.path={tmp_path}/data.jsonl", "data.train.columns.id=id"),
        *("evaluation.source=null", "model.target_accuracy=0.0", "trainer.max_steps=2", "trainer.print_samples=16"),
    ]


def test_nothing_from_outside_acts_on_the_terminal(data: list[str], tmp_path: Path) -> None:
    output = io.StringIO()
    summary: dict[str, Any] = train(
        load_experiment(ROOT / "configs/quickstart.yaml", [*SHRUNK, *data]),
        tmp_path / "r[/b]",
        resume=False,
        console=Console(file=output, width=120),
    )
    assert summary["steps"] == 2
    shown = output.getvalue()
    assert [c for c in shown if unicodedata.category(c) in ("Cc", "Cf") and c != "\n"] == []
    assert "[/b] 0" in shown
    assert "\\x1b]52;c;cm0=\\x07" in shown
    assert "r[/b]" in shown
    assert not any(line.startswith("step 9/9") for line in shown.splitlines())


def test_a_run_goes_on_when_nobody_reads_it(data: list[str], tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(tmp_path / "run", *data, common=SHRUNK),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**environment(), "PYTHONIOENCODING": "ascii:strict", "COLUMNS": "1", "TERM": ""},
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=LONG) == 0
    assert json.loads((tmp_path / "run/summary.json").read_text())["steps"] == 2
