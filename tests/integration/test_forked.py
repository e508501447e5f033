"""A forked Python process is to whoever starts it, and finds itself, as a genuine one: each is asked the same here."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from exprl.engines.servers import watcher
from tests import forked
from tests.integration.conftest import ROOT
from tests.waiting import LONG, until

pytestmark = [
    pytest.mark.usefixtures("forking"),
    pytest.mark.skipif(not forked.possible(), reason="none is forked here"),
]

HAS_TORCH = "import sys; print('torch' in sys.modules)"
"""Whether a process was forked, as a genuine one begins without."""

FINDS = """
import json, os, random, signal, sys
parent = int(open("/proc/self/stat").read().rpartition(")")[2].split()[1])
words = [word for word in open("/proc/self/cmdline").read().split("\\0") if word]
print(json.dumps({
    "argv": sys.argv, "orig_argv": sys.orig_argv, "cmdline": words, "name": __name__, "file": globals().get("__file__"),
    "globals": sorted(globals()), "folder": os.getcwd(), "environment": dict(os.environ), "path": sys.path,
    "safe_path": sys.flags.safe_path, "parent": [parent, os.getppid()], "leads": os.getsid(0) == os.getpid(),
    "group": os.getpgid(0) == os.getpgid(os.getppid()), "stdin": sys.stdin.read(), "tests": "tests" in sys.modules,
    "signals": [str(signal.getsignal(number)) for number in sorted(signal.valid_signals())],
    "streams": [[s.encoding, s.errors, s.line_buffering, s.write_through] for s in (sys.stdin, sys.stdout, sys.stderr)],
    "low descriptors": [number for number in map(int, os.listdir("/proc/self/fd")) if number in (0, 1, 2, 70)],
    "children": os.path.exists("/nowhere"), "threads": len(os.listdir("/proc/self/task")),
}))
"""
ENDS = {
    "by itself": "print('done')",
    "code": "import sys; print('out'); sys.exit(3)",
    "a code over 255": "import sys; sys.exit(259)",
    "message": "import sys; sys.exit('what is wrong')",
    "None": "import sys; sys.exit(None)",
    "error": "raise ValueError('what is wrong')",
    "killed": "import os, signal; print('out', flush=True); os.kill(os.getpid(), signal.SIGKILL)",
    "terminated": "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
    "interrupted": "import os, signal; os.kill(os.getpid(), signal.SIGINT)",
    "at once": "import os; print('lost'); os._exit(7)",
    "last words": "import atexit; atexit.register(print, 'last words'); print('first')",
    "a thread": "import threading, time; threading.Thread(target=lambda: (time.sleep(.2), print('late'))).start()",
    "a closed pipe": "import os, sys; os.close(1); os.close(2); sys.exit(4)",
}


@pytest.fixture(params=[False, True], ids=["as is", "safe path"])
def safe(request: pytest.FixtureRequest) -> dict[str, str]:
    return {"PYTHONSAFEPATH": "1"} if request.param else {}


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, **{"timeout": LONG, **options}
    )


def both(*arguments: str, **options: Any) -> Iterator[subprocess.CompletedProcess[str]]:
    """Forked, and genuine."""
    yield run(*arguments, **options)
    with forked.genuine():
        yield run(*arguments, **options)


@pytest.mark.parametrize("code", ENDS.values(), ids=ENDS)
def test_it_ends_as_a_genuine_one(code: str) -> None:
    ours, theirs = both("-c", code)
    assert (ours.returncode, ours.stdout) == (theirs.returncode, theirs.stdout)
    assert ours.stderr.splitlines()[-1:] == theirs.stderr.splitlines()[-1:]
    assert ours.stderr.count("Traceback") == theirs.stderr.count("Traceback")


@pytest.mark.parametrize("name", ["interrupted", "terminated"])
def test_signals_that_whoever_asks_ignores_are_ignored(name: str) -> None:
    """As a shell sees to it for what it starts in the background."""
    numbers = signal.SIGINT, signal.SIGTERM
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        ours, theirs = both("-c", ENDS[name])
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
    assert ours.returncode == theirs.returncode == 0


@pytest.mark.parametrize("options", [{}, {"start_new_session": True}, {"process_group": 0}], ids=str)
def test_it_finds_what_a_genuine_one_finds(tmp_path: Path, safe: dict[str, str], options: dict[str, Any]) -> None:
    held = os.open(tmp_path / "held", os.O_CREAT)
    os.dup2(held, 70)
    try:
        found = both(
            *("-c", FINDS, "one", "two words"),
            env={**os.environ, **safe, "FAULT": "no:reader", "PYTHONPATH": f"{tmp_path / 'own'}{os.pathsep}{ROOT}"},
            cwd=tmp_path,
            input="said",
            pass_fds=[70],
            **options,
        )
        ours, theirs = (json.loads(done.stdout) for done in found)
    finally:
        os.close(70)
        os.close(held)
    ours["path"] = [path for path in ours["path"] if not path.startswith("__editable__")]
    theirs["path"] = [path for path in theirs["path"] if not path.startswith("__editable__")]
    assert ours == theirs
    assert ours["parent"] == [os.getpid(), os.getpid()]
    assert 70 in ours["low descriptors"]


def test_a_module_is_run_as_the_interpreter_runs_it(tmp_path: Path, safe: dict[str, str]) -> None:
    (tmp_path / "probe.py").write_text(FINDS)
    environment = {**os.environ, **safe, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    ours, theirs = (
        json.loads(done.stdout) for done in both("-m", "probe", "one", cwd=ROOT, env=environment, input="said")
    )
    for found in (ours, theirs):
        found["path"] = [path for path in found["path"] if not path.startswith("__editable__")]
    assert ours == theirs


@pytest.mark.parametrize(
    "arguments",
    [("list", "judge"), ("--version",), ("train", "no_such.yaml"), ("config", "quickstart", "trainer.max_stps=1"), ()],
    ids=" ".join,
)
def test_the_command_line_says_the_same(arguments: tuple[str, ...]) -> None:
    ours, theirs = both("-m", "exprl", *arguments)
    assert (ours.returncode, ours.stdout, ours.stderr) == (theirs.returncode, theirs.stdout, theirs.stderr)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_it_is_to_it(number: signal.Signals) -> None:
    code = "import time; print('ready', flush=True); time.sleep(1000)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert process.poll() is None
        process.send_signal(number)
        assert process.wait(timeout=LONG) == -number


CHILD = "import os, sys, time; print(os.getppid(), 'torch' in sys.modules, flush=True); time.sleep(1000)"
PARENT = f"""
import os, subprocess, sys
os.environ.update(PYTHONSAFEPATH="1", HF_HUB_DISABLE_PROGRESS_BARS="1")  # as `exprl` does
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}], stdout=subprocess.PIPE, text=True)
print(os.getpid(), child.pid, *child.stdout.readline().split(), flush=True)
child.wait()
"""


def lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_what_it_starts_is_its_own_child_and_of_its_group() -> None:
    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        own, child, parent, has_torch = process.stdout.readline().split()
        assert int(own) == int(parent) == process.pid
        assert has_torch == "True"
        assert os.getpgid(int(child)) == process.pid
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait(timeout=LONG) == -9
        assert process.stdout.read() == "", "the pipe is closed: nobody lives who had it"
    until(lambda: not lives(int(child)))


def test_no_two_have_the_same_random_numbers() -> None:
    code = "import random, numpy as np, uuid; print(random.random(), np.random.random(), uuid.uuid4())"
    one, other = (run("-c", code).stdout.split() for _ in range(2))
    assert len({*one, *other}) == 6


@pytest.mark.parametrize(
    ("variable", "is_forked"),
    [
        *[("FAULT", True), ("WORLD_SIZE", True), ("MASTER_PORT", True), ("RANK", True)],
        *[("OMP_NUM_THREADS", False), ("HF_HOME", False), ("PYTHONHASHSEED", False), ("TORCH_LOGS", False)],
    ],
)
def test_what_imports_read_makes_a_process_genuine(variable: str, is_forked: bool) -> None:
    value = "dynamo" if variable == "TORCH_LOGS" else "3"
    assert run("-c", HAS_TORCH, env={**os.environ, variable: value}).stdout == f"{is_forked}\n"


@pytest.mark.parametrize(
    "options",
    [{"preexec_fn": os.getpid}, {"close_fds": False}, {"umask": 0o077}, {"executable": sys.executable}],
    ids=str,
)
def test_what_is_asked_for_and_not_done_by_forking_makes_it_genuine(options: dict[str, Any]) -> None:
    assert run("-c", HAS_TORCH).stdout == "True\n"
    assert run("-c", HAS_TORCH, **options).stdout == "False\n"
    assert run("-S", "-c", HAS_TORCH).stdout == "False\n"


def test_what_multiprocessing_spawns_is_forked_too(tmp_path: Path) -> None:
    """With the same exit code, parent and arguments as when it is genuine; its helper stays one."""
    context = multiprocessing.get_context("spawn")
    found = []
    for number in range(2):
        file = tmp_path / str(number)
        code = (
            f"import os, sys; open({str(file)!r}, 'w').write(f\"{{'torch' in sys.modules}} {{os.getppid()}}\"); exit(3)"
        )
        process = context.Process(target=exec, args=(code, {}))
        with forked.genuine() if number else nullcontext():
            process.start()
        process.join(timeout=LONG)
        found.append((process.exitcode, *file.read_text().split()))
    assert found == [(3, "True", str(os.getpid())), (3, "False", str(os.getpid()))]


def test_one_with_further_modules_has_them_and_so_has_what_it_starts() -> None:
    has = "import sys; print('torch' in sys.modules, 'xmlrpc.client' in sys.modules, flush=True)"
    code = f"{has}; import subprocess; raise SystemExit(subprocess.run([sys.executable, '-c', {has!r}]).returncode)"
    with forked.forking("xmlrpc.client"):
        done = run("-c", code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True True\n" * 2, "")
    assert run("-c", has).stdout == "True False\n"


DIES_WITH_ITS_PARENT = (
    "import ctypes, sys; number = ctypes.c_int(); ctypes.CDLL(None).prctl(2, ctypes.byref(number)); "
    "print('torch' in sys.modules, number.value); sys.exit(5)"
)


def test_a_server_and_what_watches_it_are_forked_too() -> None:
    """A file that needs the standard library alone, and a process that calls a function of it first."""
    command = [sys.executable, "-I", "-S", watcher.__file__, sys.executable, "-c", DIES_WITH_ITS_PARENT]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    said = []
    for start in (nullcontext, forked.genuine):
        with start(), subprocess.Popen(command, **pipes) as process:
            assert process.stdout is not None
            said.append(process.stdout.read())
        assert process.returncode == 5
    assert said == ["True 9\n", "False 9\n"]


def test_a_library_of_its_own_makes_it_genuine(tmp_path: Path) -> None:
    (tmp_path / "exprl").mkdir()
    for options in ({"cwd": tmp_path}, {"env": {**os.environ, "PYTHONPATH": str(tmp_path)}}):
        assert run("-c", HAS_TORCH, **options).stdout == "False\n"


def test_a_folder_that_is_not_there_is_the_error_it_always_was(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        run("-c", "pass", cwd=tmp_path / "nowhere")


def test_ranks_know_their_rank() -> None:
    code = "from lightning.fabric.utilities.rank_zero import rank_zero_only; print(rank_zero_only.rank)"
    assert [run("-c", code, env={**os.environ, "RANK": str(rank)}).stdout for rank in (0, 1)] == ["0\n", "1\n"]


def test_outside_of_it_processes_are_genuine(genuine: None) -> None:
    assert run("-c", HAS_TORCH).stdout == "False\n"
