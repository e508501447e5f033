"""The paper's sequence length and a real vocabulary on a small computer: one whole update within 4 GiB."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import ROOT
from tests.integration.long_sequence_script import RESPONSE, VOCABULARY
from tests.integration.processes import environment
from tests.waiting import LONG

LIMIT_GIB = 4.0
LOGITS_GIB = RESPONSE * VOCABULARY * 4 / 2**30

# glibc gives every large block back when it is freed, and twice the time would go into fetching the pages again.
KEEP_PAGES = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**30)}


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    process = subprocess.run(
        [sys.executable, "-m", "tests.integration.long_sequence_script"],
        cwd=ROOT,
        env=environment() | KEEP_PAGES,
        capture_output=True,
        text=True,
        timeout=LONG,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    parsed: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return parsed


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak memory is read from /proc"),
]


def test_fits_into_four_gib(result: dict[str, Any]) -> None:
    assert result["peak_gib"] < LIMIT_GIB
    assert LOGITS_GIB > LIMIT_GIB, "materialised logits alone would fit, so the test shows nothing"


def test_the_whole_rollout_trains_in_one_piece(result: dict[str, Any]) -> None:
    assert (result["tokens"], result["micro_batches"]) == (RESPONSE, 1)
    assert result["unchanged"] == 0, "parameters that the step left as they were"


def test_values_are_those_of_a_nearly_uniform_policy(result: dict[str, Any]) -> None:
    # Weights are small: at every position the distribution is close to uniform.
    assert result["entropy"] == pytest.approx(math.log(VOCABULARY), rel=0.01)
    assert math.isfinite(result["loss"])
    assert 0 < result["grad_norm"] < math.inf
    # k3 of two different models is above 0; nothing to see would mean the reference was the policy.
    assert 0 < result["kl"] < 1
