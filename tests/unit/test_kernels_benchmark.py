"""`benchmarks/kernels.py` when its budget ends: what it says, how it ends, and that the next call goes on."""

from __future__ import annotations

import importlib
import multiprocessing
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SIZE = (
    "--device",
    "cpu",
    "--tokens",
    "8",
    "--hidden",
    "4",
    "--vocabulary",
    "16",
    "--dtype",
    "float32",
    "--repeats",
    "1",
)


@pytest.fixture
def kernels(monkeypatch) -> ModuleType:
    """`benchmarks/kernels.py`, which finds its neighbours as a program does."""
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    return importlib.import_module("kernels")


class Silent:
    """A process that answers nothing; it says whether it was asked to end before it was killed."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __getattr__(self, name: str):
        return lambda *_: self.asked.append(name)


def silent(kernels) -> tuple[object, Silent]:
    worker, process = kernels.Worker("cpu", 1), Silent()
    worker._connection, there = multiprocessing.Pipe()
    worker._process, process.there = process, there  # held open
    return worker, process


def test_a_cell_that_the_budget_ends_has_no_time_left_and_one_that_has_its_own_is_too_slow(kernels):
    worker, process = silent(kernels)
    assert worker.ask("a cell", seconds=60.0, left=0.01) == kernels.NO_TIME
    assert process.asked == ["terminate", "join", "kill", "join"]  # so that it can remove what it shares
    worker, _ = silent(kernels)
    assert worker.ask("a cell", seconds=0.01, left=60.0) == kernels.Failure("too slow", "no result after 0 s")


def test_a_table_that_the_budget_left_out_makes_the_call_unfinished(kernels, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["kernels.py", *SIZE, "--budget-seconds", "0", "--tasks", "policy"])
    assert kernels.main() == kernels.UNFINISHED
    assert "no time left" in capsys.readouterr().out


def test_the_next_call_goes_on_after_the_last_whole_table(kernels, monkeypatch, capsys, tmp_path):
    asked: list[str] = []
    left = 3

    def ask(self, cell, seconds, left_seconds):
        asked.append(f"{cell.task} {cell.peer}")
        return kernels.NO_TIME if len(asked) > left else kernels.Measurement(1.0, 2.0, 3.0, None)

    monkeypatch.setattr(kernels.Worker, "ask", ask)
    keep = tmp_path / "tables.json"
    only = ("--tasks", "policy", "logits", "--only", "exprl", "torch eager", "--keep", str(keep))
    monkeypatch.setattr(sys, "argv", ["kernels.py", *SIZE, *only])
    assert kernels.main() == kernels.UNFINISHED
    assert asked == ["policy exprl", "policy torch eager", "logits exprl", "logits torch eager"]
    asked.clear()
    assert kernels.main() == 0
    assert asked == ["logits exprl", "logits torch eager"]  # a table's cells are of one call
    asked.clear()
    assert kernels.main() == 0
    assert asked == []
    assert "no time left" not in capsys.readouterr().out.rpartition("# Kernels at")[2]
    monkeypatch.setattr(kernels, "digest", lambda: "other code")
    left = 9
    assert kernels.main() == 0
    assert len(asked) == 4
