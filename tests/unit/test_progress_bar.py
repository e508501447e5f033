"""Progress where no bar can be drawn: lines, from work that reports, and from work that is stuck in one call."""

from __future__ import annotations

import io
import logging
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from exprl.terminal import progress_bar
from exprl.terminal.phases import Phases
from exprl.terminal.progress_bar import LATEST, SOON, Lines, ProgressBar
from tests.waiting import LONG, until


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_line_comes_first_after_a_while_then_with_each_tenth_and_at_the_latest_after_minutes() -> None:
    lines = Lines("mining", 1000, "rollout", initial=200)
    lines.close()
    start = lines.start
    assert lines.due(start + SOON - 1) is None
    assert lines.due(start + SOON) == "mining: 200 of 1000 rollouts (20%), 30 s"
    lines.done = 299
    assert lines.due(start + 3 * SOON) is None
    lines.done = 300
    assert lines.due(start + 3 * SOON) == "mining: 300 of 1000 rollouts (30%), 1 min 30 s, about 7 min left"
    lines.done, lines.figure = 900, "measure 0.5"
    assert lines.due(start + 4 * SOON - 1) is None
    assert lines.due(start + 4 * SOON) == (
        "mining: 900 of 1000 rollouts (90%), measure 0.5, 2 min, about 5 s left"  # at the last speed
    )
    assert lines.due(start + 4 * SOON + LATEST) == "mining: 900 of 1000 rollouts (90%), measure 0.5, 7 min"
    endless = Lines("judging", None, "verdict")
    endless.close()
    endless.done = 3
    assert endless.due(endless.start + 3700) == "judging: 3 verdicts, 1 h 1 min 40 s"


def test_a_phase_without_a_terminal_says_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress_bar, "SOON", 0.05)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    caplog.set_level(logging.INFO, "exprl")
    with Phases().run("sampling", 4) as on_progress:
        on_progress(1)
        until(lambda: "1 of 4" in caplog.text)  # one long call
    assert re.fullmatch(r"sampling: 1 of 4 rollouts \(25%\), \d+ s, about \d+ s left", caplog.messages[-1])
    caplog.clear()
    with Phases(shown=lambda: False).run("sampling", 4):
        time.sleep(0.2)
    assert caplog.records == [], "ranks that do not show progress say nothing"


def test_a_terminal_has_a_bar_and_no_lines(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(progress_bar, "SOON", 0.05)
    caplog.set_level(logging.INFO, "exprl")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with ProgressBar("sampling", 4) as bar:
        bar.update(3)
        time.sleep(0.2)
    assert "sampling:" in terminal.getvalue()
    assert caplog.records == []


SCRIPT = """
import os, sys
from exprl.cli import show_messages
show_messages()
from transformers.utils import logging
sys.exit(logging.is_progress_bar_enabled())
"""


def test_bars_of_libraries_stay_out_of_pipes() -> None:
    environment = {key: value for key, value in os.environ.items() if "PROGRESS_BARS" not in key}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        timeout=LONG,
        check=False,
    )
    assert done.returncode == 0, done.stderr
