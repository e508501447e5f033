"""What a failed rank leaves to its launcher, and which process it may end."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from exprl.errors import CheckpointError, ConfigError
from exprl.runs.directory import RunDirectory
from exprl.terminal.console import Console
from exprl.training import world as world_module
from exprl.training.aftermath import assemble, choose, session
from exprl.training.callbacks import Checkpoints
from exprl.training.failure import Process, record
from exprl.training.world import World, join


@pytest.mark.parametrize("error", [ConfigError("seed: too small"), RuntimeError("on fire")])
def test_the_launcher_reads_what_was_recorded(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(path))
    record(error)
    failure = ProcessFailure(local_rank=1, pid=1, exitcode=2, error_file=str(path))
    assert str(error) in failure.message["message"]  # type: ignore[index]
    assert failure.timestamp == int(json.loads(path.read_text())["message"]["extraInfo"]["timestamp"])


def test_without_a_launcher_nothing_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    record(ConfigError("seed: too small"))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system does not say when a process started")
def test_a_process_is_ended_only_if_it_is_still_the_one() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    started = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19]
    same = Process.from_json(replace(Process.own(), pid=child.pid, started=started).to_json())
    replace(same, started="1").kill()
    replace(same, host="another").kill()
    replace(same, started="").kill()
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.3)
    same.kill()
    assert child.wait(10) == -9
    same.kill()  # gone already


def test_the_ranks_that_are_left_agree_on_what_they_save() -> None:
    assert choose({0: 2, 1: 2}, least=2) == (2, [0, 1])
    assert choose({1: 2}, least=2) == (0, []), "each holds a part"
    assert choose({1: 2}, least=1) == (2, [1])
    assert choose({0: 0, 1: 0}, least=1) == (0, [])
    assert choose({0: -1, 1: 2}, least=1) == (0, []), "saving is what failed"


def test_a_world_of_one_has_nobody_to_tell() -> None:
    world = World()
    with pytest.raises(RuntimeError, match="on fire"), session(world):
        raise RuntimeError("on fire")
    assert assemble(world, 3, everyone=True) == 3
    assert world.by_rank(["mine"]) == ["mine"]


def test_an_address_where_nobody_can_listen_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    from exprl.errors import DistributedError

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        variables = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(world_module, "START", 1.0)
        with pytest.raises(DistributedError, match=rf"MASTER_ADDR:MASTER_PORT 127\.0\.0\.1:{port}"):
            join(2.0, on_gpu=False)


def test_a_part_of_a_checkpoint_that_cannot_be_written_is_said_without_a_traceback(tmp_path: Path) -> None:
    """As torch says it on all ranks."""
    full = OSError(errno.ENOSPC, "No space left on device")
    failed = CheckpointException("write", {1: (full, traceback.extract_stack())})
    module: Any = SimpleNamespace(world=World(), steps_done=2, check_weights=lambda what: None)
    trainer: Any = SimpleNamespace(save_checkpoint=Mock(side_effect=failed))
    writer = Checkpoints(RunDirectory(tmp_path), Console(quiet=True), every=1, last=4, keep=2)
    with pytest.raises(
        CheckpointError, match=r"cannot write .*: \[Errno 28\] No space left on device\. Make room"
    ) as told:
        writer.save(trainer, module)
    assert "\n" not in str(told.value)


def test_the_watch_is_over_before_the_interpreter_ends() -> None:
    """A thread that comes back from the store's C++ code after that aborts the process."""
    script = """
import atexit, threading, types
import torch.distributed as dist
from exprl.training.board import Board
from exprl.training.watch import start_watch

atexit.register(lambda: print([thread.name for thread in threading.enumerate()]))  # the last to be called
board = Board(dist.HashStore(), 0, 2)
start_watch(types.SimpleNamespace(board=board, deadline=None, must_not_be_cut=False))
print([thread.name for thread in threading.enumerate()])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["['MainThread', 'exprl-watch']", "['MainThread']"]
