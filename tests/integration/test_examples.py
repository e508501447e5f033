"""The examples run as their docstrings say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_plain_loop_trains_without_lightning() -> None:
    arguments = ["--steps", "2", "--prompts", "2", "--samples", "4", "--warmup", "0"]
    code = (
        "import runpy, sys; sys.argv = ['plain_loop.py', *sys.argv[1:]]; "
        f"runpy.run_path({str(ROOT / 'examples/plain_loop.py')!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "step 2: share of the reference's steps reached" in done.stdout


def test_the_custom_judge_trains_from_yaml(tmp_path: Path) -> None:
    from tests.integration.conftest import SMALL

    config = ROOT / "examples/custom_judge/experiment.yaml"
    done = subprocess.run(
        [sys.executable, "-m", "exprl", "train", str(config), *SMALL, "trainer.max_steps=1", f"run_dir={tmp_path}/run",
         "reward.clip_length=false"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(config.parent)},
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    samples = map(json.loads, (tmp_path / "run/samples.jsonl").read_text().splitlines())
    assert any(segment["rationale"].endswith("numbers") for sample in samples for segment in sample["segments"])
