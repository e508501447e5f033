"""The SLURM scripts of `examples/slurm`, with programs of the same names in place of SLURM's, torchrun and vLLM."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from exprl.engines.servers.command import served_command
from exprl.engines.transfer.files import FileTransfer
from exprl.experiment import load_experiment
from tests.waiting import LONG, until

SCRIPTS = Path(__file__).parents[2] / "examples/slurm"
SIX = [f"n{number}" for number in range(1, 7)]

RECORDING = f"""#!{sys.executable}
import json, os, pathlib, signal, subprocess, sys, time
place, name, given = pathlib.Path(os.environ["PLACE"]), pathlib.Path(sys.argv[0]).name, sys.argv[1:]
seen = {{key: os.environ.get(key) for key in ("CUDA_VISIBLE_DEVICES", "VLLM_API_KEY", "VLLM_SERVER_DEV_MODE")}}
entry = {{"name": name, "given": given, "pid": os.getpid(), "seen": seen}}
"""
RECORDED = """
with open(place / "calls.jsonl", "a") as file:
    file.write(json.dumps(entry) + "\\n")
"""
SRUN = """
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
named = [own.partition("=")[2] for own in given if own.startswith("--nodelist=")]
nodes = (named or [os.environ["SLURM_JOB_NODELIST"]])[0].split(",")
program = given[next(n for n, own in enumerate(given) if not own.startswith("--")):]
tasks = [subprocess.Popen(program, env={**os.environ, "SLURMD_NODENAME": node}) for node in nodes]
while any(task.poll() is None for task in tasks):
    if asked:
        asked.clear()
        [task.terminate() for task in tasks]
    time.sleep(0.02)
sys.exit(max([task.wait() for task in tasks], key=abs))
"""
HEEDING = """
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
"""
SERVER = """
time.sleep(0 if os.environ.get("SERVERS_END") else 1000)
"""
SAVING = """
def saves(*_):
    entry.update(name="saved", servers=[json.loads(own)["pid"] for own in open(place / "calls.jsonl")
                                       if json.loads(own)["name"] == "python"])
    entry["alive"] = [os.path.exists(f"/proc/{pid}") for pid in entry["servers"]]
    with open(place / "calls.jsonl", "a") as file:
        file.write(json.dumps(entry) + "\\n")
    sys.exit(143)
signal.signal(signal.SIGTERM, saves)
"""
TORCHRUN = """
time.sleep(1000 if os.environ.get("TRAINS_LONG") else 0)
sys.exit(7)
"""
PROGRAMS = {
    "scontrol": "print(given[-1].replace(',', '\\n'))",
    "curl": "sys.exit(0 if (place / 'up').exists() else 7)",
    "srun": RECORDED + SRUN,
    "python": HEEDING + RECORDED + SERVER,
    "torchrun": SAVING + RECORDED + TORCHRUN,
}


class Job:
    """A script as SLURM runs it, and what it started."""

    def __init__(self, place: Path) -> None:
        self.place = place
        (place / "up").touch()
        (place / "bin").mkdir()
        for name, body in PROGRAMS.items():
            (place / "bin" / name).write_text(RECORDING + body)
            (place / "bin" / name).chmod(0o755)

    def start(self, script: str, nodes: Sequence[str], *arguments: str, **variables: str) -> subprocess.Popen[str]:
        own = {"PLACE": str(self.place), "PATH": f"{self.place / 'bin'}:{os.environ['PATH']}", "POLL_SECONDS": "0.05"}
        slurm = {"SLURM_JOB_NODELIST": ",".join(nodes), "SLURM_JOB_ID": "77"}
        return subprocess.Popen(
            ["bash", SCRIPTS / script, *arguments],
            env={**os.environ, **own, **slurm, **variables},
            cwd=self.place,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, script: str, nodes: Sequence[str], *arguments: str, **variables: str) -> tuple[int, str]:
        process = self.start(script, nodes, *arguments, **variables)
        _, errors = process.communicate(timeout=LONG)
        return process.returncode, errors

    def calls(self, name: str) -> list[dict[str, Any]]:
        path = self.place / "calls.jsonl"
        found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [one for one in found if one["name"] == name]

    def await_end(self) -> None:
        """Every server ends, at once or soon."""
        until(lambda: not any(Path(f"/proc/{one['pid']}").exists() for one in self.calls("python")))


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def after(given: Sequence[str], name: str) -> str:
    return given[given.index(name) + 1]


def test_all_cards_of_all_nodes_train_as_one_run(job):
    code, errors = job.run("colocated.sh", SIX[:2], "my.yaml", "run_dir=r")
    assert code == 7, errors
    one, other = job.calls("torchrun")
    assert one["given"] == other["given"]
    assert after(one["given"], "--nnodes") == "2"
    assert after(one["given"], "--rdzv-endpoint") == "n1:29500"
    assert one["given"][-6:] == ["-m", "exprl", "train", "my.yaml", "run_dir=r", "--resume"]


def test_nodes_sample_judge_and_train_and_servers_end_with_the_trainer(job):
    variables = {"POLICY": "P", "JUDGE": "J", "TRAINER_NODES": "2", "CARDS_PER_NODE": "4", "CARDS_PER_SERVER": "2"}
    code, errors = job.run("servers.sh", SIX[:5], "my.yaml", "run_dir=r", **variables)
    assert code == 7, errors
    job.await_end()
    nodes = [next(own for own in one["given"] if own.startswith("--nodelist")) for one in job.calls("srun")]
    assert sorted(nodes) == ["--nodelist=n1,n2", "--nodelist=n3,n4", "--nodelist=n5"]

    servers = [one for one in job.calls("python") if after(one["given"], "--model") == "P"]
    places = sorted((after(one["given"], "--host"), after(one["given"], "--port")) for one in servers)
    assert places == [("n3", "8000"), ("n3", "8001"), ("n4", "8000"), ("n4", "8001")]
    assert sorted(one["seen"]["CUDA_VISIBLE_DEVICES"] for one in servers) == ["0,1", "0,1", "2,3", "2,3"]
    assert all(one["seen"]["VLLM_SERVER_DEV_MODE"] == "1" for one in servers)

    [judge] = [one for one in job.calls("python") if after(one["given"], "--model") == "J"]
    assert after(judge["given"], "--data-parallel-size") == "4"
    assert judge["seen"]["VLLM_SERVER_DEV_MODE"] is None  # nobody gives it weights
    trainers = job.calls("torchrun")
    assert len(trainers) == 2
    given = trainers[0]["given"]
    urls = "http://n3:8000,http://n3:8001,http://n4:8000,http://n4:8001"
    assert given[given.index("train") :] == [
        *("train", "my.yaml", "rollout.name=vllm_server", f"rollout.urls=[{urls}]", "rollout.transfer=nccl"),
        *(
            "rollout.dtype=bfloat16",
            "rollout.max_model_len=24576",
            "rollout.lookahead=1",
            "reward.judge.backend.name=server",
        ),
        *("reward.judge.backend.url=http://n5:8100/v1", "reward.judge.backend.model=J", "run_dir=r", "--resume"),
    ]
    [key] = {one["seen"]["VLLM_API_KEY"] for one in job.calls("python") + trainers}
    assert len(key) == 48
    assert all(key not in own for one in job.calls("srun") + trainers for own in one["given"])


def test_servers_are_started_as_the_engine_says_and_the_run_takes_its_options(job):
    job.run("servers.sh", SIX[:2], "my.yaml", POLICY="P", CARDS_PER_NODE="1")
    [server] = job.calls("python")
    transfer = FileTransfer()
    said = served_command("policy", "bfloat16", transfer.server_arguments(), {}).replace(transfer.name, "nccl")
    words = shlex.split(said.partition("openai.api_server")[2])
    for name, value in zip(words[::2], words[1::2], strict=True):
        assert after(server["given"], name) == {"HOST": "n2", "PORT": "8000", "PATH_OF_THE_POLICY": "P"}.get(
            value, value
        )
    assert server["seen"].items() >= transfer.environment().items()
    [trainer] = job.calls("torchrun")
    given = trainer["given"]
    options = [own for own in given[given.index("train") :] if "=" in own]
    experiment = load_experiment(SCRIPTS.parents[1] / "configs/smollm2_champ.yaml", options)
    assert experiment.rollout.config.urls == ["http://n2:8000"]
    assert experiment.rollout.config.lookahead == 1


def test_servers_and_run_compute_in_one_precision_and_an_adapter_s_servers_have_its_arguments(job):
    variables = {"DTYPE": "float32", "SERVER_ARGUMENTS": "--enable-lora --max-loras 2"}
    job.run("servers.sh", SIX[:2], "my.yaml", POLICY="P", CARDS_PER_NODE="1", **variables)
    [server], [trainer] = job.calls("python"), job.calls("torchrun")
    assert after(server["given"], "--dtype") == "float32"
    assert "rollout.dtype=float32" in trainer["given"]
    assert server["given"][-3:] == ["--enable-lora", "--max-loras", "2"]


def test_a_signal_lets_the_trainer_save_while_servers_go_on(job):
    process = job.start("servers.sh", SIX[:2], "my.yaml", POLICY="P", CARDS_PER_NODE="2", TRAINS_LONG="1")
    until(lambda: job.calls("torchrun"))
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=LONG)
    assert process.returncode == 143
    [saved] = job.calls("saved")
    assert saved["alive"] == [True, True]
    job.await_end()


@pytest.mark.parametrize(
    ("nodes", "variables", "word"),
    [
        (1, {}, "none is left to sample"),
        (2, {"JUDGE": "J"}, "none is left to sample"),
        (3, {"CARDS_PER_SERVER": "3"}, "must divide"),
        (2, {"POLICY": ""}, "name the model"),
        (2, {"SLURM_JOB_NODELIST": ""}, "sbatch"),
    ],
)
def test_what_cannot_be_shared_out_is_told_before_anything_starts(job, nodes, variables, word):
    code, errors = job.run("servers.sh", SIX[:nodes], "my.yaml", **{"POLICY": "P", **variables})
    assert code != 0
    assert word in errors
    assert job.calls("srun") == []


@pytest.mark.parametrize(
    ("variables", "word"), [({"START_SECONDS": "1"}, "no answer from http://n2:8000"), ({"SERVERS_END": "1"}, "ended")]
)
def test_servers_that_do_not_come_end_the_job(job, variables, word):
    (job.place / "up").unlink()
    code, errors = job.run("servers.sh", SIX[:2], "my.yaml", POLICY="P", CARDS_PER_NODE="1", **variables)
    assert code == 2
    assert word in errors
    assert job.calls("torchrun") == []
    job.await_end()


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing():
    subprocess.run(["shellcheck", *sorted(SCRIPTS.glob("*.sh"))], check=True)
