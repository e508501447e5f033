"""Folders that end with their process."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

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
        "print('there', flush=True); time.sleep(60)"
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
