"""The time of a run is that of all its processes."""

from __future__ import annotations

import json

import pytest

from exprl.terminal.phases import Phases
from exprl.training import stopwatch
from exprl.training.stopwatch import Spent, Stopwatch


def at(monkeypatch: pytest.MonkeyPatch, now: float) -> None:
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: now)


def test_processes_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    first = Stopwatch(phases := Phases(), start=100.0, prepared=2.0)
    phases.total.update(sampling=5.0, evaluate_before=3.0)
    at(monkeypatch, 120.0)
    saved = json.loads(json.dumps(first.state_dict()))
    assert saved == {
        "seconds": {"prepare": 2.0, "sampling": 5.0, "evaluate_before": 3.0, "total": 20.0},
        "processes": 1,
    }
    second = Stopwatch(phases := Phases(), start=1000.0, prepared=1.0)
    second.load_state_dict(saved)
    phases.total.update(sampling=4.0, judging=1.0)
    at(monkeypatch, 1007.0)
    assert second.spent == Spent(
        seconds={"prepare": 3.0, "sampling": 9.0, "evaluate_before": 3.0, "judging": 1.0, "total": 27.0},
        last=7.0,
        processes=2,
    )
    assert second.spent == second.spent, "looking changes nothing"
    assert second.spent.in_words == "27 s in 2 processes (7 s in the last)"


def test_one_process_and_a_summary_of_an_earlier_version() -> None:
    assert Spent.of_summary({"seconds": {"total": 12.4}}).in_words == "12 s"
    later = {"seconds": {"total": 30.0}, "seconds_of_last_process": 10.0, "processes": 3}
    assert Spent.of_summary(later) == Spent(seconds={"total": 30.0}, last=10.0, processes=3)
