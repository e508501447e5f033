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
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from exprl import waiting
from exprl.errors import CheckpointError, ConfigError, JudgeError
from exprl.rewards.checks import check_failures
from exprl.runs.directory import RunDirectory
from exprl.terminal.console import Console
from exprl.terminal.phases import Phases
from exprl.training import world as world_module
from exprl.training.aftermath import assemble, choose, session
from exprl.training.board import Board, Silence
from exprl.training.callbacks import Checkpoints
from exprl.training.failure import Process, record
from exprl.training.world import World, join
from exprl.types import Judgement, RolloutReward
from tests.waiting import LONG, until


def failed_judge() -> JudgeError:
    """With what the judge said, as a step in which too much fails has it."""
    said = Judgement(score=None, status="unparseable", rationale="the reference says: seven")
    with pytest.raises(JudgeError, match="the reference says: seven") as raised:
        check_failures([(RolloutReward(value=None, length=1, judgements=(said,)),)], 0.25)
    return raised.value


@pytest.mark.parametrize("error", [failed_judge(), RuntimeError("no score in: the reference says: seven")])
def test_the_launcher_reads_what_was_recorded_and_nothing_of_what_a_judge_said(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(path))
    record(error)
    failure = ProcessFailure(local_rank=1, pid=1, exitcode=2, error_file=str(path))
    assert str(failure.message["message"]).startswith(f"{type(error).__name__}: ")  # type: ignore[index]
    written = path.read_text()
    assert failure.timestamp == int(json.loads(written)["message"]["extraInfo"]["timestamp"])
    assert "seven" not in written
    assert ("check_failures" in written) == isinstance(error, JudgeError), "where it was raised"


def test_without_a_launcher_nothing_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    record(ConfigError("seed: too small"))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system does not say when a process started")
def test_a_process_is_ended_only_if_it_is_still_the_one() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    started = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19]
    same = Process.from_json(replace(Process.own(), pid=child.pid, started=started).to_json())
    replace(same, started="1").kill()
    replace(same, host="another").kill()
    replace(same, started="").kill()
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.3)
    assert not same.ended
    assert not replace(same, host="another", pid=2**30).ended, "who knows"
    same.kill()
    until(lambda: Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z")
    assert same.ended, "also before its parent has asked for its exit code"
    assert child.wait(LONG) == -9
    assert same.ended
    same.kill()  # gone already


def test_who_is_silent_is_lost_and_at_once_whose_process_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(waiting.time, "monotonic", lambda: now[0])
    boards = [Board(store, rank, 2) for store in [dist.HashStore()] for rank in range(2)]  # type: ignore[attr-defined]
    silence = Silence(boards[0])
    ended: set[int] = set()
    monkeypatch.setattr(Process, "ended", property(lambda process: process.pid in ended))

    def lost_after(seconds: float) -> bool:
        """More of them, in which it is looked all the time."""
        for _ in range(int(8 * seconds)):
            now[0] += 0.125
            lost = silence.lost(1)
        return lost

    assert not silence.lost(1)
    assert not lost_after(3.875)
    assert lost_after(0.25)
    boards[1].beat()
    assert not lost_after(4.0), "the first look has heard it again"
    assert lost_after(0.25)
    ended.add(Process.own().pid)
    assert silence.lost(1), "nor is it listened for anew by whoever asks next"
    boards[1].beat()
    assert not lost_after(1.0)
    assert lost_after(0.25)
    boards[1].beat()
    assert not silence.lost(1)
    now[0] += 3600
    assert not silence.lost(1), "whoever was stopped meanwhile has not listened"


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
    module: Any = SimpleNamespace(world=World(), phases=Phases(), steps_done=2, check_weights=lambda _: None)
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
