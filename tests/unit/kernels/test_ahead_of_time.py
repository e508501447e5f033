"""The kernels compiled for GPUs that are not here: no register spills, no length is fixed, no offset overflows."""

import importlib.util
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.version import Version

from tests.waiting import LONG

CAPABILITIES = [80, 90, 100]
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """What `ahead_of_time.py` prints, in the time of about a hundred small compilations."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    tools = Path(importlib.util.find_spec("triton").origin).parent / "backends/nvidia/bin"
    for tool in ("ptxas", "cuobjdump"):
        if not (tools / tool).exists():
            pytest.skip(f"this triton does not bring {tool}, which compiling for a GPU without one needs")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.kernels.ahead_of_time", *map(str, CAPABILITIES)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LONG,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return {entry["capability"]: entry for entry in json.loads(done.stdout.splitlines()[-1])}


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_no_register_is_spilled(report, capability):
    if Version(version("triton")) < Version("3.7"):
        pytest.skip("Triton 3.6 spills 8 bytes of merge_jsd_kernel on capability 80")
    kernels = report[capability]["kernels"]
    for k in kernels:
        print(capability, k["kernel"], k["options"], f"registers {k['REG']}")
        assert (k["LOCAL"], k["STACK"]) == (0, 0), k
        # 4 warps of 32 threads, four times on a multiprocessor of 65,536 registers: reads of one hide behind others.
        assert k["REG"] <= 128, k
    assert {k["kernel"] for k in kernels} == {
        "merge_kernel",
        "merge_jsd_kernel",
        "gradient_kernel",
        "policy_loss_kernel",
    }
    assert {k["options"]["DIVERGENCE"] for k in kernels if "DIVERGENCE" in k["options"]} == {
        "none",
        "rkl",
        "fkl",
        "jsd",
    }


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_no_length_is_compiled_for(report, capability):
    # 1 token compiled everything; 2 to 32,768 tokens, and slices of other places and widths, found all of it there.
    assert report[capability]["more"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_offsets_of_rows_have_64_bits(report, capability):
    # 14,135 rows of 151,936 logits are past 2^31; no test here can hold that many.
    for k in report[capability]["kernels"]:
        assert k["narrow"] == [], k
