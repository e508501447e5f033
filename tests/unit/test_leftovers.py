"""Folders of sandboxes that a killed process left are cleared away, and no others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from exprl.execution import leftovers

MAKING = """
import sys, time
from pathlib import Path
from exprl.execution import leftovers
leftovers.HOME = Path(sys.argv[1])
print(leftovers.made_folder()[0], flush=True)
time.sleep(60)
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(leftovers, "HOME", tmp_path)
    return tmp_path


def aged(folder: Path) -> Path:
    os.utime(folder, (0, 0))
    return folder


def test_a_killed_process_s_is_removed_and_a_living_one_s_is_not(home: Path) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", MAKING, str(home)], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    try:
        folders = []
        for process in processes:
            assert process.stdout is not None
            folders.append(aged(Path(process.stdout.readline().strip())))
            (folders[-1] / "0").mkdir()
            aged(folders[-1])
        processes[0].send_signal(signal.SIGKILL)
        processes[0].wait()
        leftovers.clear()
        assert [folder.exists() for folder in folders] == [False, True]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_ones_own_is_kept_until_it_is_removed(home: Path) -> None:
    folder, lock = leftovers.made_folder()
    aged(folder)
    leftovers.clear()
    assert folder.is_dir()
    leftovers.removed(folder, lock)
    assert not folder.exists()


def test_what_is_new_or_something_else_is_left(home: Path) -> None:
    (home / "exprl-sandbox-new").mkdir()
    (home / "exprl-sandbox-file").touch()
    (home / "target").mkdir()
    (home / "exprl-sandbox-link").symlink_to(aged(home / "target"))
    aged(home / "exprl-sandbox-file")
    leftovers.clear()
    assert len(list(home.iterdir())) == 4
