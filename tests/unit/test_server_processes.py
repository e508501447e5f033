"""Servers as processes of a run: real processes, which are killed in every way, and none of which may stay."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from exprl.engines.servers.command import server_command, server_environment
from exprl.engines.servers.fleet import Address
from exprl.engines.servers.options import OwnServers
from exprl.engines.servers.process import ServerProcess, free_port
from exprl.engines.servers.supply import GivenServers, OwnProcesses
from exprl.errors import ConfigError, EngineError
from tests.waiting import LONG, until

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="needs /proc to see what is left behind")

SERVER = """
import http.server, os, signal, subprocess, sys
if sys.argv[2] == "breaks":
    print("cannot open the model", flush=True)
    sys.exit(3)
if sys.argv[2] == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"])
print("mine", os.getpid(), child.pid, flush=True)
if sys.argv[2] == "deaf":
    import time
    time.sleep(600)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *arguments):
        pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def start(number: int, port: int, log: Path, kind: str = "well") -> ServerProcess:
    return ServerProcess([sys.executable, "-I", "-S", "-c", SERVER, str(port), kind], os.environ, log)


def answers(address: Address) -> bool:
    with suppress(OSError):
        urllib.request.urlopen(f"{address.url}/health", timeout=LONG)
        return True
    return False


def pids(log: Path) -> list[int]:
    """Of all servers that have written there, and of what each has started."""
    lines = [line.split() for line in log.read_text().splitlines() if line.startswith("mine")] if log.exists() else []
    return [int(number) for line in lines for number in line[1:]]


def alive(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


# ------------------------------------------------------------------ one process


@pytest.fixture
def process(tmp_path: Path) -> Iterator[ServerProcess]:
    one = start(0, free_port(), tmp_path / "log")
    until(lambda: len(pids(one.log)) == 2)
    yield one
    one.stop()


def test_stopping_ends_it_and_what_it_has_started(process):
    assert process.exit_code is None
    process.stop()
    assert process.exit_code is not None
    assert process.end == "", "it did not end of itself"
    assert not any(alive(pid) for pid in pids(process.log))


def test_a_killed_server_leaves_nothing(process):
    server, child = pids(process.log)
    os.kill(server, signal.SIGKILL)
    until(lambda: process.exit_code is not None)
    assert process.exit_code == 128 + signal.SIGKILL
    assert process.end == "its process was ended by SIGKILL (kill -9, or a machine that is out of memory)"
    assert not alive(child)


TIDYING = """
import os, signal, subprocess, sys, time
child = '''
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("mine", flush=True)
sys.stdin.read()  # as Python's resource tracker: ends after its server
time.sleep(0.5)
pathlib.Path(sys.argv[1]).unlink()
'''
subprocess.Popen([sys.executable, "-I", "-S", "-c", child, sys.argv[1]], stdin=subprocess.PIPE)
time.sleep(600)
"""


@pytest.mark.parametrize("how", ["asked", "killed"])
def test_what_a_server_has_started_may_tidy_up(tmp_path, how):
    (shared := tmp_path / "shared").touch()
    command = [sys.executable, "-I", "-S", "-c", TIDYING, str(shared)]
    one = ServerProcess(command, os.environ, tmp_path / "log")
    until(lambda: "mine" in one.last_words())
    if how == "asked":
        one.stop()
    else:
        [server] = Path(f"/proc/{one._watcher.pid}/task/{one._watcher.pid}/children").read_text().split()
        os.kill(int(server), signal.SIGKILL)
        until(lambda: one.exit_code is not None)
    assert not shared.exists()


def test_a_stopped_server_is_ended_too(process):
    """One that is stopped (SIGSTOP) hears no request to end."""
    os.kill(pids(process.log)[0], signal.SIGSTOP)
    process.stop()
    assert process.end == ""
    assert not any(alive(pid) for pid in pids(process.log))


def test_servers_end_with_a_run_that_is_killed(tmp_path):
    run = (
        "import os, sys; from pathlib import Path; from tests.unit.test_server_processes import start; import time\n"
        f"start(0, {free_port()}, Path({str(tmp_path / 'log')!r}))\n"
        "child = os.fork()\n"  # it holds the other end of the watcher's pipe, and outlives the run for a while
        "time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", run], cwd=Path(__file__).parents[2])
    try:
        until(lambda: len(pids(tmp_path / "log")) == 2)
        assert all(alive(pid) for pid in pids(tmp_path / "log"))
    finally:
        parent.kill()
        parent.wait()
    until(lambda: not any(alive(pid) for pid in pids(tmp_path / "log")))


# ------------------------------------------------------------------ all that a run has


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Any]:
    made = []

    def supply(count: int, kinds: str = "well", **options: Any) -> OwnProcesses:
        def started(number: int, port: int, log: Path) -> ServerProcess:
            return start(number, port, log, kinds)

        settings = {"logs": tmp_path / "servers", "answers": answers, "start_timeout": LONG, "restarts": 1, **options}
        made.append(OwnProcesses(count, started, **settings))
        return made[-1]

    yield supply
    for one in made:
        one.stop()
    for log in (tmp_path / "servers").glob("*.log"):
        assert not any(alive(pid) for pid in pids(log))


KILLED = "its process was ended by SIGKILL (kill -9, or a machine that is out of memory); "


def kill(supply_logs: Path, number: int) -> None:
    os.kill(pids(supply_logs / f"server-{number}.log")[-2], signal.SIGKILL)


def test_all_start_and_each_has_its_log(make, tmp_path):
    addresses = make(2).start()
    assert [one.number for one in addresses] == [0, 1]
    assert all(answers(one) for one in addresses)
    assert all(one.url.startswith("http://127.0.0.1:") for one in addresses)
    assert all(len(pids(tmp_path / "servers" / f"server-{n}.log")) == 2 for n in (0, 1))


def test_one_that_died_is_started_again_as_often_as_it_may(make, tmp_path):
    supply = make(2)
    first, second = supply.start()
    kill(tmp_path / "servers", 0)
    until(lambda: not answers(first))
    assert supply.lost(first).startswith(f"{KILLED}it is started again (restart 1 of 1), and samples once")
    assert supply.lost(first) == "it has been started again", "a second rank, or request, that says so"
    until(lambda: len(supply.present()) == 2)
    again = supply.present()[0]
    assert (again.number, supply.present()[1]) == (0, second)
    assert again.url != first.url
    kill(tmp_path / "servers", 0)
    used = "it was started 2 times and is left out from now on (rollout.servers.restarts=1)"
    assert supply.lost(again) == f"{KILLED}{used}"
    assert supply.present() == [second]


def test_where_none_is_left_one_that_starts_is_waited_for(make, tmp_path):
    supply = make(1)
    [only] = supply.start()
    kill(tmp_path / "servers", 0)
    supply.lost(only)
    [again] = supply.present()
    assert answers(again)
    assert supply.starting
    kill(tmp_path / "servers", 0)
    supply.lost(again)
    assert supply.present() == []
    assert not supply.starting


def test_a_death_that_nobody_was_told_of_is_noticed(make, tmp_path):
    supply = make(2)
    supply.start()
    kill(tmp_path / "servers", 1)
    until(lambda: [one.number for one in supply.present()] == [0])
    until(lambda: [one.number for one in supply.present()] == [0, 1])


def test_a_server_that_cannot_start_says_why(make):
    with pytest.raises(
        EngineError, match=r"server 0 did not start: its process ended with exit code 3; (.|\n)*cannot open the model"
    ):
        make(2, "breaks").start()


def test_a_server_that_never_answers_is_waited_for_within_the_limit(make):
    with pytest.raises(EngineError, match=r"did not start: no answer within 0\.5 s"):
        make(1, "deaf", start_timeout=0.5, restarts=0).start()


def test_after_the_end_none_is_started_again(make):
    supply = make(1)
    [only] = supply.start()
    supply.stop()
    assert supply.lost(only) == "it was started 1 time and is left out from now on (the run ends)"
    assert not supply.starting
    assert supply.present() == []


def test_given_servers_that_are_not_there(tmp_path):
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(EngineError, match=rf"no answer from server 0 \({url}\)\. Start each there with\n    vllm!"):
        GivenServers([url], answers, "vllm!").start()


# ------------------------------------------------------------------ command lines


def command(**options: Any) -> list[str]:
    given = {
        "folder": "/f",
        "model": "policy",
        "port": 81,
        "dtype": "float32",
        "max_model_len": 99,
        "transfer": ["--x"],
    }
    return server_command(OwnServers(**options), **given)  # type: ignore[arg-type]


def test_the_command_line():
    found = command(arguments=["--max-num-seqs", "8"])
    expected = {"--host": "127.0.0.1", "--port": "81", "--model": "/f", "--served-model-name": "policy"}
    expected |= {"--load-format": "dummy", "--dtype": "float32", "--max-model-len": "99", "--block-size": "32"}
    expected |= {"--kv-cache-memory-bytes": str(2**30), "--max-num-seqs": "8", "--tensor-parallel-size": "1"}
    for name, value in expected.items():
        assert found[found.index(name) + 1] == value
    assert {"--x", "--enforce-eager"} <= set(found)
    on_gpus = command(count=2, devices=[0, 1, 2, 3], tensor_parallel_size=2, gpu_memory_utilization=0.7)
    assert on_gpus[on_gpus.index("--tensor-parallel-size") + 1] == "2"
    assert on_gpus[on_gpus.index("--gpu-memory-utilization") + 1] == "0.7"
    assert not {"--kv-cache-memory-bytes", "--enforce-eager"} & set(on_gpus)


def test_the_environment():
    options = OwnServers(count=2, devices=[2, 3])
    run = {"VLLM_API_KEY": "k", "RANK": "0", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "PATH": "p"}
    found = server_environment(options, 1, {"VLLM_SERVER_DEV_MODE": "1"}, run)
    assert found["CUDA_VISIBLE_DEVICES"] == "3"
    assert found["PATH"] == "p"
    assert found["VLLM_SERVER_DEV_MODE"] == "1"
    assert not {"VLLM_API_KEY", "RANK", "VLLM_ENABLE_V1_MULTIPROCESSING"} & set(found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 2, "devices": [0]}, "need 2 different GPUs"),
        ({"count": 2, "devices": [0, 0]}, "need 2 different GPUs"),
        ({"tensor_parallel_size": 2}, "tensor_parallel_size 2 needs GPUs"),
        ({"count": 0}, "count"),
    ],
)
def test_options_that_do_not_go_together(options, message):
    with pytest.raises(ConfigError, match=message):
        OwnServers(**options)
