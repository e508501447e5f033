"""Folders that end with their process."""

from __future__ import annotations

import fcntl
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from exprl.files.swept import SweptFolder


def test_it_is_its_users_alone_and_goes_when_it_is_closed(tmp_path: Path) -> None:
    folder = SweptFolder(tmp_path, "a")
    assert folder.path.stat().st_mode & 0o077 == 0
    SweptFolder(tmp_path, "a").close()
    assert folder.path.exists()  # in use, so not swept
    folder.close()
    assert not list(tmp_path.iterdir())


def test_folders_of_one_kind_sweep_none_of_another(tmp_path: Path) -> None:
    left = tmp_path / "exprl-a-left"
    left.mkdir()
    (left / "lock").touch()
    other = SweptFolder(tmp_path, "b")
    assert left.exists()
    assert other.path.name.startswith("exprl-b-")
    SweptFolder(tmp_path, "a").close()
    assert not left.exists()
    assert other.path.exists()
    other.close()


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from exprl.files.swept import SweptFolder\n"
        "folder = SweptFolder(Path(sys.argv[1]), 'a'); (folder.path / 'x').write_bytes(b'x')\n"
        "print('there', flush=True); time.sleep(1000)"
    )
    child = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline()
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    (left,) = tmp_path.iterdir()
    folder = SweptFolder(tmp_path, "a")
    assert list(tmp_path.iterdir()) == [folder.path] != [left]
    folder.close()


def test_one_that_is_swept_before_it_is_locked_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flock = fcntl.flock

    def late(descriptor: int, how: int) -> Any:
        monkeypatch.setattr(fcntl, "flock", flock)
        SweptFolder(tmp_path, "a").close()
        return flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    folder = SweptFolder(tmp_path, "a")
    assert folder.path.exists()
    SweptFolder(tmp_path, "a").close()
    assert list(tmp_path.iterdir()) == [folder.path]
    folder.close()


def test_one_whose_removal_stopped_halfway_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = SweptFolder(tmp_path, "a")
    for name in ("k", "lock-of-mine", "m"):
        (folder.path / name).write_bytes(b"x")
    monkeypatch.setattr(shutil, "rmtree", lambda *args, **options: None)  # the kill comes before the end
    folder.close()
    monkeypatch.undo()
    assert [path.name for path in folder.path.iterdir()] == ["lock"]
    SweptFolder(tmp_path, "a").close()
    assert not list(tmp_path.iterdir())


def test_what_another_put_there_is_left(tmp_path: Path) -> None:
    (tmp_path / "exprl-a-unlocked").mkdir()
    (tmp_path / "exprl-a-file").touch()
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "lock").touch()
    (tmp_path / "exprl-a-link").symlink_to(tmp_path / "target")
    before = sorted(tmp_path.rglob("*"))
    SweptFolder(tmp_path, "a").close()
    assert sorted(tmp_path.rglob("*")) == before
