"""The two ends of a process of the command line: what its end may skip, and what not."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from exprl.terminal.process import loading

ROOT = Path(__file__).parents[2]
ALONE = "from exprl.terminal.process import run_alone\n"
ENDINGS = """
import atexit, ctypes, os, sys, threading, time

def last(word):
    time.sleep(0.2)
    print(word)

class Ring:
    def __init__(self):
        self.itself = self
    def __del__(self):
        os.write(1, b"a finalizer\\n")

def main():
    global kept
    atexit.register(print, "an exit function")
    threading.Thread(target=last, args=["a thread"]).start()
    kept = open("kept", "w")
    kept.write("of a file that is open")
    binary = open("binary", "wb")
    main.itself = binary
    binary.write(b"of another")
    Ring()
    ctypes.CDLL(None).printf(b"of C\\n")
    sys.stdout.write("unfinished line")

run_alone(main)
"""


def run(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", ALONE + script], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_its_end_leaves_nothing_out(tmp_path: Path) -> None:
    done = run(ENDINGS, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "a finalizer\nunfinished linea thread\nan exit function\nof C\n"
    assert (tmp_path / "kept").read_text() == "of a file that is open"
    assert (tmp_path / "binary").read_text() == "of another"


@pytest.mark.parametrize(
    ("statement", "code", "said"),
    [
        ("pass", 0, ""),
        ("raise SystemExit", 0, ""),
        ("raise SystemExit(3)", 3, ""),
        ("raise SystemExit('in words')", 1, "in words\n"),
        ("raise ValueError('unexpected')", 1, "ValueError: unexpected\n"),
        ("__import__('atexit').register(1 .__truediv__, 0)", 0, "ZeroDivisionError"),
    ],
)
def test_its_exit_code_is_the_one_of_any_process(tmp_path: Path, statement: str, code: int, said: str) -> None:
    done = run(f"def main():\n    {statement}\nrun_alone(main)", tmp_path)
    plain = run(f"def main():\n    {statement}\nmain()", tmp_path)
    assert done.returncode == plain.returncode == code
    assert said in done.stderr
    assert bool(said) == bool(done.stderr) == bool(plain.stderr)


def test_no_object_is_taken_apart_at_its_end(tmp_path: Path) -> None:
    script = "class Kept:\n    def __del__(self): print('taken apart')\nkept = Kept()\n"
    assert run(f"{script}(lambda: None)()", tmp_path).stdout == "taken apart\n"
    assert run(f"{script}run_alone(lambda: None)", tmp_path).stdout == ""


def test_garbage_is_looked_for_once_all_is_imported(tmp_path: Path) -> None:
    script = """
import gc
from exprl.terminal.process import loading
early = open("early", "w")
early.write("of a plugin")
def main():
    print(gc.isenabled(), gc.get_freeze_count())
    with loading():
        print(gc.isenabled())
    print(gc.isenabled(), gc.get_freeze_count() > 0, any(one is early for one in gc.get_objects()))
run_alone(main)
"""
    assert run(script, tmp_path).stdout.splitlines() == ["False 0", "False", "True True False"]
    assert (tmp_path / "early").read_text() == "of a plugin"


def test_a_process_with_other_work_keeps_its_garbage_collector() -> None:
    before = gc.get_freeze_count()
    with loading():
        assert gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() == before
