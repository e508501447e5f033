"""Texts from outside on the terminal, and printing that ends no run."""

from __future__ import annotations

import ast
import io
import logging
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from rich.table import Table

from exprl.rollouts.showing import print_sample
from exprl.terminal import streams
from exprl.terminal.console import Console, line, styled, visible

ROOT = Path(__file__).parents[2]
ATTACKS = [
    "\x1b[2J\x1b[31mred",  # clears the screen
    "\x1b]52;c;cm0gLXJm\x07",  # writes the clipboard
    "\x9b31mC1",  # the same as ESC [ in one character
    "good\rbad \b\b",  # writes over itself
    "a\u202eb\u2066c\u200f",  # reorders the line
    "pay\u200b\u200d\ufeff\u2060pal",  # has no width
    "\u3164\ufe0f\U000e0141",  # nor have these, which are no format characters
    "one\u2028two\x0b\x0c\x85",  # further line ends
    "\ud800 lone",  # no encoding has it
    "[/b] [bold]markup[/] [link=http://x]y[/link] :smile:",
    "\x00null",
]


def hostile(text: str) -> list[str]:
    """Characters that a terminal obeys or hides."""
    return [c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c != "\n"]


def printed(*renderables: object, width: int = 200, encoding: str = "utf-8") -> str:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, errors="backslashreplace", newline="")
    console = Console(file=file, width=width)
    for renderable in renderables:
        console.print(renderable)
    file.flush()
    return raw.getvalue().decode(encoding)


@pytest.mark.parametrize("text", ATTACKS)
def test_nothing_from_outside_acts_on_the_terminal(text: str) -> None:
    table = Table(title=text, caption=text)
    table.add_column(text)
    table.add_row(text)
    for shown in (visible(text), line(text), printed(text), printed(table), printed(styled(text, (text, "bold")))):
        assert hostile(shown) == []
    if text.startswith("["):
        assert text in printed(text)  # markup and emoji codes are text
        assert text in printed(table)


def test_what_is_text_stays_as_it_is() -> None:
    text = "naïve ∑ ≥ ½, 数学, עברית,\n\tand é"
    assert visible(text) == text
    assert line("a\n\tb") == "a\\n\\tb"


def test_an_escape_says_which_character_it_was() -> None:
    assert visible("\x1b\x9b\u202e\ud800\U000e0141\r") == "\\x1b\\x9b\\u202e\\ud800\\U000e0141\\r"


@pytest.mark.parametrize("width", [1, 2, 20])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_sample_is_printed_at_any_width_and_encoding(width: int, encoding: str) -> None:
    segment = {"text": "".join(ATTACKS), "score": 1.0, "status": "ok", "reward": 0.5, "advantage": -1.0}
    record = {"step": 1, "problem_id": "[/b]\n0", "tokens": 3, "finish_reason": "stop", "segments": [segment]}
    record |= {"question": "".join(ATTACKS) * 99}
    record |= {"scorer": {"reward": "r", "judge": "[/b]", "route": "\n"}, "verdict": True, "label": None}
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, errors="backslashreplace")
    print_sample(Console(file=file, width=width), record)
    file.flush()
    assert hostile(raw.getvalue().decode(encoding)) == []
    assert len(raw.getvalue()) > 20


def test_a_reader_that_is_gone_does_not_end_a_run() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", closefd=True, buffering=1) as file:
        console = Console(file=file)
        console.print("lost")
        console.print("lost too")
        assert console.quiet
        with pytest.raises(BrokenPipeError):
            file.close()


def test_log_records_of_any_library_are_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "_logRecordFactory", streams._visible_record)
    record = logging.getLogger("lightning").makeRecord("x", logging.INFO, "", 0, "to %s", ("a\x1b[31m",), None)
    assert record.getMessage() == "to a\\x1b[31m"
    wrong = logging.getLogger("x").makeRecord("x", logging.INFO, "", 0, "%d", ("a",), None)
    assert wrong.args == ("a",)


def test_every_print_goes_through_the_one_module() -> None:
    for path in (ROOT / "exprl").rglob("*.py"):
        name, tree = path.relative_to(ROOT).as_posix(), ast.parse(path.read_text())
        imports = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        if name != "exprl/terminal/console.py":
            assert not imports & {"rich.console", "rich.text", "rich.markup", "rich"}, name
        called = {
            node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        # the worker of the mathematics verifier answers its parent process by printing
        assert "print" not in called or name == "exprl/verifiers/math_worker.py", name


CONFIG = f"'{sys.executable}' -m exprl config '{ROOT}/configs/quickstart.yaml'"


@pytest.mark.parametrize(
    ("shell", "codes"),
    [
        (f"PYTHONIOENCODING=ascii:strict {CONFIG} 'run_dir=ü' 2>&- | true", "0 0"),
        (f"TERM= COLUMNS=1 PYTHONIOENCODING=ascii:strict '{sys.executable}' -m exprl list judge | head -1", "0 0"),
        (f"PYTHONIOENCODING=ascii:strict {CONFIG} 'run_dir=ü\x1b[31m' no.such=1", "2"),
        (f"{CONFIG} > /dev/full", "2"),
    ],
    ids=["no reader", "one line read", "an error", "a full disk"],
)
def test_a_terminal_of_any_kind(shell: str, codes: str) -> None:
    script = f"exec 3>&1; {shell}; echo ${{PIPESTATUS[*]}} >&3"
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, check=False)
    assert done.stdout.splitlines()[-1].decode() == codes
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr
    assert b"\x1b" not in done.stderr
    assert (b"No space left" in done.stderr) == ("/dev/full" in shell)


def test_a_closed_stream_is_not_taken_by_the_next_file(tmp_path: Path) -> None:
    code = f"from exprl.terminal.streams import guard; guard(); f = open({str(tmp_path / 'data')!r}, 'w')"
    script = f"import os; os.close(1); {code}; print(f.fileno() > 2); import sys; sys.stderr.write(str(f.fileno() > 2))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == "True"
    assert (tmp_path / "data").read_text() == ""


def test_a_stream_that_does_not_block_loses_nothing() -> None:
    code = "from exprl.terminal.streams import guard; guard(); print('x' * 1_000_000)"
    script = f"import os; os.set_blocking(1, False); {code}"
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert len(process.stdout.read()) == 1_000_001
    assert process.returncode == 0


def test_ctrl_c_while_libraries_are_imported() -> None:
    script = (
        "import sys, importlib.abc, signal, os\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background job ignores it
        "class Finder(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'omegaconf': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "sys.argv = ['exprl', 'list']\n"
        "from exprl.__main__ import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
