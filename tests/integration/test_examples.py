"""The examples run as their docstrings say."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.processes import samples

pytestmark = pytest.mark.usefixtures("forking")

ROOT = Path(__file__).parents[2]


@pytest.mark.usefixtures("genuine")
def test_the_plain_loop_trains_without_lightning() -> None:
    arguments = ["--steps", "2", "--prompts", "2", "--samples", "4", "--warmup", "0"]
    code = (
        "import runpy, sys; sys.argv = ['plain_loop.py', *sys.argv[1:]]; "
        f"runpy.run_path({str(ROOT / 'examples/plain_loop.py')!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "step 2: share of the reference's steps reached" in done.stdout


def test_a_language_model_judges_in_a_loop_of_25_lines() -> None:
    """It has one import from exprl, and its length is what somebody has to write."""
    file = ROOT / "examples/llm_judge.py"
    body = ast.parse(file.read_text()).body[1:]  # without the docstring
    assert [node.module for node in body if isinstance(node, ast.ImportFrom)] == ["exprl"]
    assert len([line for line in file.read_text().splitlines()[body[0].lineno - 1 :] if line.strip()]) <= 25
    shorter = file.read_text().replace("max_new_tokens=32", "max_new_tokens=20")  # to save time: still two segments
    assert shorter != file.read_text()
    done = subprocess.run([sys.executable, "-c", shorter], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    values = [value for line in done.stdout.splitlines() for own in ast.literal_eval(line) for value in own]
    assert len(values) >= 4
    assert all(0 <= value <= 1 for value in values)


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
    rollouts = samples(tmp_path / "run")
    assert any(segment["rationale"].endswith("numbers") for sample in rollouts for segment in sample["segments"])
