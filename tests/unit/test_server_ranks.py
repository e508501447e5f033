"""Several ranks share servers: the first gives them the weights, all sample, and what fails for one fails for all."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import HashStore

from exprl.engines.servers.ranks import Ranks
from exprl.errors import EngineError
from tests.policy_server import PolicyServer
from tests.vllm.helpers import small_policy
from tests.waiting import LONG

pytestmark = pytest.mark.usefixtures("forking")

ROOT = Path(__file__).parents[2]


def pair(limit: float = LONG) -> tuple[Ranks, Ranks]:
    store = HashStore()
    return Ranks(limit, rank=0, size=2, store=store), Ranks(limit, rank=1, size=2, store=store)


def test_what_the_first_rank_makes_all_have():
    first, second = pair()
    heard: list[Any] = []
    other = threading.Thread(target=lambda: heard.extend(second.tell(lambda: ["mine"], "it") for _ in range(2)))
    other.start()
    assert [first.tell(lambda: [1, "a"], "it"), first.tell(lambda: None, "it")] == [[1, "a"], None]
    other.join(timeout=LONG)
    assert heard == [[1, "a"], None]


def test_what_fails_for_the_first_rank_fails_for_all():
    first, second = pair()

    def fail() -> None:
        raise EngineError("no server is left")

    with pytest.raises(EngineError, match="no server is left"):
        first.tell(fail, "it")
    with pytest.raises(EngineError, match="no server is left"):
        second.tell(fail, "it")


def test_a_first_rank_that_does_not_come_is_waited_for_within_the_limit():
    with pytest.raises(EngineError, match=r"rank 1: rank 0 did not come to the sync within 0\.2 s"):
        pair(0.2)[1].tell(lambda: None, "the sync")


def test_the_first_rank_waits_for_the_others():
    first, second = pair()
    came: list[bool] = []
    late = threading.Timer(0.2, lambda: (came.append(True), second.meet("the sync")))
    late.start()
    first.meet("the sync")
    assert came
    late.join()
    second.meet("the next")
    first.meet("the next")
    with pytest.raises(EngineError, match=r"rank 0: rank 1 did not come to the last within 0\.2 s"):
        pair(0.2)[0].meet("the last")


def run_ranks(urls: list[str], folder: Path, world: int = 2) -> list[dict[str, Any]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = []
    for rank in range(world):
        torchrun = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world}
        own = {**{name: str(value) for name, value in torchrun.items()}, "MASTER_ADDR": "127.0.0.1"}
        with (folder / f"{rank}.txt").open("wb") as log:
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.unit.server_rank", *urls],
                    cwd=ROOT,
                    env={**os.environ, **own, "MASTER_PORT": port},
                    stdout=subprocess.PIPE,
                    stderr=log,
                )
            )
    try:
        outputs = [process.communicate(timeout=LONG)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for rank, process in enumerate(processes):
        assert process.returncode == 0, (folder / f"{rank}.txt").read_text()[-3000:]
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def test_two_ranks_and_two_servers(tmp_path: Path) -> None:
    policy = small_policy()
    servers = [PolicyServer(policy) for _ in range(2)]
    with ExitStack() as stack:
        for server in servers:
            server.start()
            stack.callback(server.stop)
        ranks = run_ranks([server.url for server in servers], tmp_path)
    for kind in ("plain", "sharded"):
        first, second = (found[kind] for found in ranks)
        for found in (first, second):
            assert "sync" in found["before"], "nothing is sampled before all ranks have given the weights"
            assert len(found["gaps"]) == 3
            assert max(found["gaps"]) < 1e-5
        assert first["tokens"] != second["tokens"]
        assert first["counts"]["servers"] == 2.0
        assert set(second["counts"]) == {"resubmitted"}
    assert servers[0].paths().count("/finish_weight_update") == 6, "one rank sends"
